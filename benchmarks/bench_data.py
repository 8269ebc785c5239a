r"""What photos cost: start-up, memory, and training samples a second on one core.

    python -m benchmarks.bench_data --size real      (12-megapixel and 1-megapixel photos, 1024 px)
    python -m benchmarks.bench_data --size real --instance_data_dir dataset/category/robot_and_teddy
    python -m benchmarks.bench_data --size mini --grow photos subjects

`check` is what a run does first: every photo and mask decoded once and checked, in threads.
`prepare` is paid once a photo: decode, cut out, reduce. A sample then costs `mixed` or `unmixed`
(median), and `decoded` if its photo was not kept; `compose` and what follows are parts of `mixed`.
Times with "cpu" are of the processor, which other work on the machine changes little.

--grow measures how check, memory and samples grow with the number of photos a subject and of
subjects. Photos are made on the fly; beyond five a subject they are links to the first five.
"""

import ctypes
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import photos
from benchmarks.common import OUTPUT, BenchArgs, finish, table
from benchmarks.parts import host_memory
from mudi import segmix
from mudi.data import Draw, SampleOptions, SegMixDataset
from mudi.ground.errors import program
from mudi.ground.flags import flag, parse
from mudi.images import load_mask, load_rgb
from mudi.metadata import Subjects, load_subjects

STYLE = segmix.SDXL_STYLE
MIB = 1 << 20
SIMPLE_PHOTOS = 5  # a subject, where growth is not the matter


class Shape(NamedTuple):
    """What a size measures: photos' megapixels, samples' sides (px), numbers for --grow."""

    megapixels: tuple[float, ...]
    resolutions: tuple[int, ...]
    samples: int
    photos: tuple[int, ...]
    subjects: tuple[int, ...]


SHAPES = {
    "tiny": Shape((0.05,), (64,), 8, (2, 6), (2, 3)),
    "mini": Shape((1.0,), (64, 512), 100, (10, 100), (2, 5)),
    "real": Shape((12.2, 1.0), (1024, 512), 100, (10, 100, 1000), (2, 3, 5)),
}


class Timed(NamedTuple):
    """Medians, in seconds: of the wall clock and of the processor."""

    wall: float
    cpu: float


@dataclass
class DataArgs(BenchArgs):
    """data"""

    instance_data_dir: Path | None = flag(None, "measure these photos instead of made ones")
    resolution: list[int] = flag([], "sides of a sample (px); unset: by the size", nargs="+")
    megapixels: list[float] = flag([], "of the made photos; unset: by the size", nargs="+")
    samples: int = flag(0, "samples a figure; 0: by the size")
    grow: list[str] = flag([], "instead: growth", nargs="+", choices=("photos", "subjects"))
    numbers: list[int] = flag([], "of photos or subjects; unset: by the size", nargs="+")


def parse_args(argv: list[str] | None = None) -> DataArgs:
    args = parse(DataArgs, __doc__, argv, json=OUTPUT / "data.json")
    shape = SHAPES[args.size]
    args.resolution = args.resolution or list(shape.resolutions)
    args.megapixels = args.megapixels or list(shape.megapixels)
    args.samples = args.samples or shape.samples
    return args


@program
def main(args: DataArgs) -> None:
    if args.grow:
        rows = [row for what in args.grow for row in growth(args, what)]
        finish(args, torch.device("cpu"), rows, show_growth)
        return
    rows = []
    for label, folder in folders(args):
        for resolution in args.resolution:
            rows.append({"photos": label, **measure(folder, resolution, args.samples)})
    finish(args, torch.device("cpu"), rows, show)


def folders(args: DataArgs) -> Iterator[tuple[str, Path]]:
    """Yield data folders with a name for each; made ones live until the next is asked for."""
    if args.instance_data_dir:
        yield str(args.instance_data_dir), args.instance_data_dir
        return
    for megapixels in args.megapixels:
        with TemporaryDirectory(prefix="bench-") as folder:
            path = photos.write_folder(Path(folder), megapixels, SIMPLE_PHOTOS)
            yield f"{megapixels:g} megapixels", path


def measure(folder: Path, resolution: int, samples: int) -> dict[str, Any]:
    """Return what a folder's photos cost at one resolution, in seconds and MiB."""
    with spent() as check:
        subjects = load_subjects(folder)
    before = resident()
    datasets = {p: make_dataset(subjects, resolution, p) for p in (1.0, 0.0)}
    mixed, unmixed = (
        sample_time(dataset, samples, warm=4 * len(subjects.photos))
        for dataset in datasets.values()
    )
    kept = resident() - before
    with spent() as prepare:
        cutouts = [cut(photo.image, photo.mask, resolution) for photo in subjects.photos]
    decoded = sample_time(datasets[0.0], 2, warm=0, afresh=True)
    return {
        "resolution": resolution,
        "num_photos": len(subjects.photos),
        "check": check[0],
        "check_cpu": check[1],
        "prepare_cpu_a_photo": prepare[1] / len(cutouts),
        "mixed": mixed.wall,
        "mixed_cpu": mixed.cpu,
        "mixed_a_second": 1 / mixed.cpu,
        "unmixed": unmixed.wall,
        "unmixed_cpu": unmixed.cpu,
        "unmixed_a_second": 1 / unmixed.cpu,
        "unmixed_decoded_cpu": decoded.cpu,
        "kept_mib": kept / MIB,
        **collage_parts(cutouts, [p.subject for p in subjects.photos], resolution, samples),
    }


def growth(args: DataArgs, what: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of photos a subject, or of subjects.

    `check_memory_mib` is what checking leaves behind, `memory_mib` what --samples mixed and as many
    unmixed samples add, from photos drawn all over the set; the peaks are above the start.
    """
    resolution, megapixels = args.resolution[0], args.megapixels[-1]
    for number in args.numbers or getattr(SHAPES[args.size], what):
        sizes = {"photos": SIMPLE_PHOTOS, "subjects": 2, what: number}
        with TemporaryDirectory(prefix="bench-") as scratch:
            folder = photos.write_folder(Path(scratch), megapixels, **sizes)
            start = resident()
            with spent() as check:
                subjects = load_subjects(folder)
            check_peak = host_memory()[0]
            checked = resident()
            datasets = {p: make_dataset(subjects, resolution, p) for p in (1.0, 0.0)}
            mixed, unmixed = (
                sample_time(dataset, args.samples, warm=0) for dataset in datasets.values()
            )
            peak = host_memory()[0]
            yield {
                "varied": what,
                "value": number,
                "num_photos": len(subjects.photos),
                "megapixels": megapixels,
                "resolution": resolution,
                "check": check[0],
                "check_cpu": check[1],
                "check_peak_mib": (check_peak - start) / MIB,
                "check_memory_mib": (checked - start) / MIB,
                "mixed_cpu": mixed.cpu,
                "unmixed_cpu": unmixed.cpu,
                "peak_memory_mib": (peak - start) / MIB,
                "memory_mib": (resident() - checked) / MIB,
                "prompts": len(datasets[1.0].prompts()),
            }


def resident() -> int:
    """Return this process' resident bytes, after what is free was given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory otherwise
    return host_memory()[1]


def make_dataset(subjects: Subjects, resolution: int, segmix_prob: float) -> SegMixDataset:
    return SegMixDataset(subjects, SampleOptions(resolution, STYLE, segmix_prob))


def sample_time(dataset: SegMixDataset, samples: int, warm: int, afresh: bool = False) -> Timed:
    """Return what a sample costs from the draw to uint8 pixels and mask.

    Args:
        warm: samples drawn before, so that decoded photos are at hand.
        afresh: forget decoded photos before every sample.
    """
    count = len(dataset.subjects.photos)
    rng = random.Random(0)
    order = [rng.randrange(count) for _ in range(warm)] + [*range(count)]
    for i, photo in enumerate(order[:warm]):
        dataset[Draw(photo, 0, f"warm {i}")]

    def sample(i: int) -> None:
        dataset[Draw(rng.randrange(count), 0, f"bench {i}")]

    if not afresh:
        return timed(sample, samples)
    options, subjects = dataset.options, dataset.subjects
    return timed(lambda i: SegMixDataset(subjects, options)[Draw(i % count, 0, "x")], samples)


def cut(image: Path, mask: Path, resolution: int) -> segmix.Cutout:
    cutout = segmix.cut_out(load_rgb(image), load_mask(mask))
    return segmix.reduce_to_canvas(cutout, resolution, STYLE)


def collage_parts(
    cutouts: list[segmix.Cutout], owners: list[str], size: int, samples: int
) -> dict[str, float]:
    """Return what the parts of a mixed sample cost, in seconds of the processor."""
    rng = random.Random(0)
    second = next(i for i, owner in enumerate(owners) if owner != owners[0])
    pair = [cutouts[0], cutouts[second]]
    collage = segmix.compose(pair, size, STYLE, rng)
    scales = [rng.uniform(STYLE.shrink, 1.0) for _ in range(samples)]
    limits = [segmix.largest_scale(cutout, size, STYLE) for cutout in pair]

    def resize_both(i: int) -> None:
        for cutout, limit in zip(pair, limits, strict=True):
            segmix.resize(cutout, scales[i] * limit)

    return {
        "compose_cpu": timed(lambda i: segmix.compose(pair, size, STYLE, rng), samples).cpu,
        "of_it_resize_cpu": timed(resize_both, samples).cpu,
        "to_array_cpu": timed(lambda i: np.array(collage.image), samples).cpu,
    }


def timed(work: Callable[[int], object], samples: int) -> Timed:
    """Return the medians of samples calls."""
    costs = []
    for i in range(samples):
        with spent() as cost:
            work(i)
        costs.append(cost)
    return Timed(median(cost[0] for cost in costs), median(cost[1] for cost in costs))


@contextmanager
def spent() -> Iterator[list[float]]:
    """Give a list that holds, afterwards, the seconds of the wall clock and of the processor."""
    cost: list[float] = []
    start = time.perf_counter(), time.process_time()
    yield cost
    cost += [time.perf_counter() - start[0], time.process_time() - start[1]]


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out a column for each folder and resolution."""
    headers = ["", *(f"{row['photos']}, {row['resolution']} px" for row in rows)]
    lines: list[list[object]] = [
        ["photos", *(row["num_photos"] for row in rows)],
        ["check, s", *(row["check"] for row in rows)],
        ["check, s cpu", *(row["check_cpu"] for row in rows)],
    ]
    for name, key in (
        ("prepare, ms cpu a photo", "prepare_cpu_a_photo"),
        ("mixed, ms", "mixed"),
        ("mixed, ms cpu", "mixed_cpu"),
        ("  compose, ms cpu", "compose_cpu"),
        ("    of it resize, ms cpu", "of_it_resize_cpu"),
        ("  to array, ms cpu", "to_array_cpu"),
        ("unmixed, ms", "unmixed"),
        ("unmixed, ms cpu", "unmixed_cpu"),
        ("  if decoded, ms cpu", "unmixed_decoded_cpu"),
    ):
        lines.append([name, *(1e3 * row[key] for row in rows)])
    lines.append(["mixed a second and core", *(row["mixed_a_second"] for row in rows)])
    lines.append(["unmixed a second and core", *(row["unmixed_a_second"] for row in rows)])
    lines.append(["decoded photos kept, MiB", *(row["kept_mib"] for row in rows)])
    return table(headers, lines)


def show_growth(rows: Sequence[dict[str, Any]]) -> str:
    headers = [
        "varied", "", "photos", "prompts", "check/s", "check/s cpu", "check peak/MiB", "left/MiB",
        "mixed/ms cpu", "unmixed/ms cpu", "kept/MiB", "peak/MiB",
    ]  # fmt: skip
    return table(
        headers,
        [
            [
                row["varied"],
                row["value"],
                row["num_photos"],
                row["prompts"],
                row["check"],
                row["check_cpu"],
                row["check_peak_mib"],
                row["check_memory_mib"],
                1e3 * row["mixed_cpu"],
                1e3 * row["unmixed_cpu"],
                row["memory_mib"],
                row["peak_memory_mib"],
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main(parse_args())
