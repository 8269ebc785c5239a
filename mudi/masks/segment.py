"""Where is the subject? OWLv2 proposes boxes for a text, SAM turns a box or clicks into a mask.

The one place where either is called. Boxes and points are in pixels of the upright picture, masks
(H, W) bool.

segmenter = SamSegmenter(checkpoint, kind, device)  # or foreground_segmenter
mask = segmenter(image, box, points, negatives)
"""

import hashlib
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import label
from segment_anything import SamPredictor, sam_model_registry
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from mudi.ground.errors import SetupError, first_line
from mudi.images import Box
from mudi.islands import drop_islands, fill_holes
from mudi.masks.args import DETECTOR

KINDS = ("owlv2", "owlvit")  # other detectors are asked and answer in other ways
WIDEN = 0.05  # of the picture's side, on each side of a detected box
BORDER_DIFFERENCE = 40  # summed over RGB, 0..765: less than this is background
ENCODED_PHOTOS = 8  # whose embeddings are kept; SAM's take 4 MB each

Points = Sequence[Sequence[int]]  # x, y (px)


class SegmentError(SetupError):
    """A model can't be loaded, or can't do what is asked; the message says why, in one line."""


@dataclass(frozen=True)
class Detection:
    """A box with the detector's confidence in [0, 1] and the index of the text it answers.

    Attributes:
        box: rounded outwards and cut to the picture.
        exact: left, top, right, bottom (px) as the detector gave them, between pixels and beyond
            the picture; None: `box` is exact.
    """

    box: Box
    score: float
    query: int
    exact: tuple[float, float, float, float] | None = None


class Segmenter(Protocol):
    """Makes a mask (H, W) bool of what a box holds, or of what the points lie on.

    Nothing outside the box belongs to it, and no islands (see `drop_islands`), as each would
    enlarge the subject's tight box and so shrink it in every collage.

    Args:
        image: upright, RGB.
        points: pixels (x, y) on the subject, inside the box.
        negatives: pixels that are none of it; beyond the box they say nothing new.
    """

    def __call__(
        self, image: Image.Image, box: Box | None, points: Points = (), negatives: Points = ()
    ) -> np.ndarray: ...


class Detector:
    """An OWLv2 or OWL-ViT checkpoint, by its folder or hub id.

    Attributes:
        model: transformers', in eval mode.

    Raises:
        SegmentError: there is no such checkpoint, it can't be reached, or is of another kind.
    """

    def __init__(self, checkpoint: str = DETECTOR, device: str | torch.device = "cpu"):
        kind = _load_pretrained(AutoConfig, checkpoint).model_type
        if kind not in KINDS:
            raise SegmentError(f"detector {checkpoint}: a {kind}; OWLv2 or OWL-ViT is wanted")
        self._processor = _load_pretrained(AutoProcessor, checkpoint)
        self.model = _load_pretrained(AutoModelForZeroShotObjectDetection, checkpoint)
        self.model.to(device).eval()

    def check(self, queries: Iterable[str]) -> None:
        """Refuse texts that the network can't read.

        Raises:
            SegmentError: one has more tokens than it has places for, 16 in the published ones.
        """
        limit = self.model.config.text_config.max_position_embeddings
        for query in queries:
            count = len(self._processor.tokenizer(query, verbose=False)["input_ids"])
            if count > limit:
                raise SegmentError(
                    f'query "{query}": {count} tokens, and the detector reads {limit}; '
                    "say it in fewer words"
                )

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], queries: Sequence[Sequence[str]], threshold: float
    ) -> list[list[Detection]]:
        """Return what each picture's texts find above threshold, best first.

        Texts must be such as `check` lets pass.
        OWLv2 pads a picture to a square at the right and the bottom; boxes are cut to the picture.
        Large photos are shrunk by Pillow first: the processor's own way takes seconds for one.
        """
        small = [self._shrunk(image) for image in images]
        inputs = self._processor(
            text=[list(texts) for texts in queries], images=small, return_tensors="pt"
        ).to(self.model.device)
        found = self._processor.post_process_grounded_object_detection(
            self.model(**inputs),
            threshold=threshold,
            target_sizes=[(image.height, image.width) for image in images],
        )
        return [_detections(image, result) for image, result in zip(images, found, strict=True)]

    def _shrunk(self, image: Image.Image) -> Image.Image:
        """Return the picture with no side above twice the network's own."""
        limit = 2 * self._processor.image_processor.size["height"]
        scale = limit / max(image.size)
        if scale >= 1:
            return image
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _load_pretrained(auto: Any, checkpoint: str) -> Any:
    """Load a part of a detector by one of transformers' auto classes."""
    try:
        return auto.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise SegmentError(
            f"detector {checkpoint}: cannot be loaded ({reason}); without a network, name a "
            f"folder made elsewhere by `hf download {DETECTOR} --local-dir FOLDER`"
        ) from error


def _detections(image: Image.Image, result: dict) -> list[Detection]:
    detections = []
    for box, score, query in zip(
        result["boxes"].tolist(), result["scores"].tolist(), result["labels"].tolist(), strict=True
    ):
        inside = clip(box, image.size)
        if inside.width > 0 and inside.height > 0:
            detections.append(Detection(inside, score, query, tuple(box)))
    return sorted(detections, key=lambda detection: -detection.score)


def clip(corners: Sequence[float], size: tuple[int, int]) -> Box:
    """Round (left, top, right, bottom) outwards and cut it to a picture of size (W, H)."""
    left, top, right, bottom = corners
    return Box(
        max(0, int(np.floor(left))),
        max(0, int(np.floor(top))),
        min(size[0], int(np.ceil(right))),
        min(size[1], int(np.ceil(bottom))),
    )


def widen(box: Box, size: tuple[int, int], fraction: float = WIDEN) -> Box:
    """Move every edge outwards by a fraction of the picture's side (W, H), not beyond it."""
    x, y = fraction * size[0], fraction * size[1]
    return clip((box.left - x, box.top - y, box.right + x, box.bottom + y), size)


def no_sam(checkpoint: Path, kind: str) -> str:
    """Say where a SAM checkpoint that is not there is to be had."""
    return (
        f"SAM checkpoint {checkpoint}: no such file; download sam_{kind} from "
        "https://github.com/facebookresearch/segment-anything#model-checkpoints, "
        "or use --segmenter foreground"
    )


class SamSegmenter:
    """Segment Anything from a .pth file.

    Its image encoder, nearly all of the work, runs once for each of the last ENCODED_PHOTOS: a
    further box or click is answered by the small decoder alone. Threads may share a segmenter.

    Raises:
        SegmentError: the file is missing or holds another kind of SAM.
    """

    def __init__(self, checkpoint: Path, kind: str, device: str | torch.device = "cpu"):
        if not checkpoint.is_file():
            raise SegmentError(no_sam(checkpoint, kind))
        try:
            model = sam_model_registry[kind](checkpoint=str(checkpoint))
        except (RuntimeError, OSError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = first_line(error)
            raise SegmentError(f"SAM checkpoint {checkpoint}: no {kind} ({reason})") from error
        self.model = model.to(device).eval()
        self._encoded: OrderedDict[bytes, SamPredictor] = OrderedDict()
        self._encoding = threading.Lock()

    def encode(self, image: Image.Image) -> SamPredictor:
        """Return what answers prompts for a picture; called early, it saves the first a wait."""
        key = _fingerprint(image, self.model.image_encoder.img_size)
        with self._encoding:
            predictor = self._encoded.pop(key, None)
            if predictor is None:
                predictor = SamPredictor(self.model)
                predictor.set_image(np.asarray(image))
            self._encoded[key] = predictor
            if len(self._encoded) > ENCODED_PHOTOS:
                self._encoded.popitem(last=False)
        return predictor

    def __call__(
        self, image: Image.Image, box: Box | None, points: Points = (), negatives: Points = ()
    ) -> np.ndarray:
        """Return a mask, see `Segmenter`.

        A lone point is ambiguous (a hat or its wearer?): SAM is trained to answer it by three
        masks (arXiv 2304.02643, appendix A), of which the one that it rates best is taken. A box
        or several points get its single mask.
        """
        marks = [*points, *negatives]
        masks, ratings, _ = self.encode(image).predict(
            point_coords=np.array(marks) if marks else None,
            point_labels=np.repeat([1, 0], [len(points), len(negatives)]) if marks else None,
            box=np.array(box) if box else None,
            multimask_output=box is None and len(marks) == 1,
        )
        region = box or Box(0, 0, image.width, image.height)
        rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[rows, columns] = masks[ratings.argmax()][rows, columns]
        return drop_islands(mask, points=points)


def _fingerprint(image: Image.Image, seen: int) -> bytes:
    """Tell pictures apart; what is lost by shrinking one to the side that SAM sees counts not."""
    small = image.reduce(max(1, max(image.size) // seen))
    return hashlib.sha256(repr(image.size).encode() + small.tobytes()).digest()


def differs_from_border(image: Image.Image) -> np.ndarray:
    """Return where a picture differs from its border's median colour, (H, W) bool."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return _distance(pixels, np.median(border, axis=0)) > BORDER_DIFFERENCE


def _distance(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return how far pixels (H, W, 3) are from a colour (3,): (H, W), summed over RGB, 0..765."""
    total = np.zeros(pixels.shape[:2], dtype=np.int16)
    for channel, level in enumerate(colour.astype(np.int16)):
        total += np.abs(pixels[..., channel].astype(np.int16) - level)
    return total


def foreground_segmenter(
    image: Image.Image, box: Box | None, points: Points = (), negatives: Points = ()
) -> np.ndarray:
    """Return what differs from the border's colour inside the box; needs no weights.

    For plain backgrounds; see `Segmenter`. The largest connected piece counts, or with points those
    that they lie on; their holes are filled. A point that lies on no piece stands for the region
    about it that has its colour. A negative point carves out the region about it that is more like
    it than like any point, in colour and, where colours are alike, in place.
    """
    region = box or Box(0, 0, image.width, image.height)
    inside = image.crop(region)
    on_it, off_it = _within(region, points), _within(region, negatives)
    mask = np.zeros((image.height, image.width), dtype=bool)
    found = _pieces_at(inside, on_it)
    if off_it:
        found = drop_islands(_carved(found, np.asarray(inside), on_it, off_it), points=on_it)
    mask[region.top : region.bottom, region.left : region.right] = found
    return mask


def _within(region: Box, points: Points) -> list[tuple[int, int]]:
    """Return the points (x, y) that lie in a box, from its corner."""
    moved = [(x - region.left, y - region.top) for x, y in points]
    return [(x, y) for x, y in moved if 0 <= x < region.width and 0 <= y < region.height]


def _pieces_at(image: Image.Image, points: Points) -> np.ndarray:
    """Return the pieces that points lie on, (H, W) bool; without points the largest."""
    different = differs_from_border(image)
    pieces, count = label(different)
    chosen = np.zeros(count + 1, dtype=bool)
    if points:
        chosen[[pieces[y, x] for x, y in points]] = True
    elif count:
        chosen[np.bincount(pieces[different]).argmax()] = True
    chosen[0] = False
    found = fill_holes(chosen[pieces])
    pixels = np.asarray(image)
    for x, y in points:
        if not pieces[y, x]:
            alike, _ = label(_distance(pixels, pixels[y, x]) <= BORDER_DIFFERENCE)
            found |= alike == alike[y, x]
    return found


def _carved(mask: np.ndarray, pixels: np.ndarray, points: Points, negatives: Points) -> np.ndarray:
    """Return a mask (H, W) without what is about the negatives and more like them than points."""
    off_it = np.min([_unlikeness(pixels, point) for point in negatives], axis=0)
    on_it = BORDER_DIFFERENCE  # without points: what has a negative one's colour
    if points:
        on_it = np.min([_unlikeness(pixels, point) for point in points], axis=0)
    regions, count = label(mask & (off_it < on_it))
    carved = np.zeros(count + 1, dtype=bool)
    carved[[regions[y, x] for x, y in negatives]] = True
    carved[0] = False
    return mask & ~carved[regions]


def _unlikeness(pixels: np.ndarray, point: Sequence[int]) -> np.ndarray:
    """Return how unlike a pixel (x, y) all others are, (H, W): in colour, and a little in place.

    From one end of the picture to the other counts as much as the least difference that tells a
    foreground from its border.
    """
    x, y = point
    height, width, _ = pixels.shape
    rows, columns = np.ogrid[:height, :width]
    down, right = (rows - y).astype(np.float32), (columns - x).astype(np.float32)
    apart = np.hypot(down, right) / max(height, width)
    return _distance(pixels, pixels[y, x]) + BORDER_DIFFERENCE * apart
