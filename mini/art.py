"""The things of the miniature's world: emoji, recoloured, some wearing an accessory.

A sprite is two layers (body and accessory) of equal size, premultiplied, kept at several sizes so
that drawing one at 64 pixels costs a fraction of a millisecond.
"""

import colorsys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SPRITES_DIR = Path(__file__).parent / "sprites"
EMOJI_SIDE = 256  # px
HEADROOM = 80  # px of the emoji on every side, so that a hat fits on top
SHRINK_STEP = 2**-0.5  # between the sizes that a sprite is kept at; bicubic bridges the rest
SMALLEST_SIDE = 12  # px
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
    """An emoji worn at a `Kind`'s spot, `width` times as wide as the spot.

    lift moves it up, as a share of its own height: a hat stands on its brim, glasses don't.
    """

    codepoint: str
    spot: str
    width: float = 1.0
    lift: float = 0.0


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

# What training scenes may show and what only the evaluated subjects wear have nothing in common.
TRAINING_ACCESSORIES = {
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


@dataclass(frozen=True)
class Paint:
    """How an emoji is recoloured: hue turn in degrees, saturation factor, RGB tint (0 to 1)."""

    turn: float = 0.0
    saturation: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

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


@dataclass(frozen=True)
class Thing:
    """An object as it looks: class, colours, and an accessory with its own colours, or none."""

    noun: str
    paint: Paint = Paint()
    accessory: str | None = None
    accessory_paint: Paint = Paint()


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
    layers = _layers(thing.noun, thing.accessory, side)
    body = _paint(_turn(layers[0], side, angle, flip), thing.paint)
    if len(layers) == 2:
        worn = _paint(_turn(layers[1], side, angle, flip), thing.accessory_paint)
        body = worn + body * (1 - worn[..., 3:] / 255)
    solid = body[..., 3] > 0
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return body[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _turn(layer: Image.Image, side: float, angle: float, flip: bool) -> np.ndarray:
    """Scale, mirror and turn a layer; returns (h, w, 4) float32."""
    scale = side / max(layer.size)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    width = round((abs(cos) * layer.width + abs(sin) * layer.height) * scale)
    height = round((abs(sin) * layer.width + abs(cos) * layer.height) * scale)
    mirror = -1.0 if flip else 1.0
    # Image.transform wants the map from the target's pixels to the layer's.
    a, b, c, d = mirror * cos / scale, -mirror * sin / scale, sin / scale, cos / scale
    across = layer.width / 2 - a * width / 2 - b * height / 2
    down = layer.height / 2 - c * width / 2 - d * height / 2
    turned = layer.transform(
        (max(width, 1), max(height, 1)),
        Image.Transform.AFFINE,
        (a, b, across, c, d, down),
        Image.Resampling.BICUBIC,
    )
    return np.asarray(turned, dtype=np.float32)


def _paint(tile: np.ndarray, paint: Paint) -> np.ndarray:
    """Recolour premultiplied RGBA (h, w, 4): no colour may exceed its alpha."""
    alpha = tile[..., 3:]
    return np.concatenate([(tile[..., :3] @ paint.matrix().T).clip(0, alpha), alpha], axis=-1)


def _layers(noun: str, accessory: str | None, side: float) -> tuple[Image.Image, ...]:
    """Return the smallest kept layers, body first, whose larger side is `side` or more."""
    pyramid = _pyramid(noun, accessory)
    return next((layers for layers in pyramid if max(layers[0].size) >= side), pyramid[-1])


@cache
def _pyramid(noun: str, accessory: str | None) -> list[tuple[Image.Image, ...]]:
    """Return a thing's layers at every kept size, smallest first."""
    layers = _full_layers(noun, accessory)
    kept = [layers]
    while max(kept[-1][0].size) * SHRINK_STEP >= SMALLEST_SIDE:
        scale = SHRINK_STEP ** len(kept)
        size = (max(1, round(layers[0].width * scale)), max(1, round(layers[0].height * scale)))
        kept.append(tuple(layer.resize(size, Image.Resampling.LANCZOS) for layer in layers))
    return kept[::-1]


def _full_layers(noun: str, accessory: str | None) -> tuple[Image.Image, ...]:
    """Read body and accessory, put them in place and crop both to what either fills."""
    kind = KINDS[noun]
    canvas = Image.new("RGBA", (EMOJI_SIDE + 2 * HEADROOM,) * 2)
    body = canvas.copy()
    body.paste(_read(kind.codepoint), (HEADROOM, HEADROOM))
    layers = [body]
    if accessory is not None:
        worn = ACCESSORIES[accessory]
        x, y, spot_width = getattr(kind, worn.spot)
        emoji = _read(worn.codepoint)
        emoji = emoji.crop(emoji.getbbox())
        width = round(spot_width * worn.width)
        height = round(emoji.height * width / emoji.width)
        emoji = emoji.resize((width, height), Image.Resampling.LANCZOS)
        left, top = x - width / 2, y - height * (0.5 + worn.lift)
        layers.append(canvas.copy())
        layers[1].paste(emoji, (HEADROOM + round(left), HEADROOM + round(top)))
    box = Image.alpha_composite(layers[0], layers[-1]).getbbox()
    return tuple(layer.crop(box).convert(LAYER_MODE) for layer in layers)


def _read(codepoint: str) -> Image.Image:
    with Image.open(SPRITES_DIR / f"{codepoint}.webp") as image:
        return image.convert("RGBA")
