"""Photos and masks as they enter the program. The axes are defined here and nowhere else.

PIL sizes are (width, height); arrays are (H, W, 3) uint8; masks (H, W) bool; a box is
(left, top, right, bottom) in pixels with `right` and `bottom` exclusive, as `Image.crop` expects.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

FOREGROUND_LEVEL = 128  # JPEG masks ring around 0 and 255; a pixel is foreground above this

# Everything that Pillow's readers raise on files that are not, or no longer, the image they claim.
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_HEIC_SUFFIXES = {".heic", ".heif", ".avif"}


class ImageError(ValueError):
    """A file could not be read as an image; the message says why and what to do."""


class Box(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def tight_box(mask: np.ndarray) -> Box:
    """Return the smallest box holding every True pixel of mask (H, W) bool.

    Raises:
        ValueError: the mask has no True pixel.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        raise ValueError("mask has no foreground pixel")
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def load_rgb(path: Path) -> Image.Image:
    """Read a photo of any mode as RGB, turned upright by its own EXIF tag.

    Transparency is laid on white, 16-bit and float greys are scaled to 8 bits.

    Raises:
        ImageError: the file is empty, truncated or no image.
    """
    return _over(_read(path), background="white").convert("RGB")


def load_mask(path: Path) -> np.ndarray:
    """Read a mask as (H, W) bool, True where it is brighter than FOREGROUND_LEVEL.

    The mask's own EXIF tag turns it; transparency counts as background.

    Raises:
        ImageError: the file is empty, truncated or no image.
    """
    return load_gray(path) > FOREGROUND_LEVEL


def load_gray(path: Path) -> np.ndarray:
    """Read an image as brightness (H, W) uint8; see `load_mask` for what is done to it."""
    return np.asarray(_over(_read(path), background="black").convert("L"))


def _read(path: Path) -> Image.Image:
    """Decode the whole file now (a truncated one fails here) and apply its EXIF rotation."""
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file has zero bytes; copy it again")
        with Image.open(path) as image:
            image.load()
            return _to_8_bit(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except _READ_ERRORS as error:
        if path.suffix.lower() in _HEIC_SUFFIXES:
            raise ImageError(f"{path.suffix} is not read here; save it as JPEG or PNG") from error
        reason = "no image format that Pillow knows" if "identify" in str(error) else str(error)
        raise ImageError(f"cannot be read ({reason}); save it again as JPEG or PNG") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 0..255; other modes are 8-bit already."""
    if image.mode == "LAB":
        return image.convert("RGB")  # Pillow has no way from LAB to grey
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    # PNG and TIFF greys are 16-bit whole numbers, float TIFFs are in [0, 1] by convention.
    full_scale = 1.0 if image.mode == "F" and values.max() <= 1.0 else 65535.0
    if image.mode in ("I", "F") and 1.0 < values.max() <= 255.0:
        full_scale = 255.0
    return Image.fromarray(np.rint(values.clip(0, full_scale) * (255.0 / full_scale)).astype("u1"))


def _over(image: Image.Image, background: str) -> Image.Image:
    """Lay an image that has any transparency on a plain background."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
