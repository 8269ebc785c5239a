"""inference.py --best_of on a random SDXL, judged without weights: boxes by colour, histograms."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import ROOT
from PIL import Image
from test_launch import LAUNCH, offline
from training import EXAMPLE, reset_accelerate

import inference
from detect_and_compare import __main__ as metric
from mudi.best_of import candidates
from mudi.ground.work import CHECKSUM
from mudi.pictures.sampling import Sampler

torch.set_num_threads(1)
BOTH, ONE = "a photo of a olis robot and a hta teddy bear", "a olis robot"
# Random networks draw any number of pieces: without --count_aware nearly all pictures score 0
JUDGE = ["--detector", "foreground", "--embedder", "colours", "--crop_references", "--count_aware"]
SIZE = 3  # --best_of
PICTURES = 2  # --num_images


def words(base, out, *more):
    return [
        *("--pretrained_model_name_or_path", str(base), "--prompt", BOTH),
        *("--instance_data_dir", str(EXAMPLE), "--output_dir", str(out), "--seed", "5"),
        *("--resolution", "64", "--steps", "2", "--gamma", "2", "--num_images", str(PICTURES)),
        *map(str, more),
    ]


def best_words(base, out, *more):
    return words(base, out, "--best_of", SIZE, *JUDGE, *more)


def run(argv):
    reset_accelerate()
    inference.main(inference.parse_args(argv))


def lines(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(record.pop(CHECKSUM) for record in records)
    return {record["image"]: record for record in records}


def kept(out):
    return lines(out / "pictures.jsonl")


def listed(out):
    return lines(out / "candidates.jsonl")


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def score_of(line):
    return line["scores"]["colours"]["score"]


@pytest.fixture(scope="module")
def base(sdxl_backbone):
    return sdxl_backbone.base


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """As many pictures without --best_of, and what the metric's own command says of them."""
    out, scores = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("scores")
    run(words(base, out, "--num_images", SIZE * PICTURES))
    argv = ["--images", str(out), "--references", str(EXAMPLE), "--output", str(scores), *JUDGE]
    reset_accelerate()
    metric.main(metric.parse_args(argv))
    found = lines(scores / "scores.jsonl")
    return {line["seed"]: (score_of(line), out / name) for name, line in found.items()}


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory):
    """The output of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("straight")
    run(best_words(base, out, "--keep", "all"))
    return out


def test_the_best_is_the_metrics_own_best_of_the_same_seeds(straight, alone):
    """Picture k has seeds 5 + k + 2 c: candidate 0 is what --best_of 1 makes."""
    assert len({score for score, _ in alone.values()}) > SIZE
    for k, record in enumerate(kept(straight).values()):
        seeds = [5 + k + PICTURES * c for c in range(SIZE)]
        wanted = max(seeds, key=lambda seed: alone[seed][0])
        assert record["seed"] == wanted
        assert record["best_of"]["number"] == seeds.index(wanted)
        assert record["best_of"]["scores"] == [alone[seed][0] for seed in seeds]
        assert record["best_of"]["score"] == alone[wanted][0]
        assert np.array_equal(pixels(straight / record["image"]), pixels(alone[wanted][1]))
    for line in listed(straight).values():
        assert score_of(line) == alone[line["seed"]][0]
        assert np.array_equal(pixels(straight / line["image"]), pixels(alone[line["seed"]][1]))


def judged(boxes: int, score: float) -> dict:
    return {"boxes": [[0, 0, 1, 1]] * boxes,
            "scores": {"net": {"score": score, "subjects": {"a": {}, "b": {}}}}}  # fmt: skip


def test_mixed_subjects_go_before_a_wrong_count_whose_score_is_0():
    lines = [judged(0, 0.0), judged(2, -0.3), judged(2, -0.2), judged(3, 0.0)]
    assert candidates.best(lines) == 2
    assert candidates.best(lines[::3]) == 0


def test_kept_pictures_are_as_any_and_the_metric_takes_their_list(straight, tmp_path):
    records = kept(straight)
    assert list(records) == ["000_000.png", "000_001.png"]
    for name, record in records.items():
        made = json.loads(Image.open(straight / name).text["mudi"])
        assert {**made, "best_of": record["best_of"]} == record
    argv = ["--images", str(straight), "--references", str(EXAMPLE), "--output", str(tmp_path)]
    reset_accelerate()
    metric.main(metric.parse_args([*argv, *JUDGE]))
    scored = lines(tmp_path / "scores.jsonl")
    assert {name: score_of(line) for name, line in scored.items()} == {
        name: record["best_of"]["score"] for name, record in records.items()
    }


def test_a_finished_run_is_left_as_it_is_and_more_candidates_add_to_it(base, straight, tmp_path):
    out = shutil.copytree(straight, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*.png")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "load_pipeline", lambda *_: pytest.fail("was loaded"))
        run(best_words(base, straight, "--keep", "all"))
        run(best_words(base, out))  # --keep best
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*.png")} == before
    assert sorted(path.name for path in out.rglob("*.png")) == [
        *("000_000.png", "000_001.png", "sheet.png")
    ]
    assert listed(out) == listed(straight) and kept(out) == kept(straight)

    drawn = counted(lambda: run(best_words(base, out, "--best_of", SIZE + 1)))
    assert drawn == [5 + SIZE * PICTURES, 6 + SIZE * PICTURES]
    assert {name: listed(out)[name] for name in listed(straight)} == listed(straight)
    name = "000_001.png"
    (out / name).unlink()
    assert counted(lambda: run(best_words(base, out, "--best_of", SIZE + 1))) == [
        kept(out)[name]["seed"]
    ]


def counted(action):
    """Return the seeds of the pictures that are drawn meanwhile."""
    seeds = []
    draw = Sampler.draw

    def note(self, shots, batch_size=1):
        seeds.extend(shot.seed for shot in shots)
        return draw(self, shots, batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "draw", note)
        action()
    return seeds


@pytest.mark.parametrize("batch_size", [1, 4])
def test_enough_is_enough(base, alone, tmp_path, batch_size):
    """The bar is the second best of all: one picture stops at it, at the latest."""
    bar = sorted(score for score, _ in alone.values())[-2]
    run(best_words(base, tmp_path, "--enough", bar, "--batch_size", batch_size, "--keep", "all"))
    expected = {}
    for k in range(PICTURES):
        seeds = [5 + k + PICTURES * c for c in range(SIZE)]
        good = [c for c, seed in enumerate(seeds) if alone[seed][0] >= bar]
        for c in range(good[0] + 1 if good else SIZE):
            expected[f"candidates/000_{k:03}_{c:03}.png"] = alone[seeds[c]][0]
    found = {name: score_of(line) for name, line in listed(tmp_path).items()}
    if batch_size == 1:
        assert found == expected
    assert found.keys() == expected.keys() and len(found) < SIZE * PICTURES
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("candidates/*")} == (
        expected.keys()
    )
    assert not counted(lambda: run(best_words(base, tmp_path, "--enough", bar, "--keep", "all")))


def test_a_kill_loses_nothing_and_two_processes_agree_with_one(base, straight, tmp_path):
    """Killed as soon as two candidates are listed, both processes; then the same command."""
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command = [*launch, str(ROOT / "inference.py"), *best_words(base, tmp_path, "--keep", "all")]
    options = {"env": offline(), "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **options)
    while process.poll() is None and len(in_parts(tmp_path)) < 2:
        time.sleep(0.02)
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        one.kill()
    process.wait()
    done = {name: (tmp_path / name).stat().st_mtime_ns for name in in_parts(tmp_path)}
    assert done and not (tmp_path / "pictures.jsonl").exists()

    subprocess.run(command, env=options["env"], check=True)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in done} == done
    assert list(listed(tmp_path)) == list(listed(straight))
    for name, record in kept(straight).items():
        own = kept(tmp_path)[name]
        scores = own["best_of"].pop("scores"), record["best_of"].pop("scores")
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # other threads, other roundings
        assert own["best_of"].pop("score") == max(scores[0]) and record["best_of"].pop("score")
        assert own == record
    for name in [*kept(straight), *listed(straight)]:
        assert abs(pixels(tmp_path / name) - pixels(straight / name)).max() <= 1


def in_parts(out: Path) -> list[str]:
    """Return the candidates whose lines are whole in the list's parts."""
    data = b"".join(path.read_bytes() for path in sorted(out.glob("candidates.jsonl.part*")))
    return [json.loads(line)["image"] for line in data.split(b"\n")[:-1]]


def test_a_picture_is_judged_by_the_subjects_that_its_prompt_names(base, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{ONE}\n{BOTH}\n")
    argv = best_words(base, tmp_path / "out", "--prompt_file", prompts, "--num_images", 1)
    argv = [word for word in argv if word not in ("--prompt", BOTH)]
    run(argv)
    subjects = {
        name: list(line["scores"]["colours"]["subjects"])
        for name, line in listed(tmp_path / "out").items()
    }
    assert subjects == {
        f"candidates/00{p}_000_00{c}.png": ["a"] if p == 0 else ["a", "b"]
        for p in range(2)
        for c in range(SIZE)
    }


def test_what_is_wrong_is_told_before_anything_is_loaded(base, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", lambda *_: pytest.fail("was loaded"))
    monkeypatch.setattr(candidates, "load_judge", lambda *_: pytest.fail("was loaded"))
    for more, told in [
        (["--best_of", "0"], "--best_of 0: must be 1 or more"),
        (["--best_of", "1", "--enough", "0.5"], "--enough: does nothing without a --best_of"),
        (["--best_of", "1"], "--embedder: does nothing without a --best_of of 2 or more"),
        (["--enough", "2"], "--enough 2.0: must be 1 or less"),
        (["--instance_data_dir", "", "--gamma", "0"], "--best_of needs --instance_data_dir"),
        (["--prompt", "a dog", "--gamma", "0"], 'the prompt "a dog" names no subject; there are'),
        (["--nms", "0.5"], "--detector foreground looks for no texts: drop --queries and --nms"),
        (["--queries", "x=dog", "--detector", "owlv2"], "--queries x: the subjects are a, b"),
        (["--embedder", "./no"], "--embedder ./no: no such folder"),
        (["--export_noise", "x.latent"], "--export_noise is of one picture that is sure to be"),
        ([f"--seed={2**63 - 6}"], "the last candidate's must fit into 64 bits"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run(best_words(base, tmp_path, *more))
        assert told in str(stopped.value)
    assert not list(tmp_path.iterdir())
    for more, told in [
        (["--steps", "3"], r"000_000_000.png was made otherwise \(steps was 2 and is 3\): use"),
        (["--norm", "fro"], r"was made otherwise \(norm was '2' and is 'fro'\): use --overwrite"),
    ]:
        with pytest.raises(SystemExit, match=told):
            run(best_words(base, straight, *more))


def test_pictures_that_were_made_alone_are_not_overwritten(base, tmp_path):
    run(words(base, tmp_path, "--num_images", "1"))
    with pytest.raises(SystemExit, match=r"000_000.png was made without --best_of: use --overw"):
        run(best_words(base, tmp_path, "--num_images", "1"))
    run(best_words(base, tmp_path, "--num_images", "1", "--overwrite"))
    assert len(listed(tmp_path)) == SIZE and len(kept(tmp_path)) == 1
