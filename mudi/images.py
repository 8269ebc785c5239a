"""Photos and masks as they enter the program. The axes are defined here and nowhere else.

PIL sizes are (width, height); arrays are (H, W, 3) uint8; masks (H, W) bool; a box is
(left, top, right, bottom) in pixels with `right` and `bottom` exclusive, as `Image.crop` expects.
"""

import logging
import struct
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

from comfyui import placing
from comfyui.resizing import FOREGROUND_LEVEL
from mudi.photo_files import is_raw, reading_help, register_plugins

NOTE = "mudi"  # key of our text in a PNG; a JPEG has it as its comment

# Everything that Pillow's readers raise on files that are not, or no longer, the image they claim,
# and on what such a file says of itself.
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_TURNS = {  # by the EXIF standard's table for its orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTES_A_PIXEL = 20  # at the peak, measured: a transparent photo that is converted and turned
_EXIF_NAME = b"Exif\0\0"
_APP1, _START_OF_SCAN = 0xE1, 0xDA  # JPEG's markers
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}  # EXIF's types of them, as struct has them
# By an ICC profile's colour space: the mode that it describes, and the modes of pictures in it.
_PROFILED = {
    "RGB": ("RGB", ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr", "L", "LA", "La", "1")),
    "GRAY": ("L", ("L", "LA", "La", "1")),
    "CMYK": ("CMYK", ("CMYK",)),
}
_KEPT_TRANSFORMS = 8

logger = logging.getLogger("mudi")


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
    return Box(*placing.tight_box(mask))


def load_rgb(path: Path) -> Image.Image:
    """Read a photo of any mode as RGB in sRGB, turned upright by its own EXIF tag.

    Colours are converted by the profile that the file embeds. Transparency is laid on white,
    16-bit and float greys are scaled to 8 bits.

    Raises:
        ImageError: the file is empty, truncated or no image.
    """
    image = _read(path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    return image.convert("RGB")


def load_mask(path: Path) -> np.ndarray:
    """Read a mask as (H, W) bool, True where `load_gray` is above FOREGROUND_LEVEL.

    Raises:
        ImageError: the file is empty, truncated or no image.
    """
    return load_gray(path) > FOREGROUND_LEVEL


def load_gray(path: Path) -> np.ndarray:
    """Read a mask's levels, (H, W) uint8, turned upright by its own EXIF tag.

    They are its brightness or, of a cut-out (anything with transparent pixels), its opacity.
    """
    image = _read(path)
    if image.has_transparency_data:
        opacity = image.convert("RGBA").getchannel("A")
        if opacity.getextrema() != (255, 255):
            return np.asarray(opacity)
    return np.asarray(image.convert("L"))


def decoding_bytes(path: Path) -> int:
    """Return how much memory `load_rgb` and `load_gray` may take at once; 0 where they fail."""
    try:
        with Image.open(path) as image:
            return _BYTES_A_PIXEL * image.width * image.height
    except _READ_ERRORS:
        return 0


def note_in(path: Path) -> str:
    """Return what `mudi.masks.folder.write_mask` noted in a picture; empty where it did not."""
    try:
        with Image.open(path) as image:
            note = image.info.get(NOTE, image.info.get("comment", ""))
    except _READ_ERRORS:
        return ""
    return note.decode(errors="replace") if isinstance(note, bytes) else str(note)


def _read(path: Path) -> Image.Image:
    """Decode the whole file now (a truncated one fails here), upright, in 8 bits and sRGB."""
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file has zero bytes; copy it again")
        if is_raw(path):
            raise ImageError(reading_help(path))
        register_plugins()
        source, exif = _without_exif(path)
        with Image.open(source) as image:
            _drop_tables(image)
            image.load()
            upright = _upright(image, exif or image.info.get("exif") or b"")
            return _to_srgb(_to_8_bit(upright), image.info.get("icc_profile"), path)
    except ImageError:
        raise
    except _READ_ERRORS as error:
        if told := reading_help(path):
            raise ImageError(told) from error
        reason = "no image format that Pillow knows" if "identify" in str(error) else str(error)
        raise ImageError(f"cannot be read ({reason}); save it again as JPEG or PNG") from error


def _without_exif(path: Path) -> tuple[Path | BytesIO, bytes]:
    """Take a JPEG's EXIF block out of Pillow's sight, which reads a resolution in it unasked.

    Returns:
        What Pillow is to open: the file itself if it is no JPEG with EXIF. And the block.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            return path, b""
        data = bytearray(b"\xff\xd8" + file.read())
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _START_OF_SCAN:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == _APP1 and data[place + 4 : place + 10] == _EXIF_NAME:
            data[place + 4] ^= 0xFF  # no reader knows a block of this name
            return BytesIO(data), bytes(data[place + 10 : end])
        place = end
    return path, b""


def _drop_tables(image: Image.Image) -> None:
    """Forget a TIFF's nested EXIF tables: Pillow reads them before it gives the pixels out."""
    if image.format == "TIFF":
        exif = image.getexif()
        for table in set(ExifTags.IFD) & set(exif):
            del exif[table]


def _upright(image: Image.Image, exif: bytes) -> Image.Image:
    """Turn a loaded picture by its orientation, if it has one that can be read."""
    orientation = _orientation(exif)
    if orientation is None:
        try:  # PNG's and XMP's ways to say it; TIFFs are upright already
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except _READ_ERRORS:
            return image
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _orientation(exif: bytes) -> int | None:
    """Return tag 0x0112 of an EXIF block, or None.

    Pillow's reader stops at the first broken entry, its `exif_transpose` writes all of them anew.
    """
    block = exif.removeprefix(_EXIF_NAME)
    order = ">" if block.startswith(b"MM") else "<"
    try:
        [start] = struct.unpack_from(f"{order}I", block, 4)
        [count] = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", block, entry)
            if tag == ExifTags.Base.Orientation and kind in _WHOLE_NUMBERS:
                return struct.unpack_from(order + _WHOLE_NUMBERS[kind], block, entry + 8)[0]
    except struct.error:  # cut short
        pass
    return None


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 0..255; other modes are 8-bit already."""
    if image.mode == "LAB":
        return image.convert("RGB")  # Pillow has no way from LAB to grey
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.array(image, dtype=np.float32)
    # PNG and TIFF greys are 16-bit whole numbers, float TIFFs are in [0, 1] by convention.
    full_scale = 1.0 if image.mode == "F" and values.max() <= 1.0 else 65535.0
    if image.mode in ("I", "F") and 1.0 < values.max() <= 255.0:
        full_scale = 255.0
    np.clip(values, 0, full_scale, out=values)
    values *= 255.0 / full_scale
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """Convert an 8-bit picture's colours from an ICC profile's to sRGB: RGB or RGBA.

    It comes back as it is where there is no profile, or a broken one; that is told.
    """
    if not profile:
        return image
    try:
        mode, modes, transform = _transform(profile)
        if image.mode not in modes:
            raise ValueError(f"it describes {mode}, the picture is {image.mode}")
        if transform is None:
            return image
        if image.mode == mode and not image.has_transparency_data:
            return transform.apply(image)
        if not image.has_transparency_data:
            return transform.apply(image.convert(mode))
        rgba = image.convert("RGBA")
        converted = transform.apply(rgba.convert(mode))
    except _READ_ERRORS as error:
        _tell_once(f"{path}: its colour profile is left out ({error}); colours may be off")
        return image
    converted.putalpha(rgba.getchannel("A"))
    return converted


@lru_cache(_KEPT_TRANSFORMS)
def _transform(
    profile: bytes,
) -> tuple[str, tuple[str, ...], ImageCms.ImageCmsTransform | None]:
    """Return the mode that a profile describes, the modes that it fits, and the way to sRGB.

    The way is None if it changes no level by more than one: the profile is sRGB itself.
    """
    given = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = given.profile.xcolor_space.strip()
    if space not in _PROFILED:
        raise ValueError(f"it describes {space}")
    mode, modes = _PROFILED[space]
    transform = ImageCms.ImageCmsTransform(
        given,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
        return mode, modes, transform
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * 3), axis=-1).reshape(1, -1, 3)
    probe = Image.fromarray(grid).convert(mode)
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return mode, modes, transform if np.abs(change).max() > 1 else None


@cache
def _tell_once(message: str) -> None:
    logger.warning(message)
