"""The things of the miniature's world: emoji, recoloured, some wearing an accessory.

Body and accessory are layers, premultiplied and kept at several sizes, so that drawing a thing at
64 pixels costs a fraction of a millisecond.
"""

import colorsys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mini.shapes import SHAPES, draw_shape
from mudi.images import Box, tight_box

SPRITES_DIR = Path(__file__).parent / "sprites"
MARGIN = 12  # px of nothing about a layer, so that its edges stay soft when it is turned
SHRINK_STEP = 2**-0.5  # between the sizes that a sprite is kept at; bicubic bridges the rest
SMALLEST_SIDE = 12  # px
SOLID_ALPHA = 128  # of 255; from here on a pixel tells of a picture's colours
LAYER_MODE = "RGBa"  # premultiplied: layers are scaled and mixed without fringes

Spot = tuple[int, int, int]  # centre x, y and width of an accessory, px of the emoji


@dataclass(frozen=True)
class Kind:
    """An object class: its emoji, and where it wears what.

    head is where a hat's brim comes to lie, eyes the middle of glasses, chest that of a bow.
    """

    codepoint: str
    head: Spot
    eyes: Spot
    chest: Spot


@dataclass(frozen=True)
class Accessory:
    """An emoji or a shape worn at a `Kind`'s spot, `width` times as wide as the spot.

    lift moves it up, as a share of its own height: a hat stands on its brim, glasses don't.
    codepoint is the emoji's; without one it is the shape of that number of its kind.
    """

    codepoint: str | None
    spot: str
    width: float = 1.0
    lift: float = 0.0
    kind: str = ""
    number: int = 0


KINDS = {
    "robot": Kind("1f916", (128, 58, 112), (128, 100, 130), (128, 222, 84)),
    "teddy bear": Kind("1f9f8", (128, 34, 84), (128, 68, 76), (128, 138, 74)),
    "fox": Kind("1f98a", (128, 80, 100), (128, 134, 124), (128, 222, 84)),
    "cat": Kind("1f431", (128, 86, 100), (128, 134, 130), (128, 226, 84)),
    "dog": Kind("1f436", (128, 50, 104), (128, 100, 112), (128, 214, 84)),
    "frog": Kind("1f438", (128, 72, 86), (128, 76, 190), (128, 216, 90)),
    "panda": Kind("1f43c", (128, 66, 108), (128, 134, 130), (128, 222, 88)),
    "rabbit": Kind("1f430", (128, 108, 84), (128, 156, 108), (128, 226, 84)),
    "owl": Kind("1f989", (128, 44, 104), (128, 74, 132), (128, 146, 76)),
    "penguin": Kind("1f427", (128, 66, 80), (128, 96, 78), (128, 142, 70)),
    "duck": Kind("1f986", (80, 36, 70), (70, 54, 70), (92, 120, 70)),
    "octopus": Kind("1f419", (128, 44, 108), (128, 116, 132), (128, 166, 78)),
    "car": Kind("1f697", (146, 98, 100), (146, 124, 110), (128, 196, 70)),
    "rocket": Kind("1f680", (196, 64, 76), (164, 92, 80), (124, 140, 76)),
    "mushroom": Kind("1f344", (128, 48, 100), (128, 158, 84), (128, 196, 70)),
    "cactus": Kind("1f335", (128, 32, 78), (128, 74, 84), (128, 130, 76)),
}

# How each kind of shape is worn: spot, width, lift.
WORN = {
    "hat": ("head", 1.25, 0.4),
    "crown": ("head", 0.95, 0.4),
    "glasses": ("eyes", 1.1, 0.0),
    "bow": ("chest", 1.1, 0.0),
    "tie": ("chest", 0.6, -0.2),
    "flower": ("chest", 0.95, 0.0),
    "scarf": ("chest", 1.3, -0.1),
}
NUM_SHAPES = 12  # of each kind

# What training scenes may show and what only the evaluated subjects wear have nothing in common
# but their kinds.
TRAINING_ACCESSORIES = {
    f"{kind} {number}": Accessory(None, *WORN[kind], kind, number)
    for kind in SHAPES
    for number in range(NUM_SHAPES)
} | {
    "star": Accessory("2b50", "chest", 0.9),
    "heart": Accessory("2764-fe0f", "chest", 0.9),
    "bell": Accessory("1f514", "chest", 0.8),
    "helmet": Accessory("26d1-fe0f", "head", 1.0, 0.3),
}
SUBJECT_ACCESSORIES = {
    "bow": Accessory("1f380", "chest", 1.1),
    "top hat": Accessory("1f3a9", "head", 1.0, 0.45),
    "glasses": Accessory("1f453", "eyes", 1.1),
    "crown": Accessory("1f451", "head", 1.0, 0.4),
    "cap": Accessory("1f9e2", "head", 1.0, 0.35),
    "sun hat": Accessory("1f452", "head", 1.3, 0.35),
    "flower": Accessory("1f338", "chest", 1.0),
}
ACCESSORIES = TRAINING_ACCESSORIES | SUBJECT_ACCESSORIES

# What colour words mean: RGB, 0 to 1, of a thing's bright parts.
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "orange": (1.00, 0.55, 0.10),
    "yellow": (1.00, 0.90, 0.20),
    "green": (0.20, 0.70, 0.25),
    "turquoise": (0.25, 0.85, 0.80),
    "blue": (0.20, 0.35, 0.95),
    "purple": (0.55, 0.20, 0.75),
    "pink": (1.00, 0.60, 0.80),
    "brown": (0.50, 0.30, 0.15),
    "grey": (0.62, 0.62, 0.62),
}
COLOUR_SPREAD = 0.04  # standard deviation of a named colour's channels
KEPT_SATURATION = (0.05, 0.25)  # of an emoji's own colours under a named one
BRIGHT_SHARE = 0.7  # of a layer's levels lie below what a named colour is reached at


@dataclass(frozen=True)
class Paint:
    """How an emoji is recoloured: hue turn in degrees, saturation factor, RGB tint (0 to 1).

    A paint with a name is of that colour; the layer's levels are stretched first, so that the tint
    is what its bright parts become.
    """

    turn: float = 0.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    name: str = ""

    def matrix(self) -> np.ndarray:
        """Return the (3, 3) float32 matrix that maps RGB columns.

        The hue is turned, and the saturation scaled, about the grey axis.
        """
        angle, grey = np.radians(self.turn), np.full((3, 3), 1 / 3)
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
        turned = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross
        mixed = grey + self.saturation * turned
        return (np.array(self.tint)[:, None] * mixed).astype(np.float32)


def random_paint(rng: np.random.Generator) -> Paint:
    """Draw any hue, a tint that colours grey emoji too, and a brightness."""
    strength, brightness = rng.uniform(0, 0.6), rng.uniform(0.75, 1.1)
    pure = colorsys.hsv_to_rgb(rng.random(), 1.0, 1.0)
    red, green, blue = (brightness * (1 - strength + strength * level) for level in pure)
    return Paint(rng.uniform(0, 360), rng.uniform(0.5, 1.4), (red, green, blue))


def named_paint(colour: str, rng: np.random.Generator) -> Paint:
    """Draw a shade of a colour of COLOURS, for emoji of any colour."""
    shade = np.array(COLOURS[colour]) + rng.normal(0, COLOUR_SPREAD, 3)
    red, green, blue = (shade.clip(0.02, 1) * rng.uniform(0.85, 1.1)).tolist()
    return Paint(0.0, rng.uniform(*KEPT_SATURATION), (red, green, blue), colour)


@dataclass(frozen=True)
class Thing:
    """An object as it looks: class, colours, and an accessory with its own colours, or none.

    With bands, the body is cut across into so many of equal height, painted in turn with paint,
    from the top, and with second_paint.
    """

    noun: str
    paint: Paint = Paint()
    accessory: str | None = None
    accessory_paint: Paint = Paint()
    second_paint: Paint = Paint()
    bands: int = 1


def draw(thing: Thing, side: float, angle: float, flip: bool) -> np.ndarray:
    """Draw a thing whose larger side is `side` px, mirrored or not, turned by angle.

    Args:
        thing: what to draw.
        side: larger side before it is turned (px).
        angle: degrees, counter-clockwise.
        flip: mirror it left to right.

    Returns:
        (h, w, 4) float32, 0 to 255, premultiplied RGBA, cropped to what is not transparent.
    """
    layers, box = _place(thing.noun, thing.accessory)
    shape, to_box = _mapping(box, side, angle, flip)
    tile = _draw_layer(layers[0], shape, to_box)
    gain = layers[0].gain
    body = _paint(tile, thing.paint, gain)
    if thing.bands > 1:
        share = _bands(layers[0], shape, to_box, thing.bands)[..., None]
        body = body * (1 - share) + share * _paint(tile, thing.second_paint, gain)
    for worn in layers[1:]:
        over = _paint(_draw_layer(worn, shape, to_box), thing.accessory_paint, worn.gain)
        body = over + body * (1 - over[..., 3:] / 255)
    solid = body[..., 3] > 0
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return body[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, px of the emoji
Affine = tuple[float, float, float, float, float, float]  # target's pixel -> px of the emoji


@dataclass(frozen=True)
class Layer:
    """A picture at several sizes, smallest first, and the rectangle that it fills."""

    pictures: tuple[Image.Image, ...]
    rectangle: Rectangle
    gain: float


def _mapping(
    box: Rectangle, side: float, angle: float, flip: bool
) -> tuple[tuple[int, int], Affine]:
    """Scale, mirror and turn a box to a larger side of `side`: the target's size, and its map."""
    left, top, right, bottom = box
    scale = side / max(right - left, bottom - top)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    width = round((abs(cos) * (right - left) + abs(sin) * (bottom - top)) * scale)
    height = round((abs(sin) * (right - left) + abs(cos) * (bottom - top)) * scale)
    mirror = -1.0 if flip else 1.0
    a, b, c, d = mirror * cos / scale, -mirror * sin / scale, sin / scale, cos / scale
    across = (left + right) / 2 - a * width / 2 - b * height / 2
    down = (top + bottom) / 2 - c * width / 2 - d * height / 2
    return (max(width, 1), max(height, 1)), (a, b, across, c, d, down)


def _draw_layer(layer: Layer, size: tuple[int, int], to_emoji: Affine) -> np.ndarray:
    """Draw the smallest picture that is large enough: (h, w, 4) float32."""
    left, top, right, _ = layer.rectangle
    a, b, across, c, d, down = to_emoji
    needed = (right - left) / np.hypot(a, c)
    picture = next((p for p in layer.pictures if p.width >= needed), layer.pictures[-1])
    scale = picture.width / (right - left)
    coefficients = (a, b, across - left, c, d, down - top)
    turned = picture.transform(
        size,
        Image.Transform.AFFINE,
        tuple(scale * x for x in coefficients),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(turned, dtype=np.float32)


def _bands(layer: Layer, size: tuple[int, int], to_emoji: Affine, count: int) -> np.ndarray:
    """Return how much of each pixel lies in every second band: (h, w) float32, 0 to 1."""
    _, top, _, bottom = layer.rectangle
    _, _, _, c, d, down = to_emoji
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    height = (bottom - top - 2 * MARGIN) / count  # a body lies at scale 1
    across = (c * x[None, :] + d * y[:, None] + down - top - MARGIN) / height
    across = across.clip(0.5, count - 0.5)  # the outer bands have one edge only
    from_middle = np.abs(across % 2 - 1.5)  # of a second band, in bands; its edges lie at 0.5
    from_middle = np.minimum(from_middle, 2 - from_middle)
    soft = np.hypot(c, d) / height
    return ((0.5 - from_middle) / soft + 0.5).clip(0, 1).astype(np.float32)


def _paint(tile: np.ndarray, paint: Paint, gain: float) -> np.ndarray:
    """Recolour premultiplied RGBA (h, w, 4): no colour may exceed its alpha."""
    alpha = tile[..., 3:]
    matrix = paint.matrix() * (gain if paint.name else 1.0)
    return np.concatenate([(tile[..., :3] @ matrix.T).clip(0, alpha), alpha], axis=-1)


@cache
def _place(noun: str, accessory: str | None) -> tuple[tuple[Layer, ...], Rectangle]:
    """Return a thing's layers, body first, and the box of both."""
    kind = KINDS[noun]
    body = _layer(kind.codepoint, "", 0, 1.0, (0.0, 0.0), (0.0, 0.0))
    if accessory is None:
        return (body,), _without_margin(body)
    worn = ACCESSORIES[accessory]
    x, y, spot_width = getattr(kind, worn.spot)
    _, box, _ = _pyramid(worn.codepoint, worn.kind, worn.number)
    scale = spot_width * worn.width / (box[2] - box[0])
    shift = 0.5, 0.5 + worn.lift
    layers = body, _layer(worn.codepoint, worn.kind, worn.number, scale, (x, y), shift)
    boxes = np.array([_without_margin(layer) for layer in layers])
    low, high = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    return layers, (low[0], low[1], high[0], high[1])


def _without_margin(layer: Layer) -> Rectangle:
    left, top, right, bottom = layer.rectangle
    margin = MARGIN * (right - left) / layer.pictures[-1].width
    return left + margin, top + margin, right - margin, bottom - margin


def _layer(
    codepoint: str | None,
    kind: str,
    number: int,
    scale: float,
    at: tuple[float, float],
    anchor: tuple[float, float],
) -> Layer:
    """Lay a picture, scaled, with its anchor (shares of its width and height) at a place.

    An anchor of (0, 0) is the corner of the whole picture, any other of what is not transparent.
    """
    pictures, box, gain = _pyramid(codepoint, kind, number)
    left, top = (at[0], at[1]) if anchor == (0.0, 0.0) else (
        at[0] - scale * (box[0] + anchor[0] * (box[2] - box[0])),
        at[1] - scale * (box[1] + anchor[1] * (box[3] - box[1])),
    )  # fmt: skip
    rectangle = (
        left + scale * (box[0] - MARGIN),
        top + scale * (box[1] - MARGIN),
        left + scale * (box[2] + MARGIN),
        top + scale * (box[3] + MARGIN),
    )
    return Layer(pictures, rectangle, gain)


@cache
def _pyramid(
    codepoint: str | None, kind: str, number: int
) -> tuple[tuple[Image.Image, ...], Box, float]:
    """Return an emoji or a shape at several sizes, with a margin, its box, and its gain.

    The gain makes its bright parts white.
    """
    picture = _read(codepoint) if codepoint else draw_shape(kind, number)
    box = tight_box(np.asarray(picture)[..., 3] > 0)
    full = Image.new("RGBA", (box[2] - box[0] + 2 * MARGIN, box[3] - box[1] + 2 * MARGIN))
    full.paste(picture.crop(box), (MARGIN, MARGIN))
    kept = [full.convert(LAYER_MODE)]
    while max(kept[-1].size) * SHRINK_STEP >= SMALLEST_SIDE:
        factor = SHRINK_STEP ** len(kept)
        size = max(1, round(full.width * factor)), max(1, round(full.height * factor))
        kept.append(kept[0].resize(size, Image.Resampling.LANCZOS))
    levels = np.asarray(full, dtype=np.float32)
    grey = levels[..., :3].mean(axis=-1)[levels[..., 3] > SOLID_ALPHA]
    return tuple(kept[::-1]), box, 255 / max(float(np.quantile(grey, BRIGHT_SHARE)), 1.0)


def _read(codepoint: str) -> Image.Image:
    with Image.open(SPRITES_DIR / f"{codepoint}.webp") as image:
        return image.convert("RGBA")
