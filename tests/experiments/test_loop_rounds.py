"""The loop beside best-of-8 and more steps: the sums, the background's judge, a tiny run."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import loop_rounds
from experiments.backgrounds import BackgroundJudge, colour_of
from experiments.stats import Interval, bootstrap, nested_bootstrap
from experiments.training import run_stage
from mini.backgrounds import random_name
from mini.tiny import save_tiny_dinov2, save_tiny_owlv2
from mini.world import arrange, random_things
from mudi.images import tight_box

torch.set_num_threads(1)


# Sums


def test_a_nested_bootstrap_of_equal_values_has_no_width_and_weighs_pairs_alike():
    assert nested_bootstrap([[[1, 1], [1]], [[1]]], resamples=50) == Interval(1, 1, 1)
    found = nested_bootstrap([[[1, 1, 1, 1]], [[0]]], resamples=500)
    assert found == Interval(0.5, 0, 1)  # two pairs, whatever the number of pictures
    with pytest.raises(ValueError, match="no values"):
        nested_bootstrap([[[1]], [[]]])


def test_trainings_that_differ_widen_what_pictures_alone_would_say():
    """Of two trainings one always succeeds, one never: 50 pictures each tell little more than 2."""
    apart = nested_bootstrap([[[1] * 50, [0] * 50]], resamples=500)
    alone = bootstrap([1] * 50 + [0] * 50)
    assert (apart.low, apart.high) == (0, 1) and alone.high - alone.low < 0.25


def row(arm: str, image: str, success: int, training: int = 0) -> dict:
    usual = {"pair": "foxes", "training": training, "kind": "together", "prompt": "p"}
    blank = dict.fromkeys(("solo_success", "solo_bleed", "solo_count"), "")
    return {**usual, **blank, "arm": arm, "image": image, "success": success, "background": 1}


def test_gains_are_paired_by_pair_training_and_picture():
    """Round 2 beats round 0 in one of two pictures; a picture that only one of them has is out."""
    rows = [row("round 0", "x", 0), row("round 0", "y", 1), row("round 0", "z", 1)]
    rows += [row("round 2", "x", 1), row("round 2", "y", 1)]
    found = loop_rounds.summarise(rows, "round 2")
    first, last = (r for r in found if r["measure"] == "success")
    assert (first["arm"], first["pictures"]) == ("round 0", 3)
    assert first["mean"] == pytest.approx(2 / 3, abs=1e-4)
    assert (first["loop_gain"], first["loop_gain_low"], first["loop_gain_high"]) == (0.5, 0, 1)
    assert last["mean"] == 1 and last["loop_gain"] == ""
    text = loop_rounds.markdown(found, ["foxes: 3 picks"], 1.26)
    assert "| round 0 | 3 | 67% [0%, 100%] | +50% [+0%, +100%] |" in text
    assert text.endswith("1.3 hours of one process.\n\n- foxes: 3 picks\n")


# The background


def test_the_judge_of_backgrounds_names_the_colours_of_fresh_scenes():
    see, rng = BackgroundJudge(), np.random.default_rng(5)
    right = []
    for _ in range(300):
        name = random_name(rng)
        pixels, masks = arrange(random_things(rng), name, rng)
        boxes = [tight_box(mask) for mask in masks]
        right.append(see(Image.fromarray(pixels), boxes) == colour_of(name))
    assert np.mean(right) > 0.85


def test_a_picture_full_of_subjects_is_judged_by_its_edge():
    image = Image.new("RGB", (64, 64), (60, 110, 205))
    assert BackgroundJudge()(image, [(0, 0, 64, 64)]) == "blue"


# A run


def test_a_tiny_comparison_is_drawn_up_and_goes_on(sdxl_backbone, tmp_path, monkeypatch, capsys):
    """On random models nothing can be picked: the loop ends in round 0, which counts on."""
    save_tiny_owlv2(tmp_path / "detector")
    for name, seed in (("one", 0), ("two", 1)):
        save_tiny_dinov2(tmp_path / name, seed)
    launched: list[list[str]] = []

    class InProcess:
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, words):
            assert function is run_stage
            launched.append(list(words))
            run_stage(words)
            return self

        def result(self):
            return None

    monkeypatch.setattr(loop_rounds, "training_process", InProcess)
    words = [
        *("--output", str(tmp_path / "out"), "--pairs", "two_foxes", "--trainings", "0"),
        *("--rounds", "1", "--num_images", "1", "--best_of", "2"),
        *("--base", str(sdxl_backbone.base), "--detector", str(tmp_path / "detector")),
        *("--embedder", str(tmp_path / "one"), str(tmp_path / "two")),
        "--train_flags=--resolution 64 --max_train_steps 1 --train_batch_size 1 --rank 2",
        "--again_flags=--max_train_steps 1",
        "--picture_flags=--steps 1 --gamma 0.4 --resolution 64",
        "--metric_flags=--threshold 0.01",
    ]
    loop_rounds.main(loop_rounds.parse_args(words))
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    arms = ["round 0", "round 1", "best of 2", "more 1"]
    assert list(dict.fromkeys(r["arm"] for r in rows)) == arms
    kinds = [[r["kind"] for r in rows if r["arm"] == arm] for arm in arms]
    assert kinds == [["together"] * 3 + ["alone"] * 4 + ["contact"] * 2] * 4
    assert {r["embedder"] for r in rows} == {"two"}
    out = capsys.readouterr().out
    assert "two_foxes, training 0, round_0: 0 picks" in out and "## contact: background" in out
    assert json.loads((tmp_path / "out/hours.json").read_text())
    best = tmp_path / "out/two_foxes/training_0/best_of/held_out/pictures.jsonl"
    assert '"best_of"' in best.read_text()
    count = len(launched)
    loop_rounds.main(loop_rounds.parse_args(words))
    assert len(launched) == count  # all was done
