"""Cut-outs on a canvas: crop to the mask, scale, paint into the boxes of a layout.

A cut-out is an array (H, W, 4) uint8: RGB, with what lies around the subject, and its mask as 0 or
255. Sizes are (width, height), a box in pixels is (left, top, right, bottom), right and bottom
exclusive.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .layouts import Layout, UnitBox
from .resizing import kept_by, resize_bicubic, resize_mask

PixelBox = tuple[int, int, int, int]


def tight_box(mask: np.ndarray) -> PixelBox:
    """Return the smallest box holding every True pixel of mask (H, W) bool.

    Raises:
        ValueError: the mask has no True pixel.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        raise ValueError("mask has no foreground pixel")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_out(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Crop a photo (H, W, 3) uint8 to its subject's mask (H, W) bool: a cut-out.

    Raises:
        ValueError: the mask is empty or of another size than the photo.
    """
    if mask.shape != rgb.shape[:2]:
        height, width = rgb.shape[:2]
        raise ValueError(f"mask is {mask.shape[1]}x{mask.shape[0]}, image {width}x{height}")
    left, top, right, bottom = tight_box(mask)
    alpha = mask[top:bottom, left:right].astype(np.uint8) * 255
    return np.dstack([rgb[top:bottom, left:right], alpha])


def resize(cutout: np.ndarray, scale: float) -> np.ndarray:
    """Scale a cut-out in one bicubic step; something of its mask always stays."""
    height, width = cutout.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return cutout
    pixels = resize_bicubic(cutout, size)
    covered = pixels[..., 3].copy()
    mask = kept_by(covered) if covered.any() else resize_mask(cutout[..., 3] > 0, size)
    pixels[..., 3] = mask * np.uint8(255)
    return pixels


def place(
    cutouts: Sequence[np.ndarray],
    layout: Layout,
    size: tuple[int, int],
    background: str = "white",
) -> tuple[Image.Image, np.ndarray, list[PixelBox]]:
    """Paint each cut-out into its box, the back one first.

    A cut-out keeps its own aspect ratio: it is scaled to the largest size that its box holds and
    stands on the middle of the box's lower edge.

    Args:
        size: (width, height) of the canvas (px).
        background: any colour that Pillow knows.

    Returns:
        The canvas (PIL RGB), each subject's pixels that no other hides (N, height, width) bool, and
        where each cut-out stands, in the order they were given.

    Raises:
        ValueError: the layout is for another number of subjects.
    """
    if len(cutouts) != len(layout.boxes):
        raise ValueError(f"{len(cutouts)} cut-outs, but {len(layout.boxes)} boxes in the layout")
    image = Image.new("RGB", size, background)
    visible = np.zeros((len(cutouts), size[1], size[0]), dtype=bool)
    boxes: list[PixelBox] = [(0, 0, 0, 0)] * len(cutouts)
    for i in reversed(layout.front_to_back):
        left, top, right, bottom = _pixel_box(layout.boxes[i], size)
        height, width = cutouts[i].shape[:2]
        placed = resize(cutouts[i], min((right - left) / width, (bottom - top) / height))
        height, width = placed.shape[:2]
        left += (right - left - width) // 2
        top, right = bottom - height, left + width
        mask = placed[..., 3] > 0
        image.paste(
            Image.fromarray(placed).convert("RGB"),
            (left, top, right, bottom),
            Image.fromarray(mask),
        )
        visible[:, top:bottom, left:right] &= ~mask
        visible[i, top:bottom, left:right] = mask
        boxes[i] = (left, top, right, bottom)
    return image, visible, boxes


def _pixel_box(box: UnitBox, size: tuple[int, int]) -> PixelBox:
    """Round a box to whole pixels, at least one each way."""
    left, right = _pixel_span(box.left, box.right, size[0])
    top, bottom = _pixel_span(box.top, box.bottom, size[1])
    return left, top, right, bottom


def _pixel_span(low: float, high: float, length: int) -> tuple[int, int]:
    start = min(round(low * length), length - 1)
    return start, max(round(high * length), start + 1)
