"""What a training sample costs on one core, and what that is made of.

    python benchmarks/bench_data.py --instance_data_dir dataset/category/robot_and_teddy

`check` is `load_subjects`, `prepare` the decoding, cutting and reducing that happens once a photo;
the rest is paid per sample, in milliseconds (median of --samples).
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from mudi import segmix
from mudi.data import Draw, SampleOptions, SegMixDataset
from mudi.images import load_mask, load_rgb
from mudi.metadata import load_subjects

STYLE = segmix.SDXL_STYLE


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instance_data_dir", type=Path, required=True)
    parser.add_argument("--resolution", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--samples", type=int, default=200)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    subjects = load_subjects(args.instance_data_dir)
    photos = subjects.photos
    sizes = {f"{image.width}x{image.height}" for image in (load_rgb(p.image) for p in photos)}
    print(f"{len(photos)} photos, {', '.join(sorted(sizes))}")
    print(f"check: {time.perf_counter() - start:.2f} s for all")
    for size in args.resolution:
        start = time.perf_counter()
        cutouts = [
            segmix.reduce_to_canvas(
                segmix.cut_out(load_rgb(p.image), load_mask(p.mask)), size, STYLE
            )
            for p in photos
        ]
        prepare = (time.perf_counter() - start) / len(photos)
        rows = {
            "mixed sample": sample_time(subjects, size, 1.0, args.samples),
            "unmixed sample": sample_time(subjects, size, 0.0, args.samples),
            **collage_parts(cutouts, [p.subject for p in photos], size, args.samples),
        }
        print(f"\n{size} px; prepare: {1e3 * prepare:.0f} ms a photo, once")
        for name, seconds in rows.items():
            print(f"  {name:24}{1e3 * seconds:8.2f} ms")


def sample_time(subjects, size: int, segmix_prob: float, samples: int) -> float:
    """Median seconds from the draw to uint8 pixels and mask, decoded photos at hand."""
    dataset = SegMixDataset(subjects, SampleOptions(size, STYLE, segmix_prob))
    count = len(subjects.photos)
    for i in range(4 * count):
        dataset[Draw(i % count, 0, f"warm {i}")]
    return timed(lambda i: dataset[Draw(i % count, 0, f"bench {i}")], samples)


def collage_parts(cutouts, owners: list[str], size: int, samples: int) -> dict[str, float]:
    """Median seconds of the parts of a mixed sample."""
    rng = random.Random(0)
    second = next(i for i, owner in enumerate(owners) if owner != owners[0])
    pair = [cutouts[0], cutouts[second]]
    collage = segmix.compose(pair, size, STYLE, rng)
    scales = [rng.uniform(STYLE.shrink, 1.0) for _ in range(samples)]
    limits = [segmix.largest_scale(cutout, size, STYLE) for cutout in pair]
    return {
        "  of it: compose": timed(lambda i: segmix.compose(pair, size, STYLE, rng), samples),
        "    of it: resize both": timed(
            lambda i: [
                segmix.resize(cutout, scales[i] * limit)
                for cutout, limit in zip(pair, limits, strict=True)
            ],
            samples,
        ),
        "  of it: to array": timed(lambda i: np.array(collage.image), samples),
    }


def timed(work: Callable[[int], object], samples: int) -> float:
    seconds = []
    for i in range(samples):
        start = time.perf_counter()
        work(i)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    main(parse_args())
