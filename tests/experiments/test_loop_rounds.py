"""The loop beside best-of-8 and more steps: the sums, the background's judge, a tiny run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import ROOT
from PIL import Image

from experiments import loop_report, loop_rounds
from experiments.backgrounds import BackgroundJudge, colour_of
from experiments.plan import DataSet
from experiments.results import MEASURES
from experiments.rows import Row, read_rows
from experiments.stats import Interval, bootstrap, nested_bootstrap
from experiments.training import run_stage
from mini.backgrounds import random_name
from mini.subjects import subjects_of, write_pair
from mini.tiny import save_tiny_dinov2, save_tiny_owlv2
from mini.world import arrange, random_things
from mudi.ground.errors import SetupError
from mudi.images import tight_box
from mudi.loop.rounds import scores_of
from mudi.loop.stages import judge_words
from mudi.metadata import read_records

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


def row(arm: str, image: str, good: bool, seed: int = 0) -> Row:
    return Row(
        image=f"foxes/training_0/{arm}/{image}.png",
        data_set="foxes",
        kind="same class",
        variant=arm,
        training=0,
        alone="",
        prompt="p",
        seed=seed,
        embedder="net",
        boxes=2,
        score=0.5,
        verdict="good" if good else "mixed",
        failures=(),
        cosines=(0.9, 0.9),
        background=True,
        size_ratio=None,
    )


def test_leads_are_paired_by_picture_whatever_its_seed():
    """Round 2 beats round 0 in one of two pictures; a picture that only one of them has is out.

    A kept candidate has a seed of its own.
    """
    rows = [row("round 0", "x", False), row("round 0", "y", True), row("round 0", "z", True)]
    rows += [row("round 2", "x", True, seed=7), row("round 2", "y", True)]
    rows += [row("round 2, in contact", "x", False), row("composed of photos", "x", True)]
    found = loop_report.summarise(rows, "round 2")
    first, last, composed, contact = found
    assert [(one.kind, one.arm, one.pictures) for one in found] == [
        ("together", "round 0", 3), ("together", "round 2", 2),
        ("together", "composed of photos", 1), ("contact", "round 2", 1),
    ]  # fmt: skip
    assert first.found["success"].mean == pytest.approx(2 / 3)
    assert first.behind["success"] == Interval(0.5, 0, 1) and first.behind["score"] == (0, 0, 0)
    assert last.found["success"] == (1, 1, 1) and not (last.behind or composed.behind)
    assert contact.found["success"].mean == 0
    columns = loop_report.flat(first)
    assert columns["loop_ahead_success_high"] == 1 and columns["solo_bleed"] is None
    text = loop_report.markdown(found, "round 2", ["foxes: 3 picks"], 1.26)
    assert "| round 2 ahead: success |" in text
    assert "| round 0 | 3 | 100% [100%, 100%] | 0.500 [0.500, 0.500] | 67% [0%, 100%] | " in text
    assert "| +0.000 [+0.000, +0.000] | +50% [+0%, +100%] |" in text
    assert text.endswith("stopped stages not counted.\n\n- foxes: 3 picks\n")


@pytest.mark.parametrize(
    "nearest, verdict, bleed",
    [
        ("a", "good", 0),
        ("b", "mixed", 1),
        ("ab", "extra", 1),
        ("aa", "extra", 0),
        ("", "missing", None),
    ],
)
def test_what_a_picture_of_one_alone_comes_to(tmp_path, nearest, verdict, bleed):
    data_set = DataSet("foxes", tmp_path, {"a": "olis fox", "b": "hta fox"})
    net = "nets/net@12 mean"
    line = {
        "image": "x.png", "variant": "round 0", "training": 1, "prompt": "p", "seed": 0,
        "named": ["a"], "boxes": [[0, 0, 1, 1]] * len(nearest),
        "scores": {"other@1": {}, net: {}}, "nearest": {net: list(nearest)},
    }  # fmt: skip
    made = loop_report.row_of(line, data_set, True)
    assert (made.verdict, made.embedder, made.alone) == (verdict, "net", "a")
    assert MEASURES["solo_bleed"](made) == bleed
    assert MEASURES["solo_count"](made) == (len(nearest) != 1)
    assert MEASURES["solo_success"](made) == (verdict == "good")


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


# What is compared


def unit_in(folder: Path) -> loop_report.Unit:
    return loop_report.Unit("two_owls", 3, folder / "two_owls/training_3")


def test_a_round_that_never_came_counts_as_the_last_one_once_the_loop_has_ended(tmp_path):
    args = loop_rounds.parse_args(["--output", str(tmp_path), "--best_of", "4"])
    unit = unit_in(tmp_path)
    running = loop_rounds.arms_of(unit, args)
    assert [running[f"round {i}"].folder.name for i in range(3)] == [
        "round_0",
        "round_1",
        "round_2",
    ]
    assert running["best of 4"].folder == unit.folder / "best_of_4"  # of another number: elsewhere
    assert running["best of 4"].lora == unit.loop / "round_0/lora"
    unit.loop.mkdir(parents=True)
    (unit.loop / "outcome.json").write_text("{}")
    ended = loop_rounds.arms_of(unit, args)
    assert {ended[f"round {i}"].folder.name for i in range(3)} == {"round_0"}


def test_a_unit_at_work_is_left_out_and_named(tmp_path, capsys):
    args = loop_rounds.parse_args(["--output", str(tmp_path)])
    unit = unit_in(tmp_path)
    loop_report.report(tmp_path, {unit: loop_rounds.arms_of(unit, args)}, "round 2")
    out = capsys.readouterr().out
    assert "two_owls, training 3: left out, no round 0, round 1, round 2, best of 8, more 1" in out
    assert "nothing is judged yet" in out and not (tmp_path / "tables.md").exists()


def test_flags_in_one_text_become_a_table():
    found = loop_rounds._table("--a 1 --b=x --crop --many 1 2")
    assert found == {"a": "1", "b": "x", "crop": True, "many": ["1", "2"]}
    with pytest.raises(SetupError, match="stray --a: stray is no flag"):
        loop_rounds._table("stray --a")


def test_composed_contact_scenes_touch_and_are_right_to_the_metric(tmp_path):
    """Of a pilot pair, by the miniature's own detector and embedder."""
    args = loop_rounds.parse_args(["--output", str(tmp_path), "--num_images", "3"])
    unit = unit_in(tmp_path)
    write_pair(unit.data, subjects_of("penguin_and_frog"), np.random.default_rng(0))
    settings = loop_rounds.settings_of(unit, args)
    contact = loop_report.touching(loop_rounds.arms_of(unit, args)[loop_report.COMPOSED])
    layout = settings.pictures | {"layout": unit.folder / "layout.json"}
    asked = replace(settings, held_out=unit.folder / "contact.txt", pictures=layout)
    contact.folder.mkdir(parents=True)
    loop_rounds.compose(asked, contact)
    run_stage(judge_words(asked, contact, held_out=True))
    lines = read_records(contact.held_out_scores)
    assert [line["prompt"].split()[-2] for line in lines] == ["purple"] * 3 + ["turquoise"] * 3
    assert {line["seed"] for line in lines} == {3000, 3001, 3002}
    assert sum(scores_of(line)["verdict"] == "good" for line in lines) >= 5
    see = BackgroundJudge()
    for line in lines:
        image = Image.open(contact.held_out / line["image"])
        assert see(image, line["boxes"]) == line["prompt"].split()[-2]


STARTER = """
import os, sys, time
from pathlib import Path
import torch
from experiments.training import training_process
if __name__ == "__main__":
    with training_process(torch.device("cpu"), Path(sys.argv[1])) as process:
        print(process.submit(os.getpid).result(), flush=True)
        process.submit(time.sleep, 600).result()
"""


def test_a_training_s_process_ends_with_the_one_that_asked_for_it(tmp_path):
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    words = [sys.executable, str(script), str(tmp_path / "log")]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=path) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(30)  # or psutil.TimeoutExpired


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
    rows = read_rows(tmp_path / "out/results.csv")
    arms = ["round 0", "round 1", "best of 2", "more 1", loop_report.COMPOSED]
    kinds = [[loop_report.kind_of(r) for r in rows if r.variant.startswith(arm)] for arm in arms]
    assert kinds == [["together"] * 3 + ["alone"] * 4 + ["contact"] * 2] * 5
    assert {r.embedder for r in rows} == {"two"}
    assert all((tmp_path / "out" / r.image).is_file() for r in rows)
    out = capsys.readouterr().out
    assert "two_foxes, training 0, round_0: 0 picks" in out and "## contact" in out
    assert json.loads((tmp_path / "out/hours.json").read_text())
    best = tmp_path / "out/two_foxes/training_0/best_of_2/held_out/pictures.jsonl"
    assert '"best_of"' in best.read_text()
    count = len(launched)
    loop_rounds.main(loop_rounds.parse_args(words))
    assert len(launched) == count  # all was done
