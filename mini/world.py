"""The miniature's world: scenes of one to five things on a named background, with a caption.

    python -m mini.world --count 40 --output scenes.png

Every scene is a function of the generator it is drawn with. Masks and boxes are exact. What the
evaluated subjects wear never occurs here; see mini/subjects.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mini.art import KINDS, Thing, draw
from mini.backgrounds import draw_background, random_name
from mini.cast import CAST_OF, NAMES, STRIPES, kind_of, plain_thing, told_thing
from mudi.ground.files import write_image
from mudi.ground.flags import flag, parse
from mudi.ground.sheets import contact_sheet
from mudi.images import Box, tight_box
from mudi.segmix import SDXL_STYLE, collage_prompt

SIZE = 64  # side of a picture (px)
SUBJECT_ALPHA = 128  # of 255; from here on a pixel shows more of a thing than of what is behind it
COUNT_SHARES = (0.36, 0.42, 0.12, 0.06, 0.04)  # of scenes with one, two, ... five things
SIDES = ((0.45, 0.95), (0.34, 0.62), (0.30, 0.46), (0.26, 0.38), (0.24, 0.34))  # share of SIZE
TWINS_SHARE = 0.2  # of the scenes of two or more whose things are all of one class
TOLD_SHARE = 0.52  # of the scenes, whose captions name colours and what is worn
PLAIN_SHARE = 0.16  # of the scenes, told by classes only; in the rest are named characters
CAST_SHARE = 0.8  # of the things there; the others are told
WORN_UP_TO = 3  # things in a scene whose caption says what colour they wear; five would be too long
OVERLAP_SHARE = 0.15  # of the scenes, in which things may stand before each other
APART, OVERLAPPING = 0.95, 0.62  # least distance of two things, in halves of their summed sides
MIN_VISIBLE = 0.5  # of a thing's pixels
MAX_ANGLE = 20.0  # degrees
LAYOUT_TRIES = 40  # before a layout is tried anew with things a little smaller
CROWDED_SHRINK = 0.92
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
VOWELS = "aeiou"

Drawing = Callable[[Any, float, float, bool], np.ndarray]  # as mini.art.draw


@dataclass(frozen=True)
class Pose:
    """How large a thing is drawn (its larger side, px), turned (degrees) and mirrored."""

    side: float
    angle: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it; things stand in the caption's order.

    Attributes:
        pixels: (S, S, 3) uint8.
        masks: (n, S, S) bool, the visible pixels of each thing.
        boxes: the tight box of each mask.
        things: the n things.
        background: its name.
        caption: names things and background: colours and what is worn, or characters, or classes
            only.
    """

    pixels: np.ndarray
    masks: np.ndarray
    boxes: list[Box]
    things: list[Thing]
    background: str
    caption: str


def draw_scene(rng: np.random.Generator, size: int = SIZE) -> Scene:
    """Draw a training scene of the given side (px)."""
    things = random_things(rng)
    background = random_name(rng)
    pixels, masks = arrange(things, background, rng, size, overlap=rng.random() < OVERLAP_SHARE)
    caption = random_caption(things, background, rng)
    return Scene(pixels, masks, [tight_box(mask) for mask in masks], things, background, caption)


def random_things(rng: np.random.Generator) -> list[Thing]:
    """Draw one to five things; colours are independent of the class."""
    count = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    nouns = [str(noun) for noun in rng.choice(list(KINDS), count)]
    if rng.random() < TWINS_SHARE:
        nouns = nouns[:1] * count
    way = rng.random()
    if way < TOLD_SHARE:
        return [told_thing(noun, rng) for noun in nouns]
    if way < TOLD_SHARE + PLAIN_SHARE:
        return [plain_thing(noun, rng) for noun in nouns]
    return [_character(noun, rng) for noun in nouns]


def _character(noun: str, rng: np.random.Generator) -> Thing:
    if rng.random() >= CAST_SHARE:
        return told_thing(noun, rng)
    return CAST_OF[noun][int(rng.integers(len(CAST_OF[noun])))]


def random_thing(noun: str, rng: np.random.Generator) -> Thing:
    """Draw how a thing of that class looks, of any colours."""
    return plain_thing(noun, rng)


def arrange(
    things: Sequence[Any],
    background: str,
    rng: np.random.Generator,
    size: int = SIZE,
    overlap: bool = False,
    shrink: float = 1.0,
    drawing: Drawing = draw,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw things at random places and sizes, each at least half visible.

    Args:
        things: Things, or what else `drawing` draws.
        shrink: factor on their sides.

    Returns:
        The picture (S, S, 3) uint8 and the masks of what is visible (n, S, S) bool.
    """
    low, high = SIDES[len(things) - 1]
    closeness = OVERLAPPING if overlap else APART
    canvas = draw_background(background, size, rng)
    while True:
        poses = [
            Pose(shrink * size * rng.uniform(low, high), angle, bool(rng.random() < 0.5))
            for angle in rng.triangular(-MAX_ANGLE, 0, MAX_ANGLE, len(things))
        ]
        tiles = [
            draw_tile(thing, pose, size, drawing) for thing, pose in zip(things, poses, strict=True)
        ]
        corners = _draw_corners(tiles, size, closeness, rng)
        if corners is not None:
            pixels, masks = paste(canvas, tiles, corners)
            whole = [np.count_nonzero(tile[..., 3] >= SUBJECT_ALPHA) for tile in tiles]
            if all(m.sum() >= MIN_VISIBLE * w for m, w in zip(masks, whole, strict=True)):
                return pixels, masks
        shrink *= CROWDED_SHRINK


def draw_tile(thing: Any, pose: Pose, size: int, drawing: Drawing = draw) -> np.ndarray:
    """Draw a thing, as large as posed or as the canvas allows: (h, w, 4), premultiplied RGBA."""
    side = pose.side
    while True:
        tile = drawing(thing, side, pose.angle, pose.flip)
        largest = max(tile.shape[:2])
        if largest <= size:
            return tile
        side *= (size - 0.5) / largest


def paste(
    background: np.ndarray, tiles: Sequence[np.ndarray], corners: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Lay tiles on a background (S, S, 3), the last in front.

    Args:
        background: float, 0 to 255; it is not changed.
        tiles: (h, w, 4) float, 0 to 255, premultiplied RGBA.
        corners: left and top of each tile (px).

    Returns:
        The picture (S, S, 3) uint8 and the masks of what is visible (n, S, S) bool.
    """
    canvas = background.copy()
    masks = np.zeros((len(tiles), *canvas.shape[:2]), dtype=bool)
    for i, (tile, (left, top)) in enumerate(zip(tiles, corners, strict=True)):
        place = (slice(top, top + tile.shape[0]), slice(left, left + tile.shape[1]))
        alpha = tile[..., 3:]
        canvas[place] = tile[..., :3] + canvas[place] * (1 - alpha / 255)
        solid = alpha[..., 0] >= SUBJECT_ALPHA
        masks[:i, place[0], place[1]] &= ~solid
        masks[i][place] = solid
    return (canvas.clip(0, 255) + 0.5).astype(np.uint8), masks


def _draw_corners(
    tiles: Sequence[np.ndarray], size: int, closeness: float, rng: np.random.Generator
) -> list[tuple[int, int]] | None:
    """Draw left and top of each tile, no two too close; None if there seems to be no room."""
    radii = [max(tile.shape[:2]) / 2 for tile in tiles]
    for _ in range(LAYOUT_TRIES):
        corners: list[tuple[int, int]] = []
        centres: list[tuple[float, float]] = []
        for tile, radius in zip(tiles, radii, strict=True):
            height, width = tile.shape[:2]
            left = int(rng.integers(0, size - width + 1))
            top = int(rng.integers(0, size - height + 1))
            x, y = left + width / 2, top + height / 2
            reach = zip(centres, radii, strict=False)
            if any(np.hypot(x - u, y - v) < closeness * (radius + r) for (u, v), r in reach):
                break
            corners.append((left, top))
            centres.append((x, y))
        else:
            return corners
    return None


def random_caption(things: Sequence[Thing], background: str, rng: np.random.Generator) -> str:
    """Name the things, each in full, and, mostly, the background."""
    names = [describe(thing, len(things) <= WORN_UP_TO) for thing in things]
    if background == "white" and rng.random() < 0.5:
        if len(names) == 1:
            return SDXL_STYLE.template.format(subjects=f"a {names[0]}")
        return collage_prompt(SDXL_STYLE, names)
    phrase = _list_phrase(names, rng)
    scenery = with_article(f"{background} background")
    templates = (
        f"A photo of {phrase} on {scenery}.",
        f"A photo of {phrase} on {scenery}.",
        f"a picture of {phrase} in front of {scenery}",
        f"{phrase} on {scenery}",
        f"{phrase}, {background} background",
        f"a photo of {phrase}",
    )
    return templates[int(rng.integers(len(templates)))]


def describe(thing: Thing, worn_colour: bool = True) -> str:
    """Return a character's name, or a thing's colours, class and what it wears.

    Colours without a name, as those of plain things, are left out.
    """
    if thing in NAMES:
        return f"{NAMES[thing]} {thing.noun}"
    words = [thing.paint.name, thing.noun] if thing.paint.name else [thing.noun]
    if thing.bands > 1 and thing.paint.name and thing.second_paint.name:
        striped = ["striped"] if thing.bands == STRIPES else []
        words = [thing.paint.name, "and", thing.second_paint.name, *striped, thing.noun]
    if thing.accessory:
        colour = f"{thing.accessory_paint.name} " if worn_colour else ""
        worn = f"{colour}{kind_of(thing.accessory)}"
        words += ["with", worn if worn.endswith("glasses") else with_article(worn)]
    return " ".join(words)


def with_article(text: str) -> str:
    return f"{'an' if text[0] in VOWELS else 'a'} {text}"


def _list_phrase(names: Sequence[str], rng: np.random.Generator) -> str:
    """Return "a fox and a zul cat", "two foxes", "a fox next to a cat", ..."""
    count = len(names)
    if count > 1 and len(set(names)) == 1 and " with " not in names[0] and rng.random() < 0.6:
        return f"{NUMBERS[count]} {names[0]}{'es' if names[0][-1] in 'sx' else 's'}"
    parts = [with_article(name) for name in names]
    if count == 2 and rng.random() < 0.2:
        return f"{parts[0]} next to {parts[1]}"
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if count > 1 else parts)


@dataclass
class WorldArgs:
    """world"""

    count: int = flag(40, "scenes to draw")
    size: int = flag(SIZE, "side of a scene (px)")
    seed: int = flag(0, "of the first scene")
    output: Path = flag(Path("scenes.png"), "sheet to write")


def parse_args(argv: list[str] | None = None) -> WorldArgs:
    return parse(WorldArgs, __doc__, argv)


def main(args: WorldArgs) -> None:
    """Write a sheet of training scenes with their captions."""
    seeds = range(args.seed, args.seed + args.count)
    scenes = [draw_scene(np.random.default_rng(seed), args.size) for seed in seeds]
    pictures = [Image.fromarray(scene.pixels) for scene in scenes]
    sheet = contact_sheet(pictures, [scene.caption for scene in scenes], columns=8, tile=160)
    print(f"the sheet: {write_image(args.output, sheet)}")


if __name__ == "__main__":
    main(parse_args())
