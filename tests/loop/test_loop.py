"""Whole loops on random models: what they leave, kills, how they end, what is refused at once."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import ROOT
from looping import (
    HELD_OUT,
    PROMPTS,
    bad_picture,
    run,
    run_until_killed,
    stages,
    write_loop,
)
from training import lora_of

from mudi.ground.errors import SetupError
from mudi.ground.files import TEMPORARY
from mudi.images import load_mask, load_rgb
from mudi.loop.stages import launcher
from mudi.metadata import load_subjects

torch.set_num_threads(1)


# Whole loops


@pytest.fixture(scope="module")
def finished(sdxl_backbone, tmp_path_factory) -> Path:
    """A loop of two rounds after the first, undisturbed."""
    path = write_loop(tmp_path_factory.mktemp("loop"), sdxl_backbone.base, rounds=2)
    run(path, stages())
    return path.parent / "out"


def test_every_round_leaves_its_lora_figures_sheets_and_picks(finished):
    for number in range(3):
        folder = finished / f"round_{number}"
        assert (folder / "lora/pytorch_lora_weights.safetensors").is_file()
        assert (folder / "held_out/sheet.png").is_file()
        assert json.loads((folder / "figures.json").read_text())["success"] == 1
        lines = [json.loads(text) for text in (folder / "held_out.jsonl").read_text().splitlines()]
        assert [line["named"] for line in lines] == [["a", "b"]] * 3 + [["a"]] * 3
        assert [line["seed"] for line in lines] == [3, 4, 5] * 2
        assert (folder / "data.png").is_file() == (number < 2)
    outcome = json.loads((finished / "outcome.json").read_text())
    assert outcome["ended"] == "all 2 rounds are done"
    assert Path(outcome["lora"]).is_dir()
    one, two = (lora_of(finished / f"round_{i}/lora") for i in (0, 1))
    assert any((one[key] != two[key]).any() for key in one)


def test_picks_become_scenes_beside_the_photos(finished):
    picks = [json.loads(t) for t in (finished / "round_1/picks.jsonl").read_text().splitlines()]
    assert len(picks) == 6 and {pick["seed"] for pick in picks} == {9, 10, 11}  # new ones a round
    counts = Counter(pick["prompt"] for pick in picks if pick["fate"] == "picked")
    assert set(counts) == set(PROMPTS) and max(counts.values()) <= 2
    found = load_subjects(finished / "round_1/data")
    assert found.warnings == () and found.shares == {"photos": 1, "made": 1}
    assert len(found.photos) == 6 and len(found.scenes) == counts.total()
    assert {photo.source for photo in found.photos} == {"photos"}
    for scene in found.scenes:
        assert scene.caption in PROMPTS and scene.source == "made"
        pixels = np.asarray(load_rgb(scene.image))
        for cut in scene.cuts:
            colour = {"a": (200, 40, 40), "b": (50, 70, 220)}[cut.subject]
            assert ((pixels == colour).all(axis=2) == load_mask(cut.mask)).all()
    arguments = json.loads((finished / "round_2/lora/run_arguments.json").read_text())
    assert arguments["instance_data_dir"] == str(finished / "round_1/data")


def test_the_page_shows_rounds_side_by_side(finished):
    page = (finished / "index.html").read_text()
    for wanted in (
        "round 0",
        "round 2",
        "held out: success",
        "minutes: train",
        "picked",
        *HELD_OUT,
    ):
        assert wanted in page
    for source in ("round_2/held_out/000_000.png", "round_1/data.png"):
        assert f'src="{source}"' in page and (finished / source).is_file()
    assert "Take the LoRA of round 0" in page  # the painted pictures are the same in all rounds


def test_a_finished_loop_does_nothing_and_a_longer_one_goes_on(sdxl_backbone, tmp_path):
    path = write_loop(tmp_path, sdxl_backbone.base)
    run(path, stages())
    (out,) = tmp_path.glob("out")
    there = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}

    def nothing(words):
        raise AssertionError(words)

    run(path, nothing)
    path.write_text(path.read_text().replace("rounds = 1", "rounds = 2"))
    launched = []
    run(path, lambda words: (launched.append(words), stages()(words)))
    assert {p: p.stat().st_mtime_ns for p in there} == there
    assert len(launched) == 3 + 3  # pictures, their judging and cutting; then the new round's
    path.write_text(path.read_text().replace("max_train_steps = 3", "max_train_steps = 2"))
    with pytest.raises(SystemExit, match=r"begun otherwise \(again was .*take another output_dir"):
        run(path, nothing)


def test_a_loop_killed_again_and_again_ends_as_an_undisturbed_one(
    sdxl_backbone, finished, tmp_path
):
    """By SIGKILL at writes to the disk, in each stage: the same LoRAs, picks and data, bit for bit.

    No picture is drawn or judged twice.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["looping", "inference", "mudi.loop.cut", "mudi.loop.judge"])
    path, made = write_loop(tmp_path, sdxl_backbone.base), tmp_path / "made.txt"
    out, stopped, rng = tmp_path / "out", set(), random.Random(1)
    for _ in range(80):
        after = rng.randrange(12, 60)
        process = context.Process(target=run_until_killed, args=(path, after, made))
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        rounds = sorted(out.glob("round_*"))
        done = [json.loads(p.read_text()) for p in out.glob("round_*/seconds.json")]
        stopped.add((len(rounds), sum(map(len, done))))
    assert process.exitcode == 0 and len(stopped) > 5
    calm = finished
    for number in (0, 1):
        one, two = (lora_of(folder / f"round_{number}/lora") for folder in (calm, out))
        assert all(torch.equal(one[key], two[key]) for key in one), number
    for name in ("picks.jsonl", "data/metadata.jsonl"):
        texts = [(folder / "round_0" / name).read_text() for folder in (calm, out)]
        assert texts[0] == texts[1], name
    pieces = Counter(made.read_text().splitlines())
    assert len(pieces) == 2 * (2 * 6 + 6)  # each drawn and judged
    assert set(pieces.values()) == {1}, [name for name, times in pieces.items() if times > 1]
    assert not list(out.rglob(f"{TEMPORARY}*"))


# How it ends early


def ends(path: Path, capsys, launch) -> str:
    run(path, launch)
    outcome = json.loads((path.parent / "out/outcome.json").read_text())
    assert outcome["ended"] in capsys.readouterr().out
    return outcome["ended"]


@pytest.mark.parametrize("backbone", ["flux", "klein"], indirect=True)  # all others run on SDXL
def test_a_round_without_a_pick_ends_with_what_was_wrong(backbone, tmp_path, capsys):
    name = backbone.script.__name__.removeprefix("train_segmix_lora_")
    path = write_loop(tmp_path, backbone.base, backbone=name)
    told = ends(path, capsys, stages(bad_picture))
    assert told.startswith("round 0: none of 6 pictures was picked: ") and "more prompts" in told
    assert not (tmp_path / "out/round_1").exists()
    assert "none of 6 pictures" in (tmp_path / "out/index.html").read_text()


def test_a_loop_without_a_pick_goes_on_with_other_rules_or_prompts(sdxl_backbone, tmp_path, capsys):
    """Nothing is trained again; the pictures of the earlier prompts are put aside."""
    path = write_loop(tmp_path, sdxl_backbone.base, pick="min_score = 1")
    assert "0 picked" not in ends(path, capsys, stages())
    path.write_text(path.read_text().replace("min_score = 1", "min_score = 0.5"))
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]} on a beach\n")
    launched: list[str] = []

    def noting(words):
        launched.append(Path(words[0]).stem if words[0] != "-m" else words[1])
        stages()(words)

    assert ends(path, capsys, noting) == "all 1 rounds are done"
    assert launched[:3] == ["inference", "mudi.loop.judge", "mudi.loop.cut"] and len(launched) == 6
    first = tmp_path / "out/round_0"
    assert {p.name for p in (first / "other_prompts_0").iterdir()} == {
        "pictures", "pictures.jsonl", "picks.jsonl",
    }  # fmt: skip
    captions = {scene.caption for scene in load_subjects(first / "data").scenes}
    assert captions == {f"{PROMPTS[0]} on a beach"}


def test_picks_of_one_subject_alone_end_it(sdxl_backbone, tmp_path, capsys):
    """Also where captions have a key of their own."""
    path = write_loop(tmp_path, sdxl_backbone.base)
    path.write_text(path.read_text().replace("[train]", '[train]\ncaption_column = "told"'))
    metadata = tmp_path / "data/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"text":', '"told":'))
    (tmp_path / "prompts.txt").write_text("a olis square, alone\n")
    told = ends(path, capsys, stages())
    assert "round 0: all picks show olis square alone" in told


def test_by_hand_it_waits_and_takes_what_was_kept(sdxl_backbone, tmp_path, capsys):
    pick = "min_score = 0.5\nper_prompt = 9\nby_hand = true"
    path = write_loop(tmp_path, sdxl_backbone.base, pick=pick)
    assert ends(path, capsys, stages()).startswith("it waits for you")
    kept = tmp_path / "out/round_0/pictures/kept.jsonl"
    kept.write_text('{"image": "000_001.png", "keep": false}\n')
    assert "none of 6 pictures was picked" in ends(path, capsys, stages())
    kept.write_text(
        '{"image": "000_001.png", "keep": true}\n{"image": "001_000.png", "keep": false}\n'
    )
    assert ends(path, capsys, stages()) == "all 1 rounds are done"
    [scene] = load_subjects(tmp_path / "out/round_0/data").scenes
    assert scene.image.name == "000_001.png"


# What is wrong, before the first hour


def test_bad_prompts_flags_and_photos_are_told_before_anything_runs(sdxl_backbone, tmp_path):
    path = write_loop(tmp_path, sdxl_backbone.base)
    (tmp_path / "prompts.txt").write_text(f"two squares\n{PROMPTS[0]}\n{PROMPTS[0]}\n")
    (tmp_path / "held_out.txt").write_text(f"\n{PROMPTS[0]}\n")
    text = path.read_text()
    for old, new in {
        "[train]": "[train]\nseed = 4\nmax_steps = 3",
        "[again]": "[again]\nlr_scheduler = 'up'\nrank = 'x'",
        "steps = 1\n": "steps = 0\ngama = 3\nenough = 0.5\nlayout = 'no.json'\n"
        "reward_guidance = ['a=1', 'b=2']\n",
        'detector = "foreground"': 'detector = "./no"',
        'segmenter = "foreground"': 'segmenter = "sam"',
    }.items():
        text = text.replace(old, new)
    path.write_text(text)

    def nothing(words):
        raise AssertionError(words)

    with pytest.raises(SystemExit) as caught:
        run(path, nothing)
    told = str(caught.value)
    for wanted in (
        '"two squares" names no subject; there are "olis square", "hta square"',
        f'prompts.txt: "{PROMPTS[0]}" stands twice; keep one',
        f'held_out.txt: "{PROMPTS[0]}" stands in {tmp_path / "prompts.txt"} too; keep one',
        "train.seed: the loop sets it; leave it out",
        "train.max_steps: no such flag",
        "again: argument --rank: invalid int value: 'x'",
        "pictures: --steps 0: must be 1 or more",
        "pictures.gama: no such flag",
        "pictures: --enough: does nothing without a --best_of of 2 or more",
        "pictures: --layout does nothing with gamma 0",
        "pictures: --layout no.json: ",
        "pictures: --reward_guidance: one number a subject needs places",
        "judge: --detector ./no: no such folder",
        "cut: SAM checkpoint",
    ):
        assert wanted in told, (wanted, told)
    (tmp_path / "prompts.txt").write_text("\n")
    (tmp_path / "held_out.txt").unlink()
    (tmp_path / "data/a0.jpg").unlink()
    with pytest.raises(SystemExit) as caught:
        run(path, nothing)
    for wanted in ("there is no prompt", "held_out.txt: cannot be read", 'no such photo: "a0.jpg"'):
        assert wanted in str(caught.value)
    assert not (tmp_path / "out").exists()


SLEEPER = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(int(sys.argv[2]))
sys.exit(3)
"""


def test_a_stage_ends_with_its_loop_and_its_failure_is_told(tmp_path):
    """Through the real launcher: exit code 3 is told; a SIGTERM to the loop ends the stage too."""
    script, pid = tmp_path / "stage.py", tmp_path / "pid"
    script.write_text(SLEEPER)
    with pytest.raises(
        SetupError, match=r"ended with code \d.*accelerate launch --num_processes 1"
    ):
        launcher("--num_processes 1")([str(script), str(pid), "0"])
    pid.unlink()
    code = (
        "import sys; from mudi.loop.stages import launcher; "
        "launcher('--num_processes 1')(sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, str(script), str(pid), "600"]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not (pid.is_file() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    left = int(pid.read_text())  # a zombie where the machine's first process reaps none
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
