"""The miniature's gates: what is asked of a picture, and the command on a base and a reader."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetForImageClassification

from mini.art import Thing, named_paint
from mini.cast import CAST, CAST_OF, NAMES
from mini.training import gates, reader
from mini.training.reader import NO_ANSWER, QUESTIONS, answers_of, reading_loss, right_share
from mudi.images import Box
from mudi.masks.segment import Detection
from tests.training import reset_accelerate

torch.set_num_threads(1)

WEIGHTS = gates.WEIGHTS
RNG = np.random.default_rng(0)
FOX = Thing("fox", named_paint("red", RNG))
CAT = Thing("cat", named_paint("blue", RNG))


def logits_of(*rows: tuple[str, str, str]) -> dict[str, torch.Tensor]:
    """Return logits that tell these classes, colours and names."""
    logits = {key: torch.zeros(len(rows), len(words)) for key, words in QUESTIONS.items()}
    for i, row in enumerate(rows):
        for key, word in zip(QUESTIONS, row, strict=True):
            logits[key][i, QUESTIONS[key].index(word)] = 9.0
    return logits


def boxes(*scores: float) -> list[Detection]:
    return [Detection(Box(0, 0, 9, 9), score, 0) for score in scores]


def test_what_is_asked_of_a_picture():
    name = next(iter(CAST))
    task = gates.Task("two", 0, (FOX, CAT), "green")
    assert task.prompt == "A photo of a red fox and a blue cat on a green background."

    swapped = logits_of(("cat", "blue", name), ("fox", "red", name))
    assert gates.right(task, swapped, boxes(0.5, 0.9)) == {
        "both classes": True, "colours": True, "count": True
    }  # fmt: skip
    mixed = logits_of(("cat", "red", name), ("fox", "blue", name), ("owl", "red", name))
    assert gates.right(task, mixed, boxes(0.5, 0.9, 0.4)) == {
        "both classes": True, "colours": False, "count": False
    }  # fmt: skip
    alone = gates.right(task, logits_of(("fox", "red", name)), boxes(0.9))
    assert alone == {"both classes": False, "colours": False, "count": False}

    one = gates.Task("one", 0, (FOX,), "green")  # the surer box counts
    read = logits_of(("cat", "blue", name), ("fox", "blue", name))
    assert gates.right(one, read, boxes(0.4, 0.8)) == {"class": True, "colour": False}


def test_a_character_is_told_among_those_of_its_class():
    owl, other = CAST_OF["owl"][:2]
    stranger = NAMES[CAST_OF["fox"][0]]
    logits = logits_of(("owl", "red", stranger))
    logits["name"][0, QUESTIONS["name"].index(NAMES[owl])] = 5.0
    found = boxes(0.9)
    assert gates.right(gates.Task("cast", 0, (owl,), "blue"), logits, found) == {"name": True}
    assert gates.right(gates.Task("cast", 0, (other,), "blue"), logits, found) == {"name": False}


def test_answers_and_their_loss():
    two_colours = Thing(
        "fox", named_paint("red", RNG), second_paint=named_paint("blue", RNG), bands=2
    )
    assert answers_of(two_colours)["colour"] == answers_of(two_colours)["name"] == NO_ANSWER
    assert answers_of(FOX)["colour"] == QUESTIONS["colour"].index("red")
    assert answers_of(CAST_OF["owl"][3])["name"] == QUESTIONS["name"].index(
        NAMES[CAST_OF["owl"][3]]
    )

    logits = {key: torch.zeros(2, len(words)) for key, words in QUESTIONS.items()}
    answers = {"class": [1, 2], "colour": [3, NO_ANSWER], "name": [NO_ANSWER, NO_ANSWER]}
    tensors = {key: torch.tensor(row) for key, row in answers.items()}
    expected = sum(np.log(len(QUESTIONS[key])) for key in ("class", "colour"))  # nothing is known
    assert reading_loss(logits, tensors).item() == pytest.approx(expected)
    logits["colour"][0, 3] = 1.0
    assert right_share(logits["colour"], tensors["colour"]) == 1.0


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "NUM_CHECKED", 20)
        patch.setattr(reader, "WIDTHS", (8, 8, 8))
        words = "--num_workers 0 --mixed_precision no --batch_size 2"
        folders = [f"--output={tmp_path / 'reader'}", f"--state_dir={tmp_path / 'state'}"]
        reset_accelerate()
        reader.main(reader.parse_args([*words.split(), *folders, "--max_steps=2"]))
    model = ResNetForImageClassification.from_pretrained(tmp_path / "reader")
    assert model.config.num_labels == sum(map(len, QUESTIONS.values()))

    flags = [f"--base={WEIGHTS / 'sdxl'}", f"--reader={tmp_path / 'reader'}"]
    flags += [f"--output={tmp_path / 'gates'}", "--count=2", "--steps=1"]
    gates.main(gates.parse_args(flags))
    rows = json.loads((tmp_path / "gates/gates.json").read_text())["rows"]
    assert {(row["kind"], row["asked"]): row["gate"] for row in rows} == gates.GATES
    printed = capsys.readouterr().out
    assert "| two | colours | 0.75 |" in printed

    pictures = sorted((tmp_path / "gates").glob("*-*.png"))
    made = [path.stat().st_mtime_ns for path in pictures]
    pictures[0].unlink()
    gates.main(gates.parse_args(flags))  # goes on: one picture is drawn, all others stay
    assert [path.stat().st_mtime_ns for path in pictures][1:] == made[1:]
    assert printed.endswith(capsys.readouterr().out)
    with pytest.raises(SystemExit, match="holds pictures of"):
        gates.main(gates.parse_args([*flags, "--guidance_scale=3"]))
    with pytest.raises(SystemExit, match=r"--reader nowhere: no model there \(no config.json\)"):
        gates.main(gates.parse_args([*flags, "--reader=nowhere"]))
