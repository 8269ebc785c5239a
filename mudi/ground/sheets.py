"""Contact sheets: pictures in rows, each with its caption, and outlines of masks."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import binary_erosion

OUTLINE = (255, 0, 255)
# Of subjects and curves: Okabe and Ito's, told apart by the colour-blind too; then they recur.
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #b8860b #56b4e9 #7f3fbf #4d4d4d".split()
FRAME = (160, 160, 160)
GAP = 4  # px, around each picture
LETTER_WIDTH = 7  # px, about
TILE = 320  # px, the longest side of a picture on the sheet
TEXT_HEIGHT = 64  # px, below each picture


def contact_sheet(
    images: list[Image.Image], captions: list[str], columns: int = 4, tile: int = TILE
) -> Image.Image:
    """Lay pictures of any sizes on a white sheet, each with its caption below.

    Args:
        tile: longest side of a picture on the sheet (px).

    Raises:
        ValueError: there are no pictures.
    """
    if not images:
        raise ValueError("no pictures to lay on a sheet")
    rows = -(-len(images) // columns)
    height = tile + TEXT_HEIGHT
    sheet = Image.new("RGB", (columns * tile, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns * tile, i // columns * height
        scaled = ImageOps.contain(image, (tile - 2 * GAP, tile - 2 * GAP))
        place = (left + (tile - scaled.width) // 2, top + (tile - scaled.height) // 2)
        sheet.paste(ImageOps.expand(scaled, border=1, fill=FRAME), place)
        text = textwrap.fill(caption, tile // LETTER_WIDTH)
        pen.text((left + GAP, top + tile), text, fill="black", font=font)
    return sheet


def outline(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Draw the edge of mask (H, W) bool into a copy of pixels (H, W, 3) uint8."""
    thickness = max(1, max(mask.shape) // TILE)
    edge = mask & ~binary_erosion(mask, iterations=thickness)
    drawn = pixels.copy()
    drawn[edge] = OUTLINE
    return Image.fromarray(drawn)
