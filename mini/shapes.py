"""What training things wear, drawn: each kind (hat, tie, ...) in several shapes.

The evaluated subjects wear emoji of the same kinds, so that the base knows how a hat sits but has
never seen theirs.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIDE = 256  # px of the square that a shape is drawn in, before it is cropped
OVERSAMPLING = 2
BRIGHT, MIDDLE, DARK = 225, 165, 85  # grey levels, which a paint colours

Pen = ImageDraw.ImageDraw
Points = list[tuple[float, float]]


def hat(pen: Pen, rng: np.random.Generator) -> None:
    """A crown, tapered or not, flat or round, on a brim, with a band or none."""
    top, height, brim = rng.uniform(0.15, 0.75), rng.uniform(0.35, 0.8), rng.uniform(0.65, 1.0)
    base, thick = rng.uniform(0.5, 0.62), rng.uniform(0.08, 0.15)
    upper, lower = 0.9 - height, 0.9 - thick / 2
    sides: Points = [(-base / 2, lower), (-top / 2, upper), (top / 2, upper), (base / 2, lower)]
    _polygon(pen, sides, BRIGHT)
    if rng.random() < 0.5:
        _ellipse(pen, (0, upper), top / 2, 0.08, BRIGHT)
    if rng.random() < 0.6:
        _polygon(pen, [(-base / 2, lower), (-base / 2.2, lower - 0.13),
                       (base / 2.2, lower - 0.13), (base / 2, lower)], DARK)  # fmt: skip
    _ellipse(pen, (0, 0.9 - thick / 2), brim / 2, thick / 2, MIDDLE)


def crown(pen: Pen, rng: np.random.Generator) -> None:
    """A band with three to seven spikes, with or without balls on them."""
    count, depth = int(rng.choice([3, 4, 6, 7])), rng.uniform(0.25, 0.5)
    flare, balls = rng.uniform(0.0, 0.1), rng.random() < 0.5
    tips = np.linspace(-0.4 - flare, 0.4 + flare, count)
    points: Points = [(-0.4, 0.9)]
    for i, x in enumerate(tips):
        points.append((x, 0.65 - depth))
        if i + 1 < count:
            points.append(((x + tips[i + 1]) / 2, 0.65))
    _polygon(pen, [*points, (0.4, 0.9)], BRIGHT)
    _polygon(pen, [(-0.4, 0.9), (-0.4, 0.78), (0.4, 0.78), (0.4, 0.9)], MIDDLE)
    for x in tips if balls else []:
        _ellipse(pen, (x, 0.65 - depth), 0.06, 0.06, MIDDLE)


def glasses(pen: Pen, rng: np.random.Generator) -> None:
    """Two round or square lenses, dark or clear, in a frame."""
    height, round_lens = rng.uniform(0.13, 0.21), rng.random() < 0.5
    frame, lens = rng.uniform(0.035, 0.07), DARK if rng.random() < 0.5 else 245
    _polygon(pen, [(-0.1, 0.46), (0.1, 0.46), (0.1, 0.54), (-0.1, 0.54)], MIDDLE)
    for x in (-0.26, 0.26):
        for grow, level in ((0.0, MIDDLE), (-frame, lens)):
            wide, high = 0.21 + grow, height + grow
            if round_lens:
                _ellipse(pen, (x, 0.5), wide, high, level)
            else:
                corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
                _polygon(pen, [(x + wide * i, 0.5 + high * j) for i, j in corners], level)


def bow(pen: Pen, rng: np.random.Generator) -> None:
    """Two wings and a knot."""
    high, waist, knot = rng.uniform(0.15, 0.32), rng.uniform(0.03, 0.1), rng.uniform(0.07, 0.13)
    for side in (-1, 1):
        _polygon(pen, [(0, 0.5 - waist), (0.45 * side, 0.5 - high), (0.45 * side, 0.5 + high),
                       (0, 0.5 + waist)], BRIGHT)  # fmt: skip
        _ellipse(pen, (0.45 * side, 0.5), 0.04, high, MIDDLE)
    _ellipse(pen, (0, 0.5), knot, knot, DARK)


def tie(pen: Pen, rng: np.random.Generator) -> None:
    """A knot and what hangs from it, plain or striped."""
    wide, long = rng.uniform(0.14, 0.24), rng.uniform(0.5, 0.75)
    end = 0.2 + long
    _polygon(pen, [(-0.06, 0.2), (0.06, 0.2), (wide, end - 0.12), (0, end), (-wide, end - 0.12)],
             BRIGHT)  # fmt: skip
    for y in (0.4, 0.55) if rng.random() < 0.5 else ():
        _polygon(pen, [(-0.1, y), (0.1, y), (0.12, y + 0.07), (-0.12, y + 0.07)], DARK)
    _polygon(pen, [(-0.12, 0.1), (0.12, 0.1), (0.07, 0.24), (-0.07, 0.24)], MIDDLE)


def flower(pen: Pen, rng: np.random.Generator) -> None:
    """Four to nine petals about a middle."""
    count, reach = int(rng.choice([4, 6, 7, 8, 9])), rng.uniform(0.24, 0.3)
    wide, middle = rng.uniform(0.6, 1.1) * np.pi * reach / count, rng.uniform(0.1, 0.16)
    for angle in 2 * np.pi * (np.arange(count) + rng.random()) / count:
        _ellipse(pen, (reach * np.sin(angle), 0.5 + reach * np.cos(angle)), wide, wide, BRIGHT)
    _ellipse(pen, (0, 0.5), middle, middle, DARK)


def scarf(pen: Pen, rng: np.random.Generator) -> None:
    """A band with one end that hangs, with fringes or none."""
    thick, end = rng.uniform(0.1, 0.17), rng.uniform(0.65, 0.95)
    _ellipse(pen, (0, 0.35), 0.48, thick, BRIGHT)
    x = rng.choice([-0.2, 0.2])
    _polygon(pen, [(x - 0.1, 0.35), (x + 0.1, 0.35), (x + 0.13, end), (x - 0.13, end)], MIDDLE)
    if rng.random() < 0.5:
        _polygon(pen, [(x - 0.13, end - 0.1), (x + 0.13, end - 0.1), (x + 0.13, end),
                       (x - 0.13, end)], DARK)  # fmt: skip


SHAPES: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    shape.__name__: shape for shape in (hat, crown, glasses, bow, tie, flower, scarf)
}


def draw_shape(kind: str, number: int) -> Image.Image:
    """Draw the shape of that number of a kind of SHAPES: RGBA, in greys."""
    image = Image.new("RGBA", (SIDE * OVERSAMPLING,) * 2)
    rng = np.random.default_rng([list(SHAPES).index(kind), number])
    SHAPES[kind](ImageDraw.Draw(image), rng)
    return image.reduce(OVERSAMPLING)


def _polygon(pen: Pen, points: Points, level: int) -> None:
    scale = SIDE * OVERSAMPLING
    pen.polygon([((x + 0.5) * scale, y * scale) for x, y in points], fill=(level,) * 3 + (255,))


def _ellipse(pen: Pen, centre: tuple[float, float], wide: float, high: float, level: int) -> None:
    """Draw an ellipse of those half axes; x from the middle, y from the top, in sides."""
    scale, (x, y) = SIDE * OVERSAMPLING, centre
    box = [
        (x + 0.5 - wide) * scale,
        (y - high) * scale,
        (x + 0.5 + wide) * scale,
        (y + high) * scale,
    ]
    pen.ellipse(box, fill=(level,) * 3 + (255,))
