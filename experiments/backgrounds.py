"""Which colour a picture of the miniature's world has behind its subjects; needs no weights."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mini.backgrounds import background_names, draw_background
from mini.world import SIZE

EXAMPLES = 24  # of each background
NEIGHBOURS = 5
MIN_SEEN = 0.05  # of the pixels; with less outside the boxes, the picture's edge is looked at


def colour_of(background: str) -> str:
    """Return the colour in a background's name: "green" of "green striped"."""
    return background.split()[0]


def asked_background(prompt: str) -> str:
    """Return the world's background that a prompt names; "" where it names none."""
    named = [name for name in background_names() if prompt.endswith(f" {name} background")]
    return max(named, key=len, default="")


def asked_colour(prompt: str) -> str | None:
    """Return the colour of the world's background that a prompt names; None: it names none."""
    return colour_of(asked_background(prompt)) if asked_background(prompt) else None


class BackgroundJudge:
    """Names the colour whose backgrounds are most alike in mean and spread of their pixels."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        names = [name for name in background_names() for _ in range(EXAMPLES)]
        everywhere = np.ones((SIZE, SIZE), bool)
        self._colours = [colour_of(name) for name in names]
        self._features = np.stack(
            [_features(draw_background(name, SIZE, rng), everywhere) for name in names]
        )

    def __call__(self, image: Image.Image, boxes: Sequence[Sequence[float]] = ()) -> str:
        """Return the colour behind what stands in boxes (left, top, right, bottom; px)."""
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
        seen = np.ones(pixels.shape[:2], bool)
        for left, top, right, bottom in boxes:
            seen[int(top) : int(bottom), int(left) : int(right)] = False
        if seen.mean() < MIN_SEEN:
            seen[:] = False
            seen[[0, -1]] = seen[:, [0, -1]] = True
        distances = np.linalg.norm(self._features - _features(pixels, seen), axis=1)
        nearest = np.argsort(distances)[:NEIGHBOURS]
        return Counter(self._colours[i] for i in nearest).most_common(1)[0][0]


def _features(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation of the channels (6,) of the pixels that are seen."""
    chosen = pixels[seen]
    return np.concatenate([chosen.mean(0), chosen.std(0)])
