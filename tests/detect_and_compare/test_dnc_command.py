"""`python -m detect_and_compare` and demo.ipynb, on the committed examples and on tiny models."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from helpers import ROOT
from nbclient import NotebookClient
from PIL import Image

from detect_and_compare import (
    load_detector,
    load_embedder,
    load_references,
    score_images,
)
from detect_and_compare.__main__ import main, parse_args
from detect_and_compare.measure import Record
from detect_and_compare.pictures import without_results
from detect_and_compare.results import Summary, summarise, to_line
from detect_and_compare.score import Verdict, reference_matrix
from mini.tiny import save_tiny_clip, save_tiny_dinov2, save_tiny_owlv2
from mudi.ground.work import CHECKSUM
from mudi.images import Box
from mudi.masks.segment import Detection

torch.set_num_threads(1)
EXAMPLES = ROOT / "detect_and_compare" / "examples"
REFERENCES = EXAMPLES / "references"
VERDICTS = {
    "doubled.jpg": "mixed",
    "good.jpg": "good",
    "missing.jpg": "missing",
    "mixed.jpg": "mixed",
    "too_many.jpg": "extra",
}
PLAIN = ["--detector", "foreground", "--embedder", "colours", "--crop_references"]


def run(output, *words, images=EXAMPLES / "pictures", references=REFERENCES, models=PLAIN):
    argv = ["--images", str(images), "--references", str(references), "--output", str(output)]
    main(parse_args([*argv, *models, *words]))
    return read_lines(output)


def read_lines(output):
    text = (output / "scores.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line.pop(CHECKSUM) for line in lines)
    return {line["image"]: line for line in lines}


@pytest.fixture
def pictures(tmp_path):
    """A copy of the example pictures that a test may change."""
    return shutil.copytree(EXAMPLES / "pictures", tmp_path / "pictures")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The output of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("straight")
    run(output)
    return output


def test_the_examples_are_what_their_names_say(straight):
    lines = read_lines(straight)
    assert {name: line["scores"]["colours"]["verdict"] for name, line in lines.items()} == VERDICTS
    scores = {name: line["scores"]["colours"]["score"] for name, line in lines.items()}
    assert scores["good.jpg"] > 0.9 > 0.8 > scores["doubled.jpg"]
    assert scores["missing.jpg"] == scores["too_many.jpg"] == 0.0
    [row] = csv.DictReader((straight / "summary.csv").open())
    assert row["mean"] == str(round(np.mean(list(scores.values())), 6))
    counts = ("pictures", "success_rate", "missing", "extra", "mixed", "unreadable")
    assert [float(row[key]) for key in counts] == [5, 0.2, 1, 1, 2, 0]


def test_the_library_says_what_the_command_says(straight):
    references = load_references(REFERENCES, crop=True)
    paths = sorted((EXAMPLES / "pictures").iterdir())
    records = score_images(
        [Image.open(paths[0]), *paths[1:], ROOT / "nowhere.png"],
        references.images,
        load_detector("foreground", []),
        load_embedder("colours"),
        batch_size=2,
    )
    lines = list(read_lines(straight).values())
    for record, line in zip(records[:-1], lines, strict=True):
        told = line["scores"]["colours"]
        assert [list(box) for box in record.boxes] == line["boxes"]
        assert round(record.score, 6) == told["score"]
        assert record.verdict == told["verdict"]
        assert (record.matrix is None) == (told["matrix"] is None) == (len(record.boxes) != 2)
    assert records[-1].verdict == "unreadable"
    assert "No such file" in records[-1].problem
    assert records[-1] == Record(problem=records[-1].problem)


def test_identical_pictures_score_1_up_to_the_spread_of_the_references():
    """One reference each, and the picture shows just these: S_DC equals S_GT."""
    images = {"a": [Image.new("RGB", (30, 30), "red")], "b": [Image.new("RGB", (30, 30), "blue")]}
    picture = Image.new("RGB", (100, 50), "white")
    picture.paste("red", (10, 10, 40, 40))
    picture.paste("blue", (60, 10, 90, 40))
    embedder = load_embedder("colours")
    [record] = score_images([picture], images, load_detector("foreground", []), embedder)
    assert record.score == pytest.approx(1)
    assert record.verdict == "good"
    expected = reference_matrix([embedder(pictures) for pictures in images.values()])
    assert np.allclose(record.matrix, expected)


def test_a_stopped_run_goes_on_to_the_same_result(straight, tmp_path):
    output = shutil.copytree(straight, tmp_path / "stopped")
    lines = (straight / "scores.jsonl").read_text().splitlines(keepends=True)
    (output / "scores.jsonl").write_text(lines[0])
    (output / "scores.jsonl.part0").write_text(lines[3])
    (output / "scores.jsonl.part1").write_text(lines[1] + lines[4][:99])  # killed while writing
    (output / "report.html").unlink()
    run(output)
    for name in ("scores.jsonl", "summary.csv", "report.html"):
        assert (output / name).read_bytes() == (straight / name).read_bytes()
    assert not list(output.glob("*.part*"))


def test_pictures_that_changed_are_scored_anew_and_the_unreadable_are_a_line(pictures, tmp_path):
    before = run(tmp_path / "out", images=pictures)
    Image.open(pictures / "good.jpg").save(pictures / "missing.jpg")
    (pictures / "mixed.jpg").write_bytes(b"no picture")
    (pictures / "doubled.jpg").unlink()
    after = run(tmp_path / "out", images=pictures)
    assert after["missing.jpg"]["scores"]["colours"]["verdict"] == "good"
    assert after["good.jpg"] == before["good.jpg"]
    assert "cannot be read" in after["mixed.jpg"]["problem"] and "scores" not in after["mixed.jpg"]
    [row] = csv.DictReader((tmp_path / "out" / "summary.csv").open())
    assert [row[key] for key in ("pictures", "unreadable")] == ["3", "1"]  # doubled.jpg is gone
    assert "no image format that Pillow knows" in (tmp_path / "out" / "report.html").read_text()


def test_batches_of_nothing_but_unreadable_pictures_are_a_line_each(pictures, straight, tmp_path):
    for name in ("a.jpg", "h.jpg"):
        (pictures / name).touch()
    lines = run(tmp_path / "mixed", "--batch_size", "1", images=pictures)
    scored = {name: line["scores"] for name, line in lines.items() if "scores" in line}
    assert scored == {name: line["scores"] for name, line in read_lines(straight).items()}

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").touch()
    lines = run(tmp_path / "none", images=tmp_path / "empty")
    assert "zero bytes" in lines["a.jpg"]["problem"]
    [row] = csv.DictReader((tmp_path / "none" / "summary.csv").open())
    assert [row[key] for key in ("pictures", "mean", "unreadable")] == ["0", "", "1"]


def test_in_a_folder_with_a_list_only_listed_pictures_are_scored(pictures, tmp_path):
    """As in inference.py's output folder, where sheet.png is no picture of the subjects."""
    Image.open(pictures / "good.jpg").save(pictures / "sheet.png")
    (pictures / "pictures.jsonl").write_text('{"image": "good.jpg", "seed": 3}\n')
    lines = run(tmp_path / "out", images=pictures)
    assert list(lines) == ["good.jpg"] and lines["good.jpg"]["seed"] == 3


def test_a_jsonl_says_more_about_each_picture(pictures, tmp_path):
    listed = tmp_path / "pictures.jsonl"
    methods = {"good": "ours", "mixed": "base", "missing": "base"}
    objects = [
        {"image": f"pictures/{name}.jpg", "prompt": f"a {name}", "method": method, "id": number}
        for number, (name, method) in enumerate(methods.items())
    ]
    listed.write_text("\n".join(map(json.dumps, objects)))
    lines = run(tmp_path / "out", "--group_by", "method", "--report_limit", "2", images=listed)
    assert list(lines) == [f"pictures/{name}.jpg" for name in methods]
    assert lines["pictures/good.jpg"]["prompt"] == "a good"
    assert [line["id"] for line in lines.values()] == [0, 1, 2]  # any other keys, of any kind
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert [(row["method"], row["pictures"]) for row in rows] == [("ours", "1"), ("base", "2")]
    html = (tmp_path / "out" / "report.html").read_text()
    assert "The 2 lowest of 3 by colours" in html and "a missing" in html and "a good" not in html

    listed.write_text(listed.read_text().replace("ours", "theirs"))
    assert run(tmp_path / "out", images=listed)["pictures/good.jpg"]["method"] == "theirs"


def test_every_complaint_comes_at_once_before_anything_is_loaded(tmp_path):
    listed = tmp_path / "pictures.jsonl"
    listed.write_text('{"picture": 1}\n{"image": "a.png", "size": 3}\n{"image": "b.png"}\n')
    words = ["--queries", "x=dog", "--threshold", "2", "--group_by", "method", "--batch_size", "0"]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "out", *words, "--text_fidelity", "clip", images=listed)
    told = str(stopped.value)
    for complaint in (
        "--queries x: the subjects are a, b",
        f'{listed}: object 1 has no "image"',
        '"size" is a key of the scores',
        "--threshold 2.0: must be between 0 and 1",
        "--batch_size 0: must be 1 or more",
        '--group_by method: "b.png" has no such key',
        '--text_fidelity: no picture has a "prompt"',
    ):
        assert complaint in told
    assert not (tmp_path / "out").exists()


def test_missing_places_and_weights_are_told_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match="--images /nowhere: no such folder or file"):
        run(tmp_path / "out", images="/nowhere")
    with pytest.raises(SystemExit, match="--references /nowhere: no such folder"):
        run(tmp_path / "out", references="/nowhere")
    with pytest.raises(SystemExit, match=r"^/no/model: cannot be loaded"):
        run(tmp_path / "out", models=["--detector", "foreground", "--embedder", "/no/model"])
    with pytest.raises(SystemExit, match=r"^detector /no/model: cannot be loaded"):
        run(tmp_path / "out", models=["--detector", "/no/model", "--embedder", "colours"])


def test_places_that_cannot_be_used_are_told_before_anything_is_loaded(straight, tmp_path):
    with pytest.raises(SystemExit, match="--output /dev/null/x: /dev/null is a file"):
        run(Path("/dev/null/x"), models=["--detector", "/no/model"])
    output = shutil.copytree(straight, tmp_path / "out")
    for text in ("{broken", "null", "[1]"):
        (output / "run.json").write_text(text)
        with pytest.raises(SystemExit, match=r"\n\S+run.json: cannot be read .*--overwrite"):
            run(output)


def test_a_prompt_that_is_null_is_none(pictures, tmp_path):
    listed = pictures / "null.jsonl"
    listed.write_text('{"image": "good.jpg", "prompt": null}\n')
    with pytest.raises(SystemExit, match='no picture has a "prompt"'):
        run(tmp_path / "out", "--text_fidelity", "/no/clip", images=listed)


def test_other_weights_under_an_old_name_need_another_output(straight, tmp_path):
    output = shutil.copytree(straight, tmp_path / "out")
    noted = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**noted, "measures": ["colours@old", None]}))
    with pytest.raises(SystemExit, match=r"^\S+run.json: scored otherwise \(measures was "):
        run(output)


def test_a_detector_that_was_trained_on_is_another(tmp_path):
    def scored():
        folder = save_tiny_owlv2(tmp_path / "owl", seed=next(seeds))
        run(tmp_path / "out", models=["--detector", str(folder), "--embedder", "colours"])

    seeds = iter((0, 0, 1))
    scored()
    scored()
    with pytest.raises(SystemExit, match=r"run.json: scored otherwise \(measures was .*owl@"):
        scored()


def test_the_help_shows_commands_that_can_be_pasted(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    assert "--images output/pictures \\\n        --references" in capsys.readouterr().out


def test_other_settings_need_another_output_or_overwrite(straight, tmp_path):
    output = shutil.copytree(straight, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"scored otherwise \(matching was 'greedy' and is"):
        run(output, "--matching", "optimal")
    run(output, "--norm", "fro", "--count_aware", "--overwrite")
    score = read_lines(output)["missing.jpg"]["scores"]["colours"]["score"]
    assert 0 < score <= 0.5  # half of the subjects


def test_two_processes_write_what_one_writes(straight, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes=2", "--main_process_port=0", "-m", "detect_and_compare"]
    places = ["--images", EXAMPLES / "pictures", "--references", REFERENCES, "--output", tmp_path]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in (*launch, *places, *PLAIN, "--batch_size", 2)]
    run = subprocess.run(words, cwd=ROOT, env=environment, check=True, stderr=subprocess.PIPE)
    assert b"| 3/3" in run.stderr  # the first one's share of five
    for name in ("scores.jsonl", "summary.csv", "report.html"):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()


def test_owlv2_two_networks_and_clip_t_in_one_run(pictures, tmp_path, capsys):
    """Random weights: what counts is that each has its own part of every line."""
    owlv2 = save_tiny_owlv2(tmp_path / "owlv2", grid=2)
    dinov2, clip = save_tiny_dinov2(tmp_path / "dinov2"), save_tiny_clip(tmp_path / "clip")
    listed = tmp_path / "pictures.jsonl"
    listed.write_text(
        '{"image": "pictures/good.jpg", "prompt": "a robot"}\n'
        '{"image": "pictures/mixed.jpg", "prompt": null}\n'
    )
    models = ["--detector", owlv2, "--threshold", 0, "--embedder", dinov2, clip, "--nms", "0.5"]
    models += ["--text_fidelity", clip, "--queries", "b=bear"]
    lines = run(tmp_path / "out", images=listed, models=[str(word) for word in models])
    assert 'a: looking for "robot"\nb: looking for "bear"' in capsys.readouterr().out
    good, mixed = lines.values()
    # Boxes of half the padded square's 384 px round (192, 192) and (384, 192), cut to 384 x 256
    expected = [[96, 96, 288, 256], [288, 96, 384, 256]]
    assert np.allclose(sorted(good["boxes"]), expected, atol=1)
    assert [name.split("@")[0] for name in good["scores"]] == [str(dinov2), str(clip)]
    for scores in good["scores"].values():
        assert np.shape(scores["matrix"]) == (2, 2) and scores["score"] <= 1
    assert -1 <= good["text_fidelity"] <= 1 and "text_fidelity" not in mixed
    assert len(list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))) == 3


@pytest.mark.parametrize(("statuses", "num_boxes", "verdict"), [
    (["present", "present"], 2, "good"),
    (["present", "mixed"], 2, "mixed"),
    (["missing", "present"], 1, "missing"),
    (["present", "present"], 3, "extra"),
    (["missing", "mixed"], 1, "missing + mixed"),
])  # fmt: skip
def test_a_picture_is_good_with_every_subject_present_and_no_other_box(
    statuses, num_boxes, verdict
):
    boxes = [Detection(Box(0, 0, 9, 9), 1.0, 0)] * num_boxes
    subjects = {name: Verdict(status) for name, status in zip("ab", statuses, strict=True)}
    assert Record(detections=boxes, verdicts=subjects).verdict == verdict


def line_of(verdict, score, group="x"):
    return {"group": group, "scores": {"net": {"verdict": verdict, "score": score}}}


def test_summary_numbers():
    """1, 0.5 and 0: mean 0.5, standard deviation 0.5, standard error 0.5 / sqrt(3)."""
    lines = [line_of("good", 1.0), line_of("mixed", 0.5), line_of("missing + mixed", 0.0)]
    lines += [
        {"group": "x", "problem": "broken"},
        {**line_of("extra", 0.0, "y"), "text_fidelity": 0.25},
    ]
    x, y, *_ = summarise(lines, ["net"], "clip", group_by="group")
    assert x == Summary("x", "net", 3, 0.5, 0.288675, 0.333333, 1, 0, 2, 1)
    assert y == Summary("y", "net", 1, 0.0, None, 0.0, 0, 1, 0, 0)
    assert summarise(lines, ["net"], "clip")[1] == Summary("", "clip", 1, 0.25, None)
    assert x.told() == (
        "x: net: 0.500 ± 0.289 over 3 pictures; "
        "success 33%, 1 missing, 0 extra, 2 mixed, 1 unreadable"
    )


def test_a_groups_escape_sequences_do_not_reach_the_terminal():
    [row] = summarise([line_of("good", 1.0, "\x1b[2Jred\u202e größe\n")], ["net"], None, "group")
    assert row.group == "\x1b[2Jred\u202e größe\n"
    assert row.told().startswith(r"\x1b[2Jred\u202e größe\n: net: 1.000 over 1 pictures")


def test_the_notebook_runs_and_is_kept_without_outputs():
    path = ROOT / "detect_and_compare" / "demo.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= 12
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any("def " in cell.source or "class " in cell.source for cell in code)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, resources=place).execute()
    printed = "".join(
        output.text
        for cell in code
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    assert "good: D&C 0.95" in printed and "hta teddy bear: missing" in printed
    assert sum("image/png" in output.get("data", {}) for c in code for output in c.outputs) == 2


def test_all_that_scoring_adds_to_a_line_is_known_as_a_result():
    """Else a stopped run takes every finished picture for another one, and scores it anew."""
    stamp = {"image": "a.png", "prompt": "two foxes"}
    seen = to_line(stamp, {"net": Record(1.0, size=(8, 8))}, text_fidelity=0.5)
    unreadable = to_line(stamp, {"net": Record(problem="cut off")})
    assert without_results(seen) == without_results(unreadable) == stamp
