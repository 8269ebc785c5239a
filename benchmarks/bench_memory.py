r"""Peak memory by part of a training run, and the time from its start to the first step.

    python -m benchmarks.bench_memory --row sdxl                 (the miniature)
    python -m benchmarks.bench_memory --row flux_nf4 --size real (a GPU)

The script itself runs, from main() on, for a few steps. A part's peak is the most memory in use at
any time within it (`left`: at its end): on a GPU what PyTorch has allocated, on a CPU the resident
memory of the process, libraries included. `start` is everything before main().

The time to the first step is that of a fresh process importing the script, and of main() up to the
end of the first optimizer step, without the loading of weights; at size real weights are made, not
loaded, and that does not count. `accelerate launch` itself comes on top.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks import watch
from benchmarks.bases import base_model
from benchmarks.bench_step import settings
from benchmarks.common import (
    EXAMPLE,
    OUTPUT,
    BenchArgs,
    finish,
    import_script,
    settle_device,
    table,
)
from benchmarks.parts import GIB, Cost, Meter, Parts
from mudi.backbones import quantization
from mudi.data import Batch
from mudi.ground.errors import SetupError, program
from mudi.ground.flags import flag, parse

STEPS = 4  # the first makes the optimizer's state


class Row(NamedTuple):
    """A row of the target table: whose script, with which flags, and the target (GB)."""

    family: str
    flags: str
    target: float


ROWS = {
    "sdxl": Row("sdxl", "", 16),
    "sdxl_lean": Row("sdxl", "--gradient_checkpointing --cache_latents", 10),
    "flux": Row("flux", "--gradient_checkpointing", 27),
    "flux_nf4": Row("flux", "--gradient_checkpointing --quantize_base=nf4", 10),
    "klein": Row("klein", "--gradient_checkpointing", 12),
    "klein_nf4": Row("klein", "--gradient_checkpointing --quantize_base=nf4 --encode_on_cpu", 8),
    "zimage": Row("zimage", "--gradient_checkpointing --encode_on_cpu", 20),
    "zimage_nf4": Row("zimage", "--gradient_checkpointing --quantize_base=nf4 --encode_on_cpu", 8),
}


@dataclass
class MemoryArgs(BenchArgs):
    """memory"""

    row: str = flag("sdxl", "which row of the targets", choices=ROWS)
    steps: int = flag(STEPS, "optimizer steps")
    imports: bool = flag(True, "time a fresh process' imports too")
    instance_data_dir: Path = flag(EXAMPLE, "photos")
    script_flags: list[str] = field(default_factory=list)  # the training script's own


def parse_args(argv: list[str] | None = None) -> MemoryArgs:
    return parse(MemoryArgs, __doc__, argv, rest="script_flags", json=OUTPUT / "memory.json")


@program
def main(args: MemoryArgs) -> None:
    device = settle_device(args)
    row = ROWS[args.row]
    imports = import_time(row.family) if args.imports else Cost()
    if "nf4" in row.flags and (problems := quantization.complaints("nf4")):
        raise SetupError(f"--row {args.row}: not measured: {problems[0]}")
    parts = Parts(Meter(device, memory=True))
    steps = Steps(parts)
    with (
        base_model(row.family, args.size, device) as base,
        TemporaryDirectory(prefix="bench-") as output,
    ):
        parts.lap()  # the start, the making of a base included
        words = [*settings(row.family, args.size), *row.flags.split()]
        if device.type == "cpu":
            words.append("--mixed_precision=no")
        words += [f"--pretrained_model_name_or_path={base}", f"--output_dir={output}"]
        words += [f"--instance_data_dir={args.instance_data_dir}", *args.script_flags]
        words += [f"--max_train_steps={args.steps}"]
        watch.run(row.family, words, parts, steps, with_start=True)
    costs = {**steps.start, **steps.inside, **{f"{k} (end)": v for k, v in parts.lap().items()}}
    first = {"imports": imports, **steps.first}
    beyond = {name: cost for name, cost in first.items() if name not in watch.LOADED}
    peak = max(cost.peak for cost in costs.values())
    result = {
        "row": args.row,
        "flags": " ".join(words),
        "peak": peak,
        "peak_gb": peak / 1e9,
        "target_gb": row.target,
        "peak_in": max(costs, key=lambda name: costs[name].peak),
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else None,
        "parts": {
            name: {"peak": cost.peak, "left": cost.left, "seconds": cost.seconds}
            for name, cost in costs.items()
        },
        "to_first_step": {name: cost.seconds for name, cost in beyond.items()},
        "to_first_step_seconds": sum(cost.seconds for cost in beyond.values()),
        "to_first_step_busy": sum(cost.busy for cost in beyond.values()),
        "loading_seconds": sum(c.seconds for name, c in first.items() if name in watch.LOADED),
    }
    finish(args, device, [result], show)


def import_time(family: str) -> Cost:
    """Return what it costs a fresh interpreter to import a training script."""
    path = Path(import_script(family).__file__ or "")
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {path.stem}"], cwd=path.parent, check=True)
    seconds, after = time.perf_counter() - start, os.times()
    busy = after.children_user + after.children_system
    return Cost(seconds, busy - before.children_user - before.children_system)


class Steps:
    """Hands on the batches; keeps what was spent up to the loop, and in its steps.

    Attributes:
        start: cost of each part before the loop.
        inside: of each part of the steps, together.
        first: of all up to the end of the first step.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self.start: dict[str, Cost] = {}
        self.inside: dict[str, Cost] = {}
        self.first: dict[str, Cost] = {}

    def __call__(self, running: watch.Running, batches: Iterator[Batch]) -> Iterator[Batch]:
        passes = running.args.gradient_accumulation_steps
        self.start = {_outside(name): cost for name, cost in self._parts.lap().items()}
        self.first = dict(self.start)
        for step in range(running.plan.num_steps):
            for _ in range(passes):
                with self._parts.part(watch.DATA):
                    batch = next(batches)
                yield batch
            lap = {f"step: {name}": cost for name, cost in self._parts.lap().items()}
            for name, cost in lap.items():
                self.inside[name] = self.inside.get(name, Cost()).then(cost)
            if step == 0:
                self.first |= lap


def _outside(name: str) -> str:
    return "start" if name == "rest" else name


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the parts in their order, in GiB and seconds."""
    told = []
    for row in rows:
        lines = [
            [name, part["peak"] / GIB, part["left"] / GIB, part["seconds"]]
            for name, part in row["parts"].items()
        ]
        told.append(table([row["row"], "peak/GiB", "left/GiB", "s"], lines))
        told.append(
            f"peak {row['peak_gb']:.2f} GB in {row['peak_in']} (target at size real on a GPU: "
            f"{row['target_gb']} GB)"
        )
        told.append(
            f"start to first step {row['to_first_step_seconds']:.1f} s beyond loading weights "
            f"({row['loading_seconds']:.1f} s), of which imports "
            f"{row['to_first_step']['imports']:.1f} s; processor time "
            f"{row['to_first_step_busy']:.1f} s"
        )
    return "\n".join(told)


if __name__ == "__main__":
    main(parse_args())
