"""Where is the subject? OWLv2 proposes boxes for a text, SAM turns a box into a mask.

The one place where either is called. Boxes are in pixels of the upright picture, masks (H, W) bool.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes, label
from segment_anything import SamPredictor, sam_model_registry
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from mudi.ground.errors import SetupError, first_line
from mudi.images import Box
from mudi.islands import drop_islands
from mudi.masks.args import DETECTOR

KINDS = ("owlv2", "owlvit")  # other detectors are asked and answer in other ways
WIDEN = 0.05  # of the picture's side, on each side of a detected box
BORDER_DIFFERENCE = 40  # summed over RGB, 0..765: less than this is background


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
    """

    def __call__(
        self, image: Image.Image, box: Box | None, points: Sequence[Sequence[int]] = ()
    ) -> np.ndarray: ...


class Detector:
    """An OWLv2 or OWL-ViT checkpoint, by its folder or hub id.

    Raises:
        SegmentError: there is no such checkpoint, it can't be reached, or is of another kind.
    """

    def __init__(self, checkpoint: str = DETECTOR, device: str | torch.device = "cpu"):
        kind = _load_pretrained(AutoConfig, checkpoint).model_type
        if kind not in KINDS:
            raise SegmentError(f"detector {checkpoint}: a {kind}; OWLv2 or OWL-ViT is wanted")
        self._processor = _load_pretrained(AutoProcessor, checkpoint)
        self._model = _load_pretrained(AutoModelForZeroShotObjectDetection, checkpoint)
        self._model.to(device).eval()

    def check(self, queries: Iterable[str]) -> None:
        """Refuse texts that the network can't read.

        Raises:
            SegmentError: one has more tokens than it has places for, 16 in the published ones.
        """
        limit = self._model.config.text_config.max_position_embeddings
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
        ).to(self._model.device)
        found = self._processor.post_process_grounded_object_detection(
            self._model(**inputs),
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
    """Segment Anything from a .pth file, single mask output.

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
        self._predictor = SamPredictor(model.to(device).eval())

    def __call__(
        self, image: Image.Image, box: Box | None, points: Sequence[Sequence[int]] = ()
    ) -> np.ndarray:
        self._predictor.set_image(np.asarray(image))
        masks, _, _ = self._predictor.predict(
            point_coords=np.array(points) if points else None,
            point_labels=np.ones(len(points), dtype=int) if points else None,
            box=np.array(box) if box else None,
            multimask_output=False,
        )
        region = box or Box(0, 0, image.width, image.height)
        rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[rows, columns] = masks[0][rows, columns]
        return drop_islands(mask, points=points)


def differs_from_border(image: Image.Image) -> np.ndarray:
    """Return where a picture differs from its border's median colour, (H, W) bool."""
    pixels = np.asarray(image).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    difference = np.abs(pixels - np.median(border, axis=0).astype(np.int16))
    return difference.sum(axis=2, dtype=np.int16) > BORDER_DIFFERENCE


def foreground_segmenter(
    image: Image.Image, box: Box | None, points: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """Return what differs from the border's colour inside the box; needs no weights.

    For plain backgrounds. The largest connected piece counts, or with points those that they lie
    on; holes are filled.
    """
    region = box or Box(0, 0, image.width, image.height)
    pieces, count = label(differs_from_border(image.crop(region)))
    if points:
        chosen = {pieces[y - region.top, x - region.left] for x, y in points} - {0}
    else:
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        chosen = {int(sizes.argmax()) + 1} if count else set()
    mask = np.zeros((image.height, image.width), dtype=bool)
    inside = binary_fill_holes(np.isin(pieces, list(chosen)))
    mask[region.top : region.bottom, region.left : region.right] = inside
    return mask
