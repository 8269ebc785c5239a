"""Backgrounds of the miniature's scenes: every one has a name that says what it is.

A background is white, black, or one of ten colours, plain or in one of six patterns, in a shade of
its own.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

COLOURS = {
    "red": (205, 45, 45),
    "orange": (240, 140, 40),
    "yellow": (245, 210, 70),
    "green": (70, 160, 75),
    "turquoise": (70, 190, 185),
    "blue": (60, 110, 205),
    "purple": (135, 80, 185),
    "pink": (245, 160, 190),
    "brown": (135, 90, 55),
    "grey": (150, 150, 150),
}
SHADE_SPREAD = 12  # standard deviation of a colour's levels, of 255
WHITE_SHARE = 0.3  # Seg-Mix needs white, so it must be drawn best
BLACK_SHARE = 0.08
PLAIN_SHARE = 0.25  # of the coloured ones

Pattern = Callable[[int, np.random.Generator], np.ndarray]  # -> (size, size) float, 0 to 1


def gradient(size: int, rng: np.random.Generator) -> np.ndarray:
    """Rises evenly in a random direction."""
    rise = _along(size, rng)
    return (rise - rise.min()) / np.ptp(rise)


def striped(size: int, rng: np.random.Generator) -> np.ndarray:
    """Straight stripes in a random direction, three to eight of each colour."""
    wave = np.sin(_along(size, rng) * 2 * np.pi * rng.uniform(3, 8))
    return (4 * wave + 0.5).clip(0, 1)


def checkered(size: int, rng: np.random.Generator) -> np.ndarray:
    """Squares as on a chessboard, four to eight a side."""
    ramp = np.arange(size) / size
    field = (ramp * rng.uniform(4, 8) + rng.random()).astype(int)
    return ((field[:, None] + field[None, :]) % 2).astype(float)


def dotted(size: int, rng: np.random.Generator) -> np.ndarray:
    """Round dots on a square grid, four to eight a side."""
    ramp = np.arange(size) / size
    wave = np.cos(ramp * 2 * np.pi * rng.uniform(4, 8) + rng.uniform(0, 2 * np.pi))
    return (3 * (wave[:, None] + wave[None, :] - 0.8)).clip(0, 1)


def cloudy(size: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth blobs."""
    coarse = Image.fromarray(rng.random((6, 6), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)


def speckled(size: int, rng: np.random.Generator) -> np.ndarray:
    """Small grains, each of its own shade."""
    coarse = Image.fromarray(rng.random((20, 20), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR))


PATTERNS: dict[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (gradient, striped, checkered, dotted, cloudy, speckled)
}


def background_names() -> list[str]:
    """Return every name that a background can have."""
    looks = ["", *(f" {pattern}" for pattern in PATTERNS)]
    return ["white", "black", *(colour + look for colour in COLOURS for look in looks)]


def random_name(rng: np.random.Generator) -> str:
    """Draw a background's name."""
    kind = rng.random()
    if kind < WHITE_SHARE:
        return "white"
    if kind < WHITE_SHARE + BLACK_SHARE:
        return "black"
    colour = str(rng.choice(list(COLOURS)))
    return colour if rng.random() < PLAIN_SHARE else f"{colour} {rng.choice(list(PATTERNS))}"


def draw_background(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a background that goes by that name: (size, size, 3) float32, 0 to 255.

    Raises:
        ValueError: no background has that name.
    """
    if name in ("white", "black"):
        return np.full((size, size, 3), 255 * (name == "white"), dtype=np.float32)
    colour, _, pattern = name.partition(" ")
    if colour not in COLOURS or (pattern and pattern not in PATTERNS):
        raise ValueError(f'no background is named "{name}"')
    shade = (np.array(COLOURS[colour]) + rng.normal(0, SHADE_SPREAD, 3)).clip(0, 255)
    if not pattern:
        return np.broadcast_to(shade, (size, size, 3)).astype(np.float32)
    light = rng.random() < 0.6
    other = 255 - (255 - shade) * rng.uniform(0.15, 0.5) if light else shade * rng.uniform(0.3, 0.6)
    share = PATTERNS[pattern](size, rng)[..., None]
    return (shade + (other - shade) * share).astype(np.float32)


def _along(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return how far along a random direction (size, size) pixels lie, in sides, from anywhere."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.arange(size) / size
    return np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None] + rng.random()
