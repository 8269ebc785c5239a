"""The loop: settings, picks, figures, whole runs on random models, kills, and how it ends."""

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
    good_picture,
    run,
    run_until_killed,
    stages,
    write_loop,
)
from PIL import Image
from training import lora_of

from mudi.backbones.table import BACKBONES
from mudi.ground.errors import SetupError
from mudi.ground.files import TEMPORARY
from mudi.images import Box, load_mask, load_rgb
from mudi.loop.cut import cut_subjects
from mudi.loop.picking import Candidate, choose, only_subject, thumbnail, why_none
from mudi.loop.rounds import best_round, ended, figures_of
from mudi.loop.settings import Pick, Stop, read_settings
from mudi.loop.stages import flag_words, launcher, picture_flags, round_of, train_words
from mudi.masks.segment import foreground_segmenter
from mudi.metadata import load_subjects

torch.set_num_threads(1)


# Settings


def problems_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "loop.toml"
    path.write_text(text)
    with pytest.raises(SetupError) as caught:
        read_settings(path)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_all_that_is_wrong_with_keys_and_values_is_told_at_once(tmp_path):
    text = 'prompts = 3\nrounds = 0\nreal_share = 1\nrun = 1\nstop = 2\n[pick]\nmin_score = "a"\n'
    told = problems_of(tmp_path, text)
    for wanted in (
        "prompts = 3: must be a path",
        "rounds 0: must be 1 or more",
        "real_share 1: must be above 0 and below 1",
        '"run" is no key; there are output_dir',
        "stop must be a table: [stop]",
        "pick.min_score = 'a': must be a number",
        'no "output_dir"',
        'no "held_out"',
    ):
        assert any(line.startswith(wanted) for line in told), (wanted, told)
    assert problems_of(tmp_path, "x = ")[0].startswith("no TOML")


def test_values_that_fit_no_loop_are_told(tmp_path):
    path = write_loop(tmp_path, tmp_path)
    text = path.read_text()
    wrong = {"real_share = 0.5": "real_share = 0.12345", '"sdxl"': '"sd1"'}
    for old, new in wrong.items():
        text = text.replace(old, new)
    told = problems_of(tmp_path, text + 'measure = "luck"\n')
    assert [line.split(":")[0] for line in told] == [
        "backbone sd1", "stop.measure luck", "real_share 0.12345",
    ]  # fmt: skip


def test_shares_are_the_fewest_whole_numbers(tmp_path):
    path = write_loop(tmp_path, tmp_path)
    path.write_text(path.read_text().replace("real_share = 0.5", "real_share = 0.75"))
    assert read_settings(path).shares == (3, 1)


def test_every_backbone_has_a_script():
    assert all((ROOT / backbone.script).is_file() for backbone in BACKBONES.values())


def test_flags_of_every_kind_become_words():
    flags = {"on": True, "off": False, "n": 3, "many": ["a b", 2], "by": {"a": 1, "b": "x y"}}
    assert flag_words(flags) == [
        "--on", "--no-off", "--n=3", "--many", "a b", "2", "--by", "a=1", "b=x y",
    ]  # fmt: skip


def test_a_round_trains_on_from_the_last_lora_on_its_picks(tmp_path):
    settings = read_settings(write_loop(tmp_path, tmp_path))
    first, second = (train_words(settings, round_of(settings, i)) for i in (0, 1))
    assert f"--instance_data_dir={settings.instance_data_dir}" in first
    assert "--max_train_steps=4" in first and "--seed=3" in first
    assert not any(word.startswith("--resume_lora") for word in first)
    out = settings.output_dir
    assert f"--instance_data_dir={out / 'round_0/data'}" in second
    assert f"--resume_lora={out / 'round_0/lora'}" in second
    assert {"--max_train_steps=3", "--rank=2", "--seed=4"} <= set(second)


def test_no_picture_that_is_learned_from_has_a_held_out_one_s_seed(tmp_path):
    """Nor that of a candidate: equal seeds are equal noise, layouts and collages."""
    path = write_loop(tmp_path, tmp_path)
    path.write_text(path.read_text().replace("num_images = 3", "num_images = 3\nbest_of = 4"))
    settings = read_settings(path)

    def seeds(number, held_out):
        flags = picture_flags(settings, round_of(settings, number), held_out)
        return set(range(flags["seed"], flags["seed"] + 3 * 4))

    assert seeds(0, True) == seeds(1, True)
    found = [seeds(0, True), *(seeds(number, False) for number in range(3))]
    assert len(set.union(*found)) == sum(map(len, found))


# Picks


def line(name: str, score: float = 0.9, verdict: str = "good", **more: object) -> dict:
    subjects = {"a": {"detection": 0}, "b": {"detection": 1}}
    scores = {"net": {"score": score, "verdict": verdict, "subjects": subjects}}
    usual = {"image": name, "prompt": "p", "named": ["a", "b"], "nearest": {"net": ["a", "b"]}}
    return {**usual, "boxes": [[0, 0, 4, 4], [4, 0, 8, 4]], "scores": scores, **more}


def candidate(number: int, made: dict, kept: bool | None = None) -> Candidate:
    """Each with a thumbnail of its own."""
    seen = np.zeros(3 * 16 * 16)
    seen[number] = 1
    return Candidate(made, seen, kept)


def test_what_becomes_of_every_kind_of_picture():
    made = [
        line("third best", 0.8), line("best", 0.95), line("second", 0.9), line("weak", 0.4),
        line("mixed", verdict="mixed"), line("swapped", nearest={"net": ["b", "a"]}),
        {"image": "x", "problem": "cannot be read"}, line("other prompt", 0.7, prompt="q"),
    ]  # fmt: skip
    fates = choose([candidate(i, m) for i, m in enumerate(made)], Pick(per_prompt=2))
    assert fates == [
        "enough", "picked", "picked", "below the bar", "mixed", "mixed", "unreadable", "picked",
    ]  # fmt: skip


def test_a_picture_like_a_better_one_is_passed_over():
    better, same = candidate(0, line("x", 0.9)), candidate(0, line("y", 0.8, prompt="q"))
    assert choose([same, better], Pick()) == ["like a better one", "picked"]


def test_hands_reject_always_and_are_asked_for_by_a_setting():
    made = [candidate(i, line(f"{i}"), kept) for i, kept in enumerate((True, False, None))]
    assert choose(made, Pick(per_prompt=9)) == ["picked", "not kept by hand", "picked"]
    by_hand = Pick(per_prompt=9, by_hand=True)
    assert choose(made, by_hand) == ["picked", "not kept by hand", "not kept by hand"]


def test_all_embedders_but_the_last_pick():
    """Net 1 says good, net 2 bad: as the last it has no say; with a third behind it, it has."""
    good, bad = line("x")["scores"]["net"], line("x", verdict="extra")["scores"]["net"]
    nearest = {name: ["a", "b"] for name in "123"}
    two = line("x", scores={"1": good, "2": bad}, nearest=nearest)
    three = line("x", scores={"1": good, "2": bad, "3": good}, nearest=nearest)
    assert choose([candidate(0, two)], Pick()) == ["picked"]
    assert choose([candidate(0, three)], Pick()) == ["extra"]


def test_embedders_that_take_each_subject_for_the_other_pick_nothing():
    other = {"a": {"detection": 1}, "b": {"detection": 0}}
    one = {"score": 0.9, "verdict": "good", "subjects": line("x")["scores"]["net"]["subjects"]}
    nearest = {"1": ["a", "b"], "2": ["b", "a"], "3": ["a", "b"]}
    scores = {"1": one, "2": {**one, "subjects": other}, "3": one}
    made = line("x", scores=scores, nearest=nearest)
    assert choose([candidate(0, made)], Pick()) == ["mixed"]


def test_thumbnails_correlate_as_pictures_do():
    image = good_picture(PROMPTS[0], 1)
    darker = image.point(lambda value: value * 0.5 + 20)
    assert thumbnail(image) @ thumbnail(darker) == pytest.approx(1, abs=1e-3)
    assert thumbnail(image) @ thumbnail(good_picture(PROMPTS[0], 2)) < 0.9
    assert not thumbnail(Image.new("RGB", (8, 8), "red")).any()


def test_pictures_on_one_bright_background_are_not_alike_by_it():
    def picture(left, top):
        image = Image.new("RGB", (64, 64), "red")
        image.paste("white", (left, top, left + 14, top + 14))
        return thumbnail(image)

    assert picture(4, 4) @ picture(40, 40) < 0.5
    assert picture(4, 4) @ picture(4, 4) == pytest.approx(1)


def test_what_is_said_of_picks():
    picks = [
        {"fate": "mixed", "score": 0.2, "named": ["a"]},
        {"fate": "mixed", "score": 0.3, "named": ["b"]},
        {"fate": "unreadable", "score": None, "named": ["b"]},
    ]
    assert why_none(picks) == (
        "none of 3 pictures was picked: 2 mixed, 1 unreadable; the best score is 0.300"
    )
    alone = [{"fate": "picked", "named": ["a"]}, {"fate": "mixed", "named": ["a", "b"]}]
    assert only_subject(alone) == "a"
    assert only_subject([*alone, {"fate": "picked", "named": ["a", "b"]}]) is None


# Figures


def solo(*nearest: str) -> dict:
    scores = {"net": {"score": 0.5, "verdict": "?"}}
    boxes = [[0, 0, 1, 1]] * len(nearest)
    return {"named": ["a"], "boxes": boxes, "scores": scores, "nearest": {"net": nearest}}


def test_figures_by_hand():
    """Two of three together are good; alone: one right, two that bleed, one doubled, one empty."""
    together = [line("x", 0.9), line("y", 0.7), line("z", 0.2, "missing + mixed")]
    alone = [solo("a"), solo("b"), solo("a", "b"), solo("a", "a"), solo()]
    found = figures_of([*together, *alone, {"named": ["a", "b"], "problem": "broken"}])
    assert (found.pictures, found.solo_pictures) == (3, 5)
    assert found.success == pytest.approx(2 / 3) and found.score == pytest.approx(0.6)
    assert found.missing == found.mixed == pytest.approx(1 / 3) and found.extra == 0
    assert (found.solo_success, found.solo_bleed, found.solo_count) == (1 / 5, 2 / 4, 3 / 5)
    assert found.measure("success") == found.success and found.measure("score") == found.score
    assert figures_of(alone).measure("score") == 1 / 5


@pytest.mark.parametrize(
    "measures, rules, best, told",
    [
        ([0.5], Stop(), 0, None),
        ([0.5, 0.6], Stop(), 1, None),
        ([0.5, 0.5], Stop(), 0, "stays: 0.500 in round 0, 0.500 in round 1"),
        ([0.5, 0.6, 0.4], Stop(), 1, "falls: 0.600 in round 1, 0.400 in round 2"),
        ([0.5, 0.4, 0.6], Stop(patience=2), 2, None),
        ([0.5, 0.55], Stop(min_gain=0.1), 0, "stays"),
    ],
)
def test_the_loop_ends_where_the_measure_falls_or_stays(measures, rules, best, told):
    assert best_round(measures, rules.min_gain) == best
    why = ended(measures, rules)
    assert (why is None) == (told is None) and (told or "") in (why or "")


# Cutting


def test_a_subject_is_cut_out_and_two_that_can_t_be_told_apart_are_not():
    image = good_picture(PROMPTS[0], 0)
    pixels = np.asarray(image)
    masks = {s: (pixels == c).all(axis=2) for s, c in (("a", (200, 40, 40)), ("b", (50, 70, 220)))}
    boxes = {}
    for subject, mask in masks.items():
        ys, xs = np.nonzero(mask)
        boxes[subject] = Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    found = cut_subjects(image, boxes, foreground_segmenter)
    assert all((found[subject] == mask).all() for subject, mask in masks.items())
    touching = Image.new("RGB", (64, 64), "white")
    touching.paste((200, 40, 40), (2, 20, 30, 40))
    touching.paste((50, 70, 220), (30, 20, 60, 40))
    boxes = {
        "a": Box(2, 20, 32, 40),
        "b": Box(30, 20, 60, 40),
    }  # widened by 4
    red, blue = cut_subjects(touching, boxes, foreground_segmenter).values()
    assert red is not None and blue is not None and not (red & blue).any()
    assert (red.sum(), blue.sum()) == (24 * 20, 24 * 20)  # columns 2 to 25 and 36 to 59
    same = Box(2, 20, 60, 40)  # as if both had been found there
    assert cut_subjects(touching, {"a": same, "b": same}, foreground_segmenter) == {
        "a": None, "b": None,
    }  # fmt: skip


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
    path = write_loop(tmp_path, sdxl_backbone.base)
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
