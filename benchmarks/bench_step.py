r"""A training step against the floor, and where its time goes.

    python -m benchmarks.bench_step --family sdxl                  (the miniature, CPU or GPU)
    python -m benchmarks.bench_step --family flux --size real      (12 B parameters; a GPU)
    python -m benchmarks.bench_step --sweep resolution batch rank subjects
    python -m benchmarks.bench_step --train_batch_size 2 --use_dora     (the script's own flags)

The script itself runs, from main() on. The floor is the network's own arithmetic on the same inputs
in the same process: forward and backward of the adapted network and, for DCO, one forward without
gradient. Both take turns of --steps optimizer steps, so that a busy machine slows both alike; the
ratio is the median over the --turns. Two variants: `default`, its VAE encoding counted in the
floor; `cached`, caches on and filled as after the first epochs, no VAE in the floor. Afterwards as
many turns run with a clock on every part; of the turns the middle half, by length, is averaged.

All times are of an optimizer step, so of --gradient_accumulation_steps passes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import photos, watch
from benchmarks.bases import base_model
from benchmarks.common import EXAMPLE, FAMILIES, OUTPUT, BenchArgs, finish, settle_device, table
from benchmarks.parts import GIB, REST, Cost, Meter, Parts, gpu_memory, host_memory
from mudi.data import Batch
from mudi.ground.errors import program
from mudi.ground.flags import flag, parse

# As published; the miniature's are those of mini/demo.py and the experiments.
REAL = {
    "sdxl": "--resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=2 "
    "--rank=32 --learning_rate=1e-4",
    "flux": "--resolution=512 --train_batch_size=1 --gradient_accumulation_steps=4 "
    "--rank=32 --learning_rate=3e-4 --guidance_scale=1",
    "klein": "--resolution=512 --train_batch_size=1 --gradient_accumulation_steps=4 --rank=32",
    "zimage": "--resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=4 --rank=32",
}
SETTINGS = {
    "mini": "--resolution=64 --train_batch_size=4 --rank=16",
    "tiny": "--resolution=64 --train_batch_size=1 --rank=2",
}
# No saving while the clock runs: it is done every 500 steps, and belongs to none.
ALWAYS = "--seed=1 --lr_warmup_steps=0 --save_steps=1000000 --checkpointing_steps=1000000"
VARIANTS = {"default": "", "cached": "--cache_latents"}
TURNS = {"tiny": 3, "mini": 6, "real": 2}
STEPS = 10  # a turn: what is only done every so many steps is then in each
WARM_UP = 3  # optimizer steps; the first builds the optimizer's state, the last is recorded
SWEEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "tiny": {"resolution": (64, 128), "batch": (1, 2), "rank": (2, 4), "subjects": (2, 3)},
    "mini": {
        "resolution": (64, 96, 128),
        "batch": (1, 2, 4, 8),
        "rank": (4, 16, 64),
        "subjects": (2, 3, 5),
    },
    "real": {
        "resolution": (512, 768, 1024),
        "batch": (1, 2, 4),
        "rank": (8, 32, 128),
        "subjects": (2, 3, 5),
    },
}
SWEEP_FLAGS = {"resolution": "--resolution", "batch": "--train_batch_size", "rank": "--rank"}


def settings(family: str, size: str) -> list[str]:
    """Return the flags of a family's runs of a size."""
    own = REAL[family] if size == "real" else SETTINGS[size]
    return [*own.split(), *ALWAYS.split()]


@dataclass
class StepArgs(BenchArgs):
    """training step"""

    family: str = flag("sdxl", "whose script", choices=FAMILIES)
    variant: list[str] = flag(list(VARIANTS), "which of them", nargs="+", choices=VARIANTS)
    turns: int = flag(0, "without and then with a clock on the parts; 0: by the size")
    steps: int = flag(STEPS, "optimizer steps a turn")
    workers: int = flag(0, "processes that prepare samples")
    sweep: list[str] = flag([], "instead: how cost grows", nargs="+", choices=SWEEPS["mini"])
    instance_data_dir: Path = flag(EXAMPLE, "photos")
    script_flags: list[str] = field(default_factory=list)  # the training script's own


def parse_args(argv: list[str] | None = None) -> StepArgs:
    args = parse(StepArgs, __doc__, argv, rest="script_flags", json=OUTPUT / "step.json")
    args.turns = args.turns or TURNS[args.size]
    return args


@program
def main(args: StepArgs) -> None:
    device = settle_device(args)
    runs: list[tuple[dict[str, Any], str, Path]] = []
    with ExitStack() as stack:
        if args.sweep:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            for what in args.sweep:
                runs += sweep(args, what, scratch)
        else:
            data = args.instance_data_dir
            runs = [({"variant": name}, VARIANTS[name], data) for name in args.variant]
        rows = [
            {**label, "family": args.family, **measure(args, device, flags, data)}
            for label, flags, data in runs
        ]
    finish(args, device, rows, show_sweep if args.sweep else show)


def sweep(args: StepArgs, what: str, scratch: Path) -> list[tuple[dict, str, Path]]:
    """Return the runs that vary one thing and leave all else."""
    runs = []
    for value in SWEEPS[args.size][what]:
        label = {"varied": what, "value": value}
        if what == "subjects":
            megapixels = 1.0 if args.size == "real" else 0.05
            data = photos.write_folder(scratch / str(value), megapixels, 5, subjects=value)
            runs.append((label, f"--segmix_num_subjects={value}", data))
        else:
            runs.append((label, f"{SWEEP_FLAGS[what]}={value}", args.instance_data_dir))
    return runs


def script_words(
    args: StepArgs, device: torch.device, flags: str, data: Path, output: Path
) -> list[str]:
    """Return the training script's command line but for the base and the number of steps."""
    words = [*settings(args.family, args.size), *flags.split()]
    words += [f"--instance_data_dir={data}", f"--output_dir={output}"]
    return [*words, f"--dataloader_num_workers={args.workers}", *args.script_flags]


def measure(args: StepArgs, device: torch.device, flags: str, data: Path) -> dict[str, Any]:
    """Run the script once and return what a step took, in seconds."""
    parts = Parts()
    turns = Turns(parts, device, args.turns, args.steps, with_vae=flags != VARIANTS["cached"])
    with (
        base_model(args.family, args.size, device) as base,
        TemporaryDirectory(prefix="bench-") as output,
    ):
        words = script_words(args, device, flags, data, Path(output))
        words += [f"--pretrained_model_name_or_path={base}"]
        words += [f"--max_train_steps={turns.all_steps}"]
        watch.run(args.family, words, parts, turns, with_start=False)
    return {"flags": " ".join(words), **turns.result()}


class Turns:
    """Lets floor and script run in turns, then the script alone with a clock on its parts.

    Args:
        steps: optimizer steps a turn.
        with_vae: count the VAE's encoding in the floor.
    """

    def __init__(self, parts: Parts, device: torch.device, turns: int, steps: int, with_vae: bool):
        self._parts, self._device = parts, device
        self._turns, self._steps, self._with_vae = turns, steps, with_vae
        self.all_steps = WARM_UP + 2 * turns * steps
        self._script: list[Cost] = []
        self._floor: list[Cost] = []
        self._laps: list[dict[str, Cost]] = []
        self._floor_laps: list[dict[str, Cost]] = []
        self._memory = 0
        self._facts: dict[str, Any] = {}

    def __call__(self, running: watch.Running, batches: Iterator[Batch]) -> Iterator[Batch]:
        floor = watch.Floor(running)
        watch.fill_cache(running)
        passes = running.args.gradient_accumulation_steps
        for _ in range(WARM_UP * passes):
            with floor.recording():
                yield next(batches)
        passes *= self._steps
        self._peak_memory()
        for _ in range(self._turns):
            self._floor.append(floor.run(self._parts, passes, self._with_vae))
            clock = Meter(self._device)
            for _ in range(passes):
                yield next(batches)
            self._script.append(clock.read())
        self._memory = self._peak_memory()
        self._parts.meter = Meter(self._device)
        for _ in range(self._turns):
            for _ in range(passes):
                with self._parts.part(watch.DATA):
                    batch = next(batches)
                yield batch
            self._laps.append(self._parts.lap())
        for _ in range(self._turns):
            floor.run(self._parts, passes, self._with_vae)
            self._floor_laps.append(self._parts.lap())
        self._parts.meter = None
        self._facts = self._look(running)

    def _peak_memory(self) -> int:
        return (gpu_memory() if self._device.type == "cuda" else host_memory())[0]

    def _look(self, running: watch.Running) -> dict[str, Any]:
        """Return facts that tell whether the run was what it should be."""
        done = running.training.lr_scheduler.last_epoch if running.training else 0
        return {
            "passes_a_step": running.args.gradient_accumulation_steps,
            "batch_size": running.args.train_batch_size,
            "processes": running.accelerator.num_processes,
            "precision": running.accelerator.mixed_precision,
            "parameters": sum(p.numel() for p in running.network.parameters()),
            "skipped_steps": self.all_steps - done,  # by the scaler of fp16
        }

    def result(self) -> dict[str, Any]:
        """Return seconds of an optimizer step; `ratio` is the median over the turns."""
        turns = list(zip(self._script, self._floor, strict=True))
        ratios = sorted(script.seconds / floor.seconds for script, floor in turns)
        parts = self._middle(self._laps, [*watch.STEP_PARTS, REST])
        whole = sum(parts.values())
        return {
            "ratio": median(ratios),
            "ratio_range": [ratios[0], ratios[-1]],
            "ratio_busy": median(script.busy / floor.busy for script, floor in turns),
            "step": median(cost.seconds for cost in self._script) / self._steps,
            "floor": median(cost.seconds for cost in self._floor) / self._steps,
            "parts": parts,
            "floor_parts": self._middle(self._floor_laps, [watch.VAE, *watch.NETWORK_PARTS]),
            "step_with_clock": whole,
            "data_share": parts[watch.DATA] / whole,
            "peak_memory_gib": self._memory / GIB,
            **self._facts,
        }

    def _middle(self, laps: Sequence[dict[str, Cost]], names: Sequence[str]) -> dict[str, float]:
        """Average each part's seconds of a step over the middle half of the laps, by length."""
        cut = len(laps) // 4
        by_length = sorted(laps, key=lambda lap: sum(cost.seconds for cost in lap.values()))
        middle = by_length[cut : len(laps) - cut]
        return {
            name: mean(lap.get(name, Cost()).seconds for lap in middle) / self._steps
            for name in names
        }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out ratios and parts, in milliseconds."""
    headers = ["ms an optimizer step", *(row["variant"] for row in rows)]
    headers += [f"floor ({row['variant']})" for row in rows]
    lines: list[list[object]] = []
    for name in [*watch.STEP_PARTS, REST]:
        floors = [row["floor_parts"].get(name) for row in rows]
        times = [row["parts"][name] for row in rows] + floors
        lines.append([name, *(None if value is None else 1e3 * value for value in times)])
    whole = [1e3 * sum(row[key].values()) for key in ("parts", "floor_parts") for row in rows]
    lines.append(["all, with a clock", *whole])
    plain = [1e3 * row[key] for key in ("step", "floor") for row in rows]
    lines.append(["all, without", *plain])
    told = [
        f"{row['family']}, {row['variant']}: step over floor {row['ratio']:.3f} (turns: "
        f"{row['ratio_range'][0]:.3f} to {row['ratio_range'][1]:.3f}), "
        f"by processor time {row['ratio_busy']:.3f}; "
        f"data {row['data_share']:.1%} of the step"
        for row in rows
    ]
    return "\n".join([table(headers, lines), "", *told])


def show_sweep(rows: Sequence[dict[str, Any]]) -> str:
    headers = "varied value step/ms floor/ms ratio data/ms peak/GiB".split()
    columns: list[Callable[[dict[str, Any]], object]] = [
        lambda row: row["varied"],
        lambda row: row["value"],
        lambda row: 1e3 * row["step"],
        lambda row: 1e3 * row["floor"],
        lambda row: row["ratio"],
        lambda row: 1e3 * row["parts"][watch.DATA],
        lambda row: row["peak_memory_gib"],
    ]
    return table(headers, [[column(row) for column in columns] for row in rows])


if __name__ == "__main__":
    begun = time.perf_counter()
    main(parse_args())
    print(f"{time.perf_counter() - begun:.0f} s in all")
