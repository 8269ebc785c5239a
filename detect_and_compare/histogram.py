"""A stand-in for a network: colours alone tell the subjects apart. Needs no weights.

For plain pictures of subjects that differ in colour, and for trying everything else out. It sees
neither shape nor texture, so its scores say little about real photos.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 96  # px; pictures are shrunk to it
HUES, LEVELS = 12, 4  # bins of hue, and each of saturation and brightness
BLUR = 0.7  # bins; a shade on the edge of two bins counts for both
PADDING = 250  # of 255: where all of RGB reach it, the pixel is white padding


class ColourHistogram:
    """Embeds pictures as the square root of their HSV histogram, white left out.

    The cosine of two such embeddings is the histograms' Bhattacharyya coefficient, 0 to 1.
    """

    name = "colours"

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, HUES * LEVELS * LEVELS) float32 of n RGB pictures."""
        return np.stack([_histogram(image) for image in images])


def _histogram(image: Image.Image) -> np.ndarray:
    small = image.copy()
    small.thumbnail((SIDE, SIDE), reducing_gap=3.0)
    pixels = np.asarray(small).reshape(-1, 3)
    coloured = pixels.min(axis=1) < PADDING
    if not coloured.any():
        coloured[:] = True  # an all-white picture is white, not nothing
    hsv = np.asarray(small.convert("HSV")).reshape(-1, 3)[coloured]
    hue, saturation, value = (hsv.T.astype(int) * [[HUES], [LEVELS], [LEVELS]]) // 256
    # The hue of greys is arbitrary: each counts by its saturation, the rest for all hues alike.
    colourful = hsv[:, 1] / 255
    bins = np.zeros((HUES, LEVELS, LEVELS))
    np.add.at(bins, (hue, saturation, value), colourful)
    grey = np.zeros((LEVELS, LEVELS))
    np.add.at(grey, (saturation, value), 1 - colourful)
    bins += grey / HUES
    smooth = gaussian_filter(bins, BLUR, mode=("wrap", "nearest", "nearest"))
    return np.sqrt(smooth / smooth.sum()).ravel().astype(np.float32)
