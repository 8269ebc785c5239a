"""What is wrong, or unwise, with photos and their masks, found by decoding them once."""

import filecmp
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from comfyui.resizing import thick_share
from mudi.images import FOREGROUND_LEVEL, ImageError, decoding_bytes, load_gray, load_rgb, tight_box
from mudi.islands import ISLAND_SHARE, islands_of

MIN_FOREGROUND = 0.001  # of the pixels; JPEG noise alone can pass FOREGROUND_LEVEL here and there
MAX_FOREGROUND = 0.999
GREY_LEVELS = (64, 191)  # neither black nor white
MUCH_GREY = 0.05  # of the pixels; the edges of a soft mask are less
LARGE_GROWTH = 2.0  # of a subject's box by islands
LITTLE_THICK = 0.5  # of a mask's area
DECODING_BYTES = 2 << 30  # of all photos decoded at once; eight of 12 megapixels
DECODERS = 8

PhotoAndMask = tuple[Path | None, Path | None]


class Findings(NamedTuple):
    """What a photo and its mask are told for: problems forbid training, warnings do not."""

    problems: list[str]
    warnings: list[str]


class Budget:
    """Lets threads take parts of an amount, and wait while there is not enough of it left."""

    def __init__(self, amount: int):
        self._amount = self._left = amount
        self._changed = threading.Condition()

    @contextmanager
    def part(self, amount: int) -> Iterator[None]:
        """Hold so much of it; who wants more than there is waits until all of it is there."""
        amount = min(amount, self._amount)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


def check_photos(files: Iterable[PhotoAndMask], resolution: int | None = None) -> list[Findings]:
    """Decode photos and their masks, several at once; Pillow's decoders release the GIL.

    Args:
        files: photo and mask of each line; None where there is none to look at.
        resolution: side of the training samples (px), if there is to be a training.
    """
    budget = Budget(DECODING_BYTES)
    with ThreadPoolExecutor(max_workers=min(DECODERS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda pair: _look(pair[0], pair[1], resolution, budget), files))


def _look(
    photo: Path | None, mask: Path | None, resolution: int | None, budget: Budget
) -> Findings:
    found = Findings([], [])
    size = levels = None
    if photo is not None:
        try:
            with budget.part(decoding_bytes(photo)):
                size = load_rgb(photo).size
        except ImageError as error:
            found.problems.append(f'photo "{photo.name}" {error}')
    if mask is None:
        return found
    with budget.part(decoding_bytes(mask)):
        try:
            levels = load_gray(mask)
        except ImageError as error:
            found.problems.append(f'mask "{mask.name}" {error}')
            return found
        told = f'mask "{mask.name}"'
        mask_size = (levels.shape[1], levels.shape[0])
        if photo is not None and size is not None and mask_size != size:
            found.problems.append(
                f"{told} is {mask_size[0]}x{mask_size[1]}, its photo "
                f'"{photo.name}" {size[0]}x{size[1]} (after EXIF rotation); make them equal'
            )
        found.problems.extend(f"{told} {what}" for what in mask_problems(levels))
        if not found.problems:
            found.warnings.extend(f"{told} {what}" for what in mask_warnings(levels, resolution))
    if photo is not None and filecmp.cmp(photo, mask, shallow=False):
        found.warnings.append(f"{told} is the photo itself; give what generate_masks.py makes")
    return found


def mask_problems(levels: np.ndarray) -> Iterator[str]:
    """Say why a mask (H, W) uint8 has no subject, or no background."""
    foreground = float((levels > FOREGROUND_LEVEL).mean())
    if foreground < MIN_FOREGROUND:
        yield (
            f"has {foreground:.2%} foreground (pixels above "
            f"{FOREGROUND_LEVEL}; its brightest is {levels.max()}); the subject must be white (255)"
        )
    elif foreground > MAX_FOREGROUND:
        yield (f"is foreground all over ({foreground:.2%}); the background must be black (0)")


def mask_warnings(levels: np.ndarray, resolution: int | None = None) -> Iterator[str]:
    """Say what is unwise about a mask (H, W) uint8 that has a subject and a background.

    Args:
        resolution: side of the training samples (px); None: there is no training.
    """
    grey = float(((levels >= GREY_LEVELS[0]) & (levels <= GREY_LEVELS[1])).mean())
    if grey > MUCH_GREY:
        yield (
            f"is neither black nor white in {grey:.0%} of its pixels; is it a photo, or a cut-out "
            "without transparency? generate_masks.py makes masks"
        )
    mask = levels > FOREGROUND_LEVEL
    islands = islands_of(mask)
    if islands.box_growth > LARGE_GROWTH:
        yield (
            f"has islands of {islands.area:.2%} of its area (each below {ISLAND_SHARE:.0%}) that "
            f"make its box about {islands.box_growth:.0f} times as large, so collages show the "
            "subject so much smaller; paint them black"
        )
    if resolution is not None:
        yield from _thinness(mask, resolution)


def _thinness(mask: np.ndarray, resolution: int) -> Iterator[str]:
    box = tight_box(mask)
    scale = min(1.0, resolution / 2 / box.width, resolution / box.height)
    size = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    thick = thick_share(mask[box.top : box.bottom, box.left : box.right], size)
    if thick < LITTLE_THICK:
        yield (
            f"is thinner than a pixel in {1 - thick:.0%} of its area once its subject fits a "
            f"{resolution}-pixel collage, where little of it will be seen; widen the mask, or "
            "train at a higher --resolution"
        )
