"""Instances: particular things, seen again and again, for those who must tell them apart.

An instance is a class with a particular colour or two, and what it wears or carries, if anything.
What the evaluated subjects wear is not in any training data, and four training accessories are too
few to learn what wearing is; so here many instances carry a badge, which is any small coloured
shape.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import map_coordinates

from mini.art import (
    KEPT_SATURATION,
    KINDS,
    SUBJECT_ACCESSORIES,
    TRAINING_ACCESSORIES,
    Paint,
    Thing,
    draw,
    random_paint,
)
from mini.backgrounds import random_name
from mini.cast import STRIPED_SHARE, STRIPES
from mini.world import SIZE, arrange

PLAIN_SHARE = 0.5  # of the paints, under which little of an emoji's own colours shows
PLAIN = "plain"  # their name
SMALLEST_SHRINK = 0.6  # of the things in a scene, against the world's training scenes
BADGE_SIDES = (0.2, 0.5)  # share of the instance's side
BADGE_REACH = ((-0.3, 0.3), (-0.5, 0.4))  # of its centre across and down, in sides from the middle
MAX_CORNERS = 8
OVERSAMPLING = 4  # of a badge's pixels, for soft edges
MAX_BLUR = 1.2  # px, standard deviation; a small VAE loses about that much
MAX_RAGGEDNESS = 2.5  # px, standard deviation
FACET_SHARE, FACETS = 0.6, (3, 5)  # of what looks generated; sides of a median filter, px
MAX_BLOTCHES, MAX_NOISE = 30.0, 8.0  # standard deviations, of 255
VIVIDNESS, CONTRAST = (0.8, 1.4), (0.8, 1.5)  # factors, of a colour and of all; guidance adds both
WAVES = (8, 19)  # fewest and most blotches and bends along a side
COLOUR_SPREAD = (
    0.04  # standard deviation of a channel's gain, and of the lift of all as a share of white
)
LOOK_SIDE = 24  # px; at this size two instances are compared
LEAST_DIFFERENCE = 14.0  # of 255, mean over a drawing's pixels; less could be one instance twice

Spot = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Badge:
    """A coloured shape, one of two colours inside the other.

    Attributes:
        corners: in sides of the instance, from its middle, x to the right and y down.
        fill, edge: RGB, 0 to 255.
    """

    corners: tuple[Spot, ...]
    fill: Colour
    edge: Colour


@dataclass(frozen=True)
class Instance:
    """A thing, with a badge or without."""

    thing: Thing
    badge: Badge | None = None


@dataclass(frozen=True)
class Wardrobe:
    """What instances wear: one of the accessories, a badge, or, for the rest, nothing.

    And how many bodies have two colours, in halves or stripes; the second world's subjects all do.
    """

    accessories: Sequence[str]
    accessory_share: float
    badge_share: float
    two_colours_share: float = 0.5


TRAINING = Wardrobe(tuple(TRAINING_ACCESSORIES), accessory_share=0.3, badge_share=0.4)
HELD_OUT = Wardrobe(tuple(SUBJECT_ACCESSORIES), accessory_share=1.0, badge_share=0.0)


def any_paint(rng: np.random.Generator) -> Paint:
    """Draw a paint that turns an emoji's own colours, or one of any one colour in their place.

    A named colour and a subject's shade are of the second kind.
    """
    if rng.random() >= PLAIN_SHARE:
        return random_paint(rng)
    tint = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 0.5, rng.uniform(0.25, 1))
    return Paint(0.0, rng.uniform(*KEPT_SATURATION), tint, PLAIN)


def random_instance(
    rng: np.random.Generator, wardrobe: Wardrobe, noun: str | None = None
) -> Instance:
    """Draw how an instance looks, of any class if none is given."""
    body = random_body(noun or str(rng.choice(list(KINDS))), rng, wardrobe.two_colours_share)
    return dress(body, rng, wardrobe)


def random_body(noun: str, rng: np.random.Generator, two_colours_share: float) -> Thing:
    """Draw a thing of any one colour or any two, with nothing on."""
    body = Thing(noun, any_paint(rng))
    if rng.random() >= two_colours_share:
        return body
    bands = STRIPES if rng.random() < STRIPED_SHARE else 2
    return replace(body, second_paint=any_paint(rng), bands=bands)


def dress(thing: Thing, rng: np.random.Generator, wardrobe: Wardrobe) -> Instance:
    """Return a thing with something else on, or nothing."""
    bare = replace(thing, accessory=None, accessory_paint=Paint())
    choice = rng.random()
    if choice < wardrobe.accessory_share:
        worn = str(rng.choice(wardrobe.accessories))
        return Instance(replace(bare, accessory=worn, accessory_paint=any_paint(rng)))
    if choice < wardrobe.accessory_share + wardrobe.badge_share:
        return Instance(bare, random_badge(rng))
    return Instance(bare)


def random_badge(rng: np.random.Generator) -> Badge:
    """Draw a star-shaped polygon, round or long, somewhere on the instance."""
    count = int(rng.integers(3, MAX_CORNERS + 1))
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    radii = rng.uniform(*BADGE_SIDES) / 2 * rng.uniform(0.5, 1, count)
    x = rng.uniform(*BADGE_REACH[0]) + radii * np.cos(angles) * rng.uniform(0.6, 1.4)
    y = rng.uniform(*BADGE_REACH[1]) + radii * np.sin(angles) * rng.uniform(0.6, 1.4)
    corners = tuple(zip(x.tolist(), y.tolist(), strict=True))
    return Badge(corners, _random_colour(rng), _random_colour(rng))


def _random_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def family(rng: np.random.Generator, wardrobe: Wardrobe) -> list[Instance]:
    """Draw an instance and four that could be taken for it, no two alike.

    They are: its class in other colours, its colours on another class, itself with something else
    on, and a mixture of it and a fifth.
    """
    first = random_instance(rng, wardrobe)
    thing = first.thing
    others = [noun for noun in KINDS if noun != thing.noun]

    def recoloured() -> Instance:
        second = any_paint(rng) if rng.random() < 0.5 else thing.second_paint
        return replace(first, thing=replace(thing, paint=any_paint(rng), second_paint=second))

    def renamed() -> Instance:
        return replace(first, thing=replace(thing, noun=str(rng.choice(others))))

    def redressed() -> Instance:
        return dress(thing, rng, wardrobe)

    def mixed() -> Instance:
        noun = thing.noun if rng.random() < 0.5 else None
        return mix(first, random_instance(rng, wardrobe, noun), rng)

    members, looks = [first], [_look(first)]
    for relative in (recoloured, renamed, redressed, mixed):
        while True:
            member = relative()
            look = _look(member)
            if all(np.abs(look - seen).mean() >= LEAST_DIFFERENCE for seen in looks):
                break
        members.append(member)
        looks.append(look)
    return members


def mix(one: Instance, other: Instance, rng: np.random.Generator) -> Instance:
    """Return an instance of the first's class, in between in colours, with what either wears."""
    worn = one if rng.random() < 0.5 else other
    own, its = one.thing, other.thing
    thing = replace(
        worn.thing,
        noun=own.noun,
        paint=halfway(own.paint, its.paint),
        second_paint=halfway(own.second_paint, its.second_paint),
        bands=own.bands,
    )
    return Instance(thing, worn.badge)


def halfway(one: Paint, other: Paint) -> Paint:
    """Return the paint in between; the hue turns the shorter way."""
    turn = one.turn + ((other.turn - one.turn + 180) % 360 - 180) / 2
    red, green, blue = ((a + b) / 2 for a, b in zip(one.tint, other.tint, strict=True))
    name = one.name or other.name
    return Paint(turn, (one.saturation + other.saturation) / 2, (red, green, blue), name)


def draw_instance(instance: Instance, side: float, angle: float, flip: bool) -> np.ndarray:
    """Draw an instance as `mini.art.draw` does a thing; a badge may stick out."""
    tile = draw(instance.thing, side, angle, flip)
    if instance.badge is None:
        return tile
    height, width = tile.shape[:2]
    middle = np.array([width, height]) / 2
    corners = np.array(instance.badge.corners) * [-1 if flip else 1, 1] * side
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    corners = corners @ np.array([[cos, -sin], [sin, cos]]) + middle
    low = np.minimum(np.floor(corners.min(axis=0)), 0).astype(int)
    high = np.maximum(np.ceil(corners.max(axis=0)), [width, height]).astype(int)

    canvas = np.zeros((*(high - low)[::-1], 4), dtype=np.float32)
    canvas[-low[1] : height - low[1], -low[0] : width - low[0]] = tile
    badge = _draw_badge(instance.badge, corners - low, (high - low).tolist())
    return badge + canvas * (1 - badge[..., 3:] / 255)


def _draw_badge(badge: Badge, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw a badge at corners (n, 2) px: (h, w, 4) float32, premultiplied RGBA."""
    image = Image.new("RGBa", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING))
    pen = ImageDraw.Draw(image)
    middle = corners.mean(axis=0)
    for colour, scale in ((badge.edge, 1.0), (badge.fill, 0.7)):
        scaled = (middle + (corners - middle) * scale) * OVERSAMPLING
        pen.polygon([(x, y) for x, y in scaled], fill=(*colour, 255))
    return np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32)


def _look(instance: Instance) -> np.ndarray:
    """Draw an instance small on grey: (LOOK_SIDE, LOOK_SIDE, 3) float, 0 to 255."""
    tile = draw_instance(instance, LOOK_SIDE, 0.0, False)[:LOOK_SIDE, :LOOK_SIDE]
    canvas = np.full((LOOK_SIDE, LOOK_SIDE, 3), 127.5)
    part = canvas[: tile.shape[0], : tile.shape[1]]
    part[:] = tile[..., :3] + part * (1 - tile[..., 3:] / 255)
    return canvas


def draw_instances(
    instances: Sequence[Instance], rng: np.random.Generator, overlap_share: float, soft_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw instances on any background, smaller or larger.

    Args:
        overlap_share: of the scenes, in which they may stand before each other.
        soft_share: of the scenes, which look generated.

    Returns:
        The picture (S, S, 3) uint8 and the masks of what is visible (n, S, S) bool.
    """
    overlap, shrink = bool(rng.random() < overlap_share), rng.uniform(SMALLEST_SHRINK, 1)
    pixels, masks = arrange(
        instances, random_name(rng), rng, SIZE, overlap, shrink, drawing=draw_instance
    )
    return soften(pixels, rng, soft_share), masks


def soften(pixels: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Make a share of the pictures, (h, w, 3) uint8, look generated.

    They are blurred, ragged, melted into facets, mostly more vivid and of higher contrast,
    blotched, noisy, and off in colour, each by a random amount.
    """
    if rng.random() >= share:
        return pixels
    radius = rng.uniform(0, MAX_BLUR)
    picture = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    picture = _ragged(picture.astype(np.float64), rng.uniform(0, MAX_RAGGEDNESS), rng)
    if rng.random() < FACET_SHARE:
        facets = ImageFilter.MedianFilter(int(rng.choice(FACETS)))
        picture = np.asarray(_image(picture).filter(facets), dtype=np.float64)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + (picture - grey) * rng.uniform(*VIVIDNESS)
    mean = picture.mean(axis=(0, 1))
    picture = mean + (picture - mean) * rng.uniform(*CONTRAST)
    picture = picture * rng.normal(1, COLOUR_SPREAD, 3) + 255 * rng.normal(0, COLOUR_SPREAD)
    picture += rng.uniform(0, MAX_BLOTCHES) * _waves(1, pixels.shape, rng) * rng.uniform(0, 1, 3)
    picture += rng.normal(0, rng.uniform(0, MAX_NOISE), pixels.shape)
    return np.array(_image(picture))


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _ragged(picture: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Move pixels (h, w, 3) about, by reach px (standard deviation), neighbours alike."""
    shifts = _waves(2, picture.shape, rng).transpose(2, 0, 1)
    places = np.indices(picture.shape[:2]) + reach * shifts
    channels = [map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=2)


def _waves(channels: int, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Draw smooth noise (h, w, channels) of about unit variance, for a picture (h, w, 3)."""
    size = (shape[1], shape[0])
    along = rng.integers(*WAVES, endpoint=True)
    coarse = rng.normal(size=(channels, along, along)).astype(np.float32)
    waves = [np.asarray(Image.fromarray(c).resize(size, Image.Resampling.BICUBIC)) for c in coarse]
    return np.stack(waves, axis=2)
