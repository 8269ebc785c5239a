"""What a run tells of its steps, and stats.jsonl: each step once, complete lines, right numbers."""

import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from test_full_disk import disk, leave  # noqa: F401

from mudi.ground.files import DiskFullError
from mudi.training import runtime, saving
from mudi.training.stats import STATS_NAME, append_stats, begin_stats

KEYS = {"step", "loss", "lr", "grad_norm", "seconds"}


def stats_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / STATS_NAME).read_text().splitlines()]


def without_time(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in stats_of(folder)]


def test_every_step_has_a_line_with_the_norm_of_its_gradients(backbone, tmp_path, monkeypatch):
    """Its length before it is clipped, of all passes of the step together."""
    norms = []
    clip = Accelerator.clip_grad_norm_

    def note(self, parameters, max_norm):
        whole = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])
        norms.append(whole.norm().item())
        return clip(self, parameters, max_norm)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", note)
    out = backbone.train(
        tmp_path, "--max_train_steps 3 --gradient_accumulation_steps 2 --logging_steps 2",
        "--max_grad_norm 1e-4 --lr_scheduler linear --learning_rate 3e-4",
    )  # fmt: skip
    lines = stats_of(out)
    assert all(line.keys() == KEYS for line in lines)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-5)
    assert [line["lr"] for line in lines] == pytest.approx([3e-4, 2e-4, 1e-4])
    assert norms[0] > 1e-4


def test_seconds_are_those_of_steps_and_of_nothing_that_is_saved_or_shown(
    sdxl_backbone, tmp_path, monkeypatch
):
    save, generator_of = saving.save_if_due, runtime.step_generator
    monkeypatch.setattr(saving, "save_if_due", lambda *given: time.sleep(1) or save(*given))
    monkeypatch.setattr(
        runtime, "step_generator", lambda *given: time.sleep(0.05) or generator_of(*given)
    )
    start = time.perf_counter()
    sdxl_backbone.train(tmp_path, "--max_train_steps 3 --logging_steps 2 --save_steps 1000")
    whole = time.perf_counter() - start
    seconds = [line["seconds"] for line in stats_of(tmp_path)]
    assert seconds[0] == seconds[1]  # read together
    assert 3 * 0.05 <= sum(seconds) <= whole - 3


@pytest.mark.parametrize("backbone", ["sdxl", "flux"], indirect=True)  # shared by all
def test_a_resumed_run_has_each_step_once_and_the_numbers_of_a_straight_one(backbone, tmp_path):
    more = "--max_train_steps 3 --checkpointing_steps 1 --logging_steps 3"
    straight = backbone.train(tmp_path / "straight", more)
    stopped = tmp_path / "stopped"
    shutil.copytree(straight, stopped)
    for step in (2, 3):
        shutil.rmtree(stopped / f"checkpoint-{step}")
    with (stopped / STATS_NAME).open("a") as file:
        file.write('{"step": 4, "lo')  # by a power cut
    backbone.train(stopped, more, "--resume_from_checkpoint latest")
    assert [line["step"] for line in stats_of(stopped)] == [1, 2, 3]
    assert without_time(stopped) == without_time(straight)

    elsewhere = backbone.train(
        tmp_path / "elsewhere", more, f"--resume_from_checkpoint {straight / 'checkpoint-2'}"
    )
    assert without_time(elsewhere) == without_time(straight)
    fresh = "--max_train_steps 1 --overwrite_output_dir --seed 8"
    assert [line["step"] for line in stats_of(backbone.train(stopped, fresh))] == [1]


def test_a_broken_step_has_no_line_and_those_before_it_have(sdxl_backbone, tmp_path):
    more = "--learning_rate 1e36 --max_train_steps 4 --logging_steps 4"
    with pytest.raises(SystemExit, match="the loss of step 2"):
        sdxl_backbone.train(tmp_path, more)
    assert [line["step"] for line in stats_of(tmp_path)] == [1]


def test_a_norm_that_overflowed_is_null_as_json_knows_no_infinity(tmp_path):
    path = tmp_path / STATS_NAME
    append_stats(path, [{"step": 1, "grad_norm": math.inf}, {"step": 2, "grad_norm": 0.5}])
    assert path.read_text() == '{"step": 1, "grad_norm": null}\n{"step": 2, "grad_norm": 0.5}\n'


def test_lines_that_tell_no_step_are_dropped_when_a_run_goes_on(tmp_path):
    path, checkpoint = tmp_path / STATS_NAME, tmp_path / "checkpoint-3"
    whole = ['{"step": 1}', '{"step": 3}']
    damaged = ["", "null", "[1]", '{"stap": 2}', '{"step": "x"}', '{"step": 2', "\0\0", "\udcff"]
    text = "\n".join([*damaged, *whole, '{"step": 4}', '{"step": 4, '])
    path.write_bytes(text.encode(errors="surrogateescape"))
    begin_stats(path, checkpoint, 3)
    assert path.read_text().splitlines() == whole
    begin_stats(path, None, 0)
    assert not path.exists()


def test_a_full_disk_leaves_whole_lines_only(disk):  # noqa: F811
    path = disk / STATS_NAME
    append_stats(path, [{"step": 1}])
    leave(disk, 0)
    with pytest.raises(DiskFullError, match="the disk is full"):
        append_stats(path, [{"step": step, "loss": 0.5} for step in range(2, 400)])
    assert path.read_text() == '{"step": 1}\n'
