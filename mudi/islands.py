"""Specks in masks: pieces that hold next to no area, and what they do to a subject's box."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import label

from mudi.images import tight_box

ISLAND_SHARE = 0.01  # of a mask's area; a piece of less is an island
_TOUCHING = np.ones((3, 3))  # pixels that meet at a corner belong together
_LOOKED_AT = 512  # px, the longer side of what `box_of_islands` looks at, about
_MOST_REDUCED = 15  # beyond, a single pixel would round to nothing: 255 / 15^2 > 1


class Islands(NamedTuple):
    """What a mask's islands are: share of its area, and its box over that of the rest, >= 1."""

    area: float
    box_growth: float


def drop_islands(
    mask: np.ndarray, share: float = ISLAND_SHARE, points: Iterable[Sequence[int]] = ()
) -> np.ndarray:
    """Return a mask (H, W) bool without its pieces of less than a share of its area.

    The largest piece stays, whatever its share, and those on which a point (x, y) lies.
    """
    pieces, count = label(mask, _TOUCHING)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    areas[0] = 0
    kept = areas >= min(share * areas.sum(), areas.max())
    kept[[pieces[y, x] for x, y in points]] = True
    kept[0] = False
    return kept[pieces]


def islands_of(mask: np.ndarray, share: float = ISLAND_SHARE) -> Islands:
    """Measure the islands of a mask (H, W) bool that has a foreground, on a small copy of it."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    factor = min(_MOST_REDUCED, -(-max(mask.shape) // _LOOKED_AT))
    levels = np.asarray(picture.reduce(factor) if factor > 1 else picture)
    pieces, count = label(levels > 0, _TOUCHING)
    areas = np.bincount(pieces.ravel(), weights=levels.ravel(), minlength=count + 1)
    large = areas >= share * areas.sum()
    large[0] = False
    if not large.any():
        return Islands(0.0, 1.0)
    whole, rest = tight_box(levels > 0), tight_box(large[pieces])
    growth = whole.width * whole.height / (rest.width * rest.height)
    return Islands(float(areas[~large].sum() / areas.sum()), growth)
