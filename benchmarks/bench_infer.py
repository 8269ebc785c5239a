r"""Pictures a second: batched against one at a time, with and without mean-shifted noise.

    python -m benchmarks.bench_infer --family sdxl                   (the miniature)
    python -m benchmarks.bench_infer --family flux --size real       (a GPU)

Goes through mudi.pictures.sampling.Sampler, as inference.py does; the pipeline is at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.bases import pipeline_of
from benchmarks.common import EXAMPLE, FAMILIES, OUTPUT, BenchArgs, finish, settle_device, table
from benchmarks.parts import GIB, Meter
from mudi.ground.errors import program
from mudi.ground.flags import flag, parse
from mudi.metadata import load_subjects
from mudi.pictures.sampling import Sampler, Sampling, Shot
from mudi.segmix import listed

GAMMA = 0.25


class Shape(NamedTuple):
    """What a size makes: side (px), denoising steps, pictures a batch."""

    side: int
    steps: int
    batch: int


SHAPES = {"tiny": Shape(64, 2, 2), "mini": Shape(64, 25, 4), "real": Shape(1024, 25, 4)}
SIDES = {("flux", "real"): 512}  # where it is another


@dataclass
class InferArgs(BenchArgs):
    """pictures"""

    family: str = flag("sdxl", "which pipeline", choices=FAMILIES)
    batch_size: int = flag(0, "pictures a batch; 0: by the size")
    steps: int = flag(0, "denoising steps; 0: by the size")
    resolution: int = flag(0, "side of a picture (px); 0: by the size")
    rounds: int = flag(3, "times each is measured, in turns")
    instance_data_dir: Path = flag(EXAMPLE, "subjects")


def parse_args(argv: list[str] | None = None) -> InferArgs:
    args = parse(InferArgs, __doc__, argv, json=OUTPUT / "infer.json")
    shape = SHAPES[args.size]
    args.batch_size = args.batch_size or shape.batch
    args.steps = args.steps or shape.steps
    args.resolution = args.resolution or SIDES.get((args.family, args.size), shape.side)
    return args


@program
def main(args: InferArgs) -> None:
    device = settle_device(args)
    subjects = load_subjects(args.instance_data_dir)
    prompt = f"a photo of {listed(list(subjects.names.values()))}, simple background."
    pipeline = pipeline_of(args.family, args.size, device)
    sampling = Sampling((args.resolution, args.resolution), args.steps)
    sampler = Sampler(pipeline, sampling, subjects, device)
    cases = [(gamma, batch) for gamma in (0.0, GAMMA) for batch in (1, args.batch_size)]
    seconds: dict[tuple[float, int], list[float]] = {case: [] for case in cases}
    peaks = dict.fromkeys(cases, 0)
    for turn in range(1 + args.rounds):  # the first warms up
        for gamma, batch in cases:
            shots = [Shot(prompt, seed, gamma) for seed in range(args.batch_size)]
            meter = Meter(device, memory=True)
            for _ in sampler.draw(shots, batch):
                pass
            cost = meter.read()
            peaks[gamma, batch] = max(peaks[gamma, batch], cost.peak)
            if turn:
                seconds[gamma, batch].append(cost.seconds)
    rows = [
        {
            "family": args.family,
            "gamma": gamma,
            "batch_size": batch,
            "side": args.resolution,
            "steps": args.steps,
            "pictures_a_second": args.batch_size / median(seconds[gamma, batch]),
            "gain": median(seconds[gamma, 1]) / median(seconds[gamma, batch]),
            "peak_memory_gib": peaks[gamma, batch] / GIB,
        }
        for gamma, batch in cases
    ]
    finish(args, device, rows, show)


def show(rows: Sequence[dict[str, Any]]) -> str:
    headers = ["family", "gamma", "at once", "pictures/s", "over one at a time", "peak/GiB"]
    keys = "family gamma batch_size pictures_a_second gain peak_memory_gib".split()
    return table(headers, [[row[key] for key in keys] for row in rows])


if __name__ == "__main__":
    main(parse_args())
