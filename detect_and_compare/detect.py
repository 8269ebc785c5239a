"""Where are the subjects in a generated picture? Boxes, and the square crops that are embedded."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import find_objects, label, maximum_filter
from torchvision.ops import nms as suppress

from detect_and_compare.args import FOREGROUND, OWLV2, THRESHOLD
from detect_and_compare.weights import with_weights
from mudi.images import Box
from mudi.masks.segment import DETECTOR, Detection, Detector, differs_from_border

SPECK = 0.002  # of the picture's pixels; a smaller piece is no subject
GAP = 0.008  # of the longer side; pieces nearer to each other than this are one
CROPS = "nearest pixels, black beyond the picture"  # the rule of `square_crop`, for the records


class ImageDetector(Protocol):
    """Finds what stands in pictures; `name` goes into the records."""

    name: str

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return the detections of each RGB picture, best first."""
        ...


class OwlDetector:
    """An OWLv2 or OWL-ViT checkpoint that looks for the same texts in every picture.

    Args:
        checkpoint: folder or hub id.
        queries: what to look for; a text that stands twice is asked once.
        threshold: least confidence of a box, 0 to 1.
        nms: boxes whose intersection over union with a better one exceeds it are dropped, whatever
            text they answer; None, as published: all stay.

    Attributes:
        queries: the different texts; `Detection.query` is an index into them.

    Raises:
        SegmentError: the checkpoint can't be loaded, or a query is too long for it.
    """

    def __init__(
        self,
        checkpoint: str,
        queries: Sequence[str],
        threshold: float = THRESHOLD,
        nms: float | None = None,
        device: str | torch.device = "cpu",
    ):
        self.queries = list(dict.fromkeys(queries))
        self._threshold, self._nms = threshold, nms
        self._detect = Detector(checkpoint, device)
        self._detect.check(self.queries)
        self.name = with_weights(checkpoint, self._detect.model)

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        found = self._detect(images, [self.queries] * len(images), self._threshold)
        if self._nms is None:
            return found
        return [without_overlaps(detections, self._nms) for detections in found]


def without_overlaps(detections: Sequence[Detection], overlap: float) -> list[Detection]:
    """Drop each box whose intersection over union with a better, kept one exceeds overlap."""
    boxes = torch.tensor([detection.box for detection in detections], dtype=torch.float32)
    scores = torch.tensor([detection.score for detection in detections])
    return [detections[i] for i in suppress(boxes.reshape(-1, 4), scores, overlap)]


class ForegroundDetector:
    """Finds the connected pieces that differ from the border's colour; needs no weights.

    For plain backgrounds, and subjects that do not touch. Its confidence is always 1, its query 0.
    """

    name = FOREGROUND

    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Return each picture's pieces, from left to right."""
        return [[Detection(box, 1.0, 0) for box in _pieces(image)] for image in images]


def _pieces(image: Image.Image) -> list[Box]:
    different = differs_from_border(image)
    reach = max(1, round(GAP * max(image.size)))
    numbered, count = label(maximum_filter(different, size=reach))
    numbered[~different] = 0
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    boxes = [
        Box(columns.start, rows.start, columns.stop, rows.stop)
        for (rows, columns), size in zip(find_objects(numbered, count), sizes, strict=True)
        if size >= SPECK * different.size
    ]
    return sorted(boxes)


def load_detector(
    name: str,
    queries: Sequence[str],
    threshold: float = THRESHOLD,
    nms: float | None = None,
    device: str | torch.device = "cpu",
) -> ImageDetector:
    """Return the detector that "owlv2", "foreground" or an OWL's folder or hub id names.

    Raises:
        SegmentError: the checkpoint can't be loaded, or a query is too long for it.
    """
    if name == FOREGROUND:
        return ForegroundDetector()
    return OwlDetector(DETECTOR if name == OWLV2 else name, queries, threshold, nms, device)


def square_crop(image: Image.Image, corners: Sequence[float]) -> Image.Image:
    """Cut a box out of a picture and centre it on a white square as large as its longer side.

    As published, what lies beyond the picture is black.

    Args:
        corners: left, top, right, bottom (px), each rounded to the nearest whole number, of two
            equally near ones to the even; outwards if nothing were left.
    """
    # To hundredths first: the original's way decides where a corner is next to a half.
    box = Box(*(round(round(corner, 2)) for corner in corners))
    if min(box.width, box.height) < 1:
        left, top, right, bottom = corners
        box = Box(math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    side = max(box.width, box.height)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image.crop(box), ((side - box.width) // 2, (side - box.height) // 2))
    return square
