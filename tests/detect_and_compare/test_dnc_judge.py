"""The judge: what the command says of pictures, from programs that make them."""

import numpy as np
import pytest
import torch
from helpers import ROOT

from detect_and_compare import score_images
from detect_and_compare.args import JudgeArgs
from detect_and_compare.judge import checkpoint_complaints, load_judge, read_basis
from detect_and_compare.score import reference_matrix
from mudi.ground.errors import SetupError
from mudi.images import load_rgb

EXAMPLES = ROOT / "detect_and_compare" / "examples"
PLAIN = JudgeArgs(crop_references=True, detector="foreground", embedder=["colours"])


@pytest.fixture(scope="module")
def judge():
    problems: list[str] = []
    basis = read_basis(PLAIN, EXAMPLES / "references", "--references", problems)
    assert not problems and basis.queries == {"a": "robot", "b": "teddy bear"}
    return load_judge(PLAIN, basis, torch.device("cpu"))


def test_a_judge_says_what_score_images_says(judge):
    basis = read_basis(PLAIN, EXAMPLES / "references", "--references", [])
    images = [load_rgb(path) for path in sorted((EXAMPLES / "pictures").iterdir())]
    records = score_images(images, basis.references.images, judge.detector, judge.metrics[0]._embed)
    told = judge(images)
    assert [record["colours"].score for record in told] == [record.score for record in records]
    assert [record["colours"].verdict for record in told] == [record.verdict for record in records]


def test_a_judge_about_some_subjects_compares_with_these_alone(judge):
    """One crop of the robot: for both subjects the bear is missing, for the robot all is well."""
    image = load_rgb(EXAMPLES / "pictures" / "good.jpg")
    [both] = judge([image])
    box = both["colours"].boxes[both["colours"].verdicts["a"].detection]
    alone = image.crop((0, 0, box.right + 4, image.height))
    [record] = judge.about(["a"])([alone])
    assert record["colours"].verdict == "good" and list(record["colours"].verdicts) == ["a"]
    assert judge([alone])[0]["colours"].verdict == "missing"
    embedded = judge.metrics[0]._references[:1]
    assert np.array_equal(judge.about(["a"]).metrics[0].expected, reference_matrix(embedded))
    turned = judge.about(["b", "a"]).metrics[0].expected
    assert np.allclose(turned, judge.metrics[0].expected[::-1, ::-1])


def test_what_is_wrong_is_told_without_a_model():
    problems: list[str] = []
    args = JudgeArgs(detector="foreground", queries=["x=dog"], nms=0.5)
    basis = read_basis(args, EXAMPLES / "nowhere", "--instance_data_dir", problems)
    assert not basis.references.images
    assert problems == [
        f"--instance_data_dir {EXAMPLES / 'nowhere'}: no such folder",
        "--detector foreground looks for no texts: drop --queries and --nms",
    ]
    assert checkpoint_complaints("owlv2", ["dreamsim", "./no"]) == [
        "--embedder ./no: no such folder (nor a hub id, which is <owner>/<name>)"
    ]


@pytest.mark.parametrize(
    ("line", "earlier"),
    [
        ({"found_by": "foreground", "scores": {"net@1": {}}}, "foreground, net@1"),
        ({"found_by": "owl@1", "scores": {"colours": {}}}, "owl@1, colours"),
        ({"found_by": "owl@1", "problem": "cannot be read"}, "owl@1, colours"),
        ({"scores": {"colours": {}}}, "a detector unknown, colours"),
    ],
)
def test_lines_of_another_detector_or_embedder_are_told(judge, line, earlier):
    image = load_rgb(EXAMPLES / "pictures" / "good.jpg")
    [records] = judge([image])
    judge.check({"a.png": judge.line({"image": "a.png"}, records)}, "judge anew")
    told = f"^a.png was judged by {earlier} and not by foreground, colours: judge anew$"
    with pytest.raises(SetupError, match=told):
        judge.check({"a.png": line}, "judge anew")
