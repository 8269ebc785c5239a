"""What a run tells of its optimizer steps: in the bar, to the trackers and in stats.jsonl."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from mudi.ground.errors import SetupError
from mudi.ground.files import room_for, write_text
from mudi.training.args import TrainingArgs
from mudi.training.checkpoints import checkpoints
from mudi.training.planning import Plan

STATS_NAME = "stats.jsonl"
GB = 10**9


class NonFiniteLossError(SetupError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class Pass:
    """What one pass came to; both are scalars, and stay on the device.

    Attributes:
        grad_norm: length of all gradients together before they were clipped; None but for the
            last pass of a step.
    """

    loss: Tensor
    grad_norm: Tensor | None


@dataclass(frozen=True)
class StepNumbers:
    """What is told of an optimizer step.

    Attributes:
        values: loss, the mean over all passes, and gradient norm: (2,) float32 on the device.
        lr: the rate that the step was done with.
    """

    step: int
    values: Tensor
    lr: float


class StepLog:
    """Keeps the steps' numbers on the device until they are due, and tells them then.

    To read a number is to wait until the device is idle, so it is done every --logging_steps, and
    before anything is saved or shown. The seconds a step are the mean over those read together.

    Args:
        first_step: steps done already; what stats.jsonl says of later ones is dropped.
    """

    def __init__(self, accelerator: Accelerator, args: TrainingArgs, plan: Plan, first_step: int):
        self._accelerator, self._args, self._plan = accelerator, args, plan
        self._unread: list[StepNumbers] = []
        self._path = plan.output_dir / STATS_NAME
        if accelerator.is_main_process:
            begin_stats(self._path, plan.resume, first_step)
        self._bar = progress_bar(accelerator, first_step, plan.num_steps)
        self._since = time.perf_counter()

    def add(self, step: int, passes: list[Pass], lr: float) -> None:
        """Note an optimizer step; tell it, and those before it, if that is due.

        Raises:
            NonFiniteLossError: a loss is infinite or not a number. All processes raise.
        """
        loss = torch.stack([done.loss for done in passes]).mean()
        norm = passes[-1].grad_norm
        norm = torch.full_like(loss, math.nan) if norm is None else norm
        values = torch.stack([loss.float(), norm.detach().float()])
        self._unread.append(StepNumbers(step, values, lr))
        self._bar.update()
        if self._is_due(step):
            self._tell()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count what is done inside to no step's seconds."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def _is_due(self, step: int) -> bool:
        args = self._args
        periods = (args.logging_steps, args.save_steps, args.checkpointing_steps)
        return self._plan.validates(step) or any(step % period == 0 for period in periods)

    def _tell(self) -> None:
        read = read_numbers(self._accelerator, [numbers.values for numbers in self._unread])
        shared = {"seconds": (time.perf_counter() - self._since) / len(self._unread)}
        if self._accelerator.device.type == "cuda":
            shared["peak_gb"] = torch.cuda.max_memory_allocated() / GB
        told: list[dict[str, Any]] = []
        for numbers, (loss, norm) in zip(self._unread, read, strict=True):
            if not math.isfinite(loss):
                self._note(told)
                raise _broken(numbers.step, loss, self._plan.output_dir)
            scalars = {"loss": loss, "lr": numbers.lr, "grad_norm": norm, **shared}
            report(self._accelerator, self._bar, numbers.step, **scalars)
            told.append({"step": numbers.step, **scalars})
        self._note(told)
        self._unread.clear()
        self._since = time.perf_counter()

    def _note(self, told: list[dict[str, Any]]) -> None:
        if self._accelerator.is_main_process and told:
            append_stats(self._path, told)


def progress_bar(accelerator: Accelerator, step: int, num_steps: int) -> tqdm:
    """Return the main process's bar over optimizer steps."""
    hidden = not accelerator.is_local_main_process
    return tqdm(total=num_steps, initial=step, desc="steps", disable=hidden, dynamic_ncols=True)


def read_numbers(accelerator: Accelerator, values: list[Tensor]) -> list[list[float]]:
    """Average each of the tensors (2,) over all processes; waits for the device."""
    return accelerator.reduce(torch.stack(values), reduction="mean").tolist()


def _broken(step: int, loss: float, output_dir: Path) -> NonFiniteLossError:
    kept = checkpoints(output_dir)
    advice = f"continue from {kept[-1]}" if kept else "start again"
    return NonFiniteLossError(
        f"the loss of step {step} is {loss}; nothing since was saved. Lower the learning "
        f"rate or use another --mixed_precision, then {advice}."
    )


def report(accelerator: Accelerator, bar: tqdm, step: int, **scalars: float) -> None:
    """Show an optimizer step's loss and rate in the bar and hand its numbers to the trackers."""
    bar.set_postfix({key: f"{scalars[key]:.3g}" for key in ("loss", "lr")})
    accelerator.log(scalars, step=step)


def begin_stats(path: Path, resume: Path | None, first_step: int) -> None:
    """Let a run's file hold its steps up to first_step, or be absent where there are none.

    Args:
        resume: the checkpoint that the run goes on from; the file beside it tells of those steps.
    """
    lines = []
    source = None if resume is None else resume.parent / STATS_NAME
    if source is not None and source.is_file():
        lines = [line for line in source.read_bytes().split(b"\n") if _step(line) <= first_step]
    if lines:
        write_text(path, b"\n".join([*lines, b""]).decode())
    else:
        path.unlink(missing_ok=True)


def _step(line: bytes) -> float:
    """Return the step that a line tells of; infinity for one that is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return math.inf


def append_stats(path: Path, records: list[dict[str, Any]]) -> None:
    """Add a line for each record, all of them or none; numbers that are not finite become null.

    Raises:
        DiskFullError: there is no room.
    """
    data = "".join(json.dumps(_finite(record)) + "\n" for record in records).encode()
    before = path.stat().st_size if path.is_file() else 0
    with room_for(path, wanted=len(data)):
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError:
            if path.is_file():
                os.truncate(path, before)
            raise


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else None for key, value in record.items()}
