"""Specks and holes in masks: what they do to a subject's box, masks without them."""

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
    clean = mask.copy()
    if not mask.any():
        return clean
    box = tight_box(mask)
    inside = clean[box.top : box.bottom, box.left : box.right]
    pieces, count = label(inside, _TOUCHING)
    if count == 1:
        return clean
    areas = np.bincount(pieces[inside], minlength=count + 1)
    kept = areas >= min(share * areas.sum(), areas.max())
    on_it = [(x, y) for x, y in points if mask[y, x]]
    kept[[pieces[y - box.top, x - box.left] for x, y in on_it]] = True
    inside[...] = kept[pieces] & inside
    return clean


def fill_holes(mask: np.ndarray, share: float | None = None) -> np.ndarray:
    """Return a mask (H, W) bool in which no hole is left.

    A hole is background that the mask goes all round: none of it is at the picture's edge.

    Args:
        share: holes of this share of the mask's area or more stay, as the gap between an arm and a
            body is none of the subject; None: all are filled.
    """
    pieces, count = label(~mask)
    edges = pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()
    filled = np.ones(count + 1, dtype=bool)
    filled[np.concatenate(edges)] = False
    if share is not None:
        filled &= np.bincount(pieces.ravel(), minlength=count + 1) < share * mask.sum()
    filled[0] = True  # the mask itself
    return filled[pieces]


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
