"""Photos made on the fly: as large as a phone's, and about as long to decode."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mudi.ground.files import write_records

ASPECT = 4 / 3
QUALITY = 90  # of the JPEG; a 12-megapixel photo then takes 1.7 MB, 60 ms to decode
GRAIN = 4.0  # standard deviation of the sensor noise (0..255)
TILE = 512  # px, side of the noise pattern
TOKENS = "olis hta pll vrn zul".split()


def size_of(megapixels: float) -> tuple[int, int]:
    """Return (width, height) of a photo of that many million pixels: 12.2 gives 4032 x 3024."""
    height = math.floor(math.sqrt(megapixels * 1e6 / ASPECT))
    return round(height * ASPECT), height


def write_folder(
    folder: Path, megapixels: float, photos: int = 5, subjects: int = 2, distinct: int = 5
) -> Path:
    """Write a data folder of that many photos a subject, with masks and metadata.jsonl.

    Only `distinct` photos a subject are files of their own; the rest are links to them, which the
    program cannot know, so that a thousand photos need no gigabytes here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {chr(ord("a") + i): f"{TOKENS[i % len(TOKENS)]} toy {i}" for i in range(subjects)}
    lines: list[dict] = [{"id": names}]
    for subject, name in names.items():
        for i in range(photos):
            photo, mask = f"{subject}{i:04}.jpg", f"mask_{subject}{i:04}.png"
            if i < distinct:
                image, where = draw_photo(megapixels, seed=100 * ord(subject) + i)
                image.save(folder / photo, quality=QUALITY)
                where.save(folder / mask)
            else:
                (folder / photo).symlink_to(f"{subject}{i % distinct:04}.jpg")
                (folder / mask).symlink_to(f"mask_{subject}{i % distinct:04}.png")
            text = f"A photo of a {name} on a table, number {i % distinct}."
            lines.append({"id": subject, "file_name": photo, "mask_path": mask, "text": text})
    write_records(folder / "metadata.jsonl", lines)
    return folder


def draw_photo(megapixels: float, seed: int) -> tuple[Image.Image, Image.Image]:
    """Draw a photo (PIL RGB) and its mask (PIL L): an ellipse on soft colours, with grain."""
    rng = np.random.default_rng(seed)
    width, height = size = size_of(megapixels)
    colours = rng.integers(30, 226, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)
    mask = Image.new("L", size)
    left, top = rng.uniform(0.1, 0.3) * width, rng.uniform(0.05, 0.2) * height
    box = (left, top, left + rng.uniform(0.4, 0.6) * width, top + rng.uniform(0.6, 0.75) * height)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    pattern = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    image.paste(pattern.resize(size, Image.Resampling.BICUBIC), mask=mask)
    return _grained(image, rng), mask


def _grained(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    tile = rng.normal(0, GRAIN, (TILE, TILE, 3)).astype(np.int16)
    repeats = (-(-image.height // TILE), -(-image.width // TILE), 1)
    grain = np.tile(tile, repeats)[: image.height, : image.width]
    pixels = np.asarray(image).astype(np.int16) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
