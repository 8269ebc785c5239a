"""Pictures and masks at other sizes: one bicubic step, and masks of which something always stays.

Sizes are (width, height), as everywhere in PIL.
"""

import numpy as np
from PIL import Image

FOREGROUND_LEVEL = 128  # JPEG masks ring around 0 and 255; a pixel is foreground above this
KEPT_AREA = 0.9  # of a mask, at least, however thin its parts are


def resize_bicubic(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale (H, W, C) uint8 as Pillow's BICUBIC does but for rounding, several times faster."""
    import torch  # here, as flags and data are checked without it
    from torch.nn.functional import interpolate

    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = interpolate(channels_first, size=size[::-1], mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).contiguous().numpy()


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask (H, W) bool by the area that it covers; see `kept_by`. Not empty if mask isn't.

    Where it enlarges, edges are interpolated.
    """
    levels = _coverage(mask, size, "L")
    if not levels.any():  # all below half a level of 255
        exact = _coverage(mask, size, "F")
        return mask.any() & (exact == exact.max())
    return kept_by(levels)


def kept_by(levels: np.ndarray) -> np.ndarray:
    """Return which pixels of a scaled mask are foreground, (H, W) bool.

    Those of which more than half is covered. Parts thinner than a pixel never cover half of one:
    where that leaves less than KEPT_AREA of the mask's area, the pixels that are covered most are
    added until so much is kept.

    Args:
        levels: (H, W) uint8, how much of each pixel the mask covers.
    """
    kept = levels > FOREGROUND_LEVEL
    enough = KEPT_AREA * levels.sum(dtype=np.int64) / 255
    if np.count_nonzero(kept) >= enough:
        return kept
    at_least = np.bincount(levels.ravel(), minlength=256)[::-1].cumsum()[::-1]
    return levels >= max(1, int(np.flatnonzero(at_least >= enough)[-1]))


def thick_share(mask: np.ndarray, size: tuple[int, int]) -> float:
    """Return which share of a mask's area lies in pixels of that size that are half covered.

    Near 1 for a solid subject, 0 for one that is thinner than a pixel everywhere.
    """
    levels = _coverage(mask, size, "F")
    return float(levels[levels > FOREGROUND_LEVEL].sum() / levels.sum())


def _coverage(mask: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """Return how much of each pixel of that size a mask covers, in 0..255."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    enlarging = size[0] >= picture.width and size[1] >= picture.height
    filtered = Image.Resampling.BILINEAR if enlarging else Image.Resampling.BOX
    return np.asarray(picture.resize(size, filtered))
