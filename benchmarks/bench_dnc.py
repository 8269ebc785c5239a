r"""Detect-and-Compare: pictures a second, batched against one at a time.

    python -m benchmarks.bench_dnc --size mini
    python -m benchmarks.bench_dnc --size real      (OWLv2-base at 960 px and DINOv2-base)

Goes through detect_and_compare.score_images with pictures in files, as the command does. The
networks have the published shapes and random weights (size mini: the miniature's embedder, and a
detector as large as its own), so what they find says nothing: the detector runs and answers as
ever, and then two fixed boxes a picture take the place of its findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import BitImageProcessor, Owlv2ImageProcessor, Owlv2Processor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.bases import random_network
from benchmarks.common import OUTPUT, ROOT, BenchArgs, finish, settle_device, table
from benchmarks.parts import GIB, Meter
from benchmarks.photos import draw_photo
from benchmarks.published import DINOV2, OWLV2, Network
from detect_and_compare.args import BATCH_SIZE
from detect_and_compare.detect import ImageDetector, load_detector
from detect_and_compare.embed import load_embedder
from detect_and_compare.measure import score_images
from mini.tiny import clip_tokenizer, save_tiny_dinov2, save_tiny_owlv2
from mini.training import detector as train_detector
from mudi.ground.errors import program
from mudi.ground.flags import flag, parse
from mudi.images import Box
from mudi.masks.segment import Detection

QUERIES = {"a": "robot", "b": "teddy bear"}
EMBEDDER = ROOT / "mini/weights/embedder_a"
OWL_TOKENS = 16
CPU = torch.device("cpu")


class Shape(NamedTuple):
    """Pictures scored each time, and their side (px)."""

    pictures: int
    side: int


SHAPES = {"tiny": Shape(4, 64), "mini": Shape(64, 64), "real": Shape(16, 1024)}


@dataclass
class DncArgs(BenchArgs):
    """metric"""

    batch_size: int = flag(BATCH_SIZE, "pictures at once")
    pictures: int = flag(0, "scored each time; 0: by the size")
    rounds: int = flag(3, "times each is measured, in turns")


def parse_args(argv: list[str] | None = None) -> DncArgs:
    args = parse(DncArgs, __doc__, argv, json=OUTPUT / "dnc.json")
    args.pictures = args.pictures or SHAPES[args.size].pictures
    return args


@program
def main(args: DncArgs) -> None:
    device = settle_device(args)
    with TemporaryDirectory(prefix="bench-") as folder:
        scratch = Path(folder)
        paths = [write_picture(scratch, i, SHAPES[args.size].side) for i in range(args.pictures)]
        owl, embedder_folder = networks(args.size, scratch)
        queries = list(QUERIES.values())
        detector = FixedBoxes(load_detector(str(owl), queries, device=device))
        embedder = load_embedder(str(embedder_folder), device)
        references = {subject: [Image.open(paths[i])] for i, subject in enumerate(QUERIES)}
        seconds: dict[int, list[float]] = {1: [], args.batch_size: []}
        peaks = dict.fromkeys(seconds, 0)
        for turn in range(1 + args.rounds):  # the first warms up
            for batch in seconds:
                meter = Meter(device, memory=True)
                score_images(paths, references, detector, embedder, batch_size=batch)
                cost = meter.read()
                peaks[batch] = max(peaks[batch], cost.peak)
                if turn:
                    seconds[batch].append(cost.seconds)
    rows = [
        {
            "batch_size": batch,
            "pictures": args.pictures,
            "side": SHAPES[args.size].side,
            "pictures_a_second": args.pictures / median(times),
            "gain": median(seconds[1]) / median(times),
            "peak_memory_gib": peaks[batch] / GIB,
        }
        for batch, times in seconds.items()
    ]
    finish(args, device, rows, show)


class FixedBoxes:
    """Lets a detector do all its work, then says that there are two subjects, left and right."""

    def __init__(self, detector: ImageDetector):
        self.name = detector.name
        self._detector = detector

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        self._detector(images)
        found = []
        for width, height in (image.size for image in images):
            left = Box(0, height // 4, width // 2, height)
            right = Box(width // 2, height // 4, width, height)
            found.append([Detection(left, 1.0, 0), Detection(right, 1.0, 1)])
        return found


def networks(size: str, scratch: Path) -> tuple[Path, Path]:
    """Return the folders of a detector and an embedder of that size."""
    if size == "tiny":
        return save_tiny_owlv2(scratch / "owl"), save_tiny_dinov2(scratch / "dino")
    if size == "mini":
        return save_miniature_detector(scratch / "owl"), EMBEDDER
    return save_owlv2(scratch / "owl", OWLV2), save_dinov2(scratch / "dino", DINOV2)


def save_miniature_detector(folder: Path) -> Path:
    """Save an untrained detector of the shape that mini.training.detector trains."""
    shape = train_detector.parse_args(["--output", str(folder)])
    processor = train_detector.new_processor()
    detector = train_detector.new_detector(processor, shape.width, shape.layers, shape.patch)
    detector.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_owlv2(folder: Path, network: Network) -> Path:
    random_network(network, CPU, torch.float32).save_pretrained(folder)
    side = network.config.vision_config.image_size
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = OWL_TOKENS
    image_processor = Owlv2ImageProcessor(size={"height": side, "width": side})
    Owlv2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path, network: Network) -> Path:
    random_network(network, CPU, torch.float32).save_pretrained(folder)
    processor = BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    processor.save_pretrained(folder)
    return folder


def write_picture(folder: Path, number: int, side: int) -> Path:
    """Write a PNG, as inference.py does."""
    path = folder / f"{number:03}.png"
    draw_photo(0.1, number)[0].resize((side, side)).save(path)
    return path


def show(rows: Sequence[dict[str, Any]]) -> str:
    headers = ["at once", "pictures", "pictures/s", "over one at a time", "peak/GiB"]
    keys = "batch_size pictures pictures_a_second gain peak_memory_gib".split()
    return table(headers, [[row[key] for key in keys] for row in rows])


if __name__ == "__main__":
    main(parse_args())
