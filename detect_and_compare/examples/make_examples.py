"""Compose the example pictures: what a model may make of two subjects, and their references.

    python -m detect_and_compare.examples.make_examples --output detect_and_compare/examples

Subjects and others are the miniature's (mini/sprites, MIT). The same seed draws the same files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mini.art import Paint, Thing
from mini.subjects import subjects_of, write_pair
from mini.world import Pose, draw_tile, paste
from mudi.ground.flags import flag, parse

SUBJECTS = subjects_of("robot_and_teddy_bear")
ROBOT, BEAR = (subject.thing for subject in SUBJECTS)
SIZE = (384, 256)  # (W, H) of the pictures, px
REFERENCE_SIDE = 128  # px
REFERENCES = 3  # of each subject
BACKGROUND = (255, 255, 255)
SIDE = 200  # px, the largest of the larger side of what is drawn
JPEG_QUALITY = 92

# What went wrong, and what therefore stands in the picture, from left to right.
PICTURES: dict[str, Sequence[Thing]] = {
    "good": (ROBOT, BEAR),
    "mixed": (
        Thing("robot", Paint(0, 1, (0.8, 0.55, 0.35)), "bow", BEAR.accessory_paint),
        Thing("teddy bear", Paint(150, 1, (0.8, 1.0, 0.9)), "top hat"),
    ),
    "missing": (ROBOT,),
    "doubled": (BEAR, BEAR),
    "too_many": (BEAR, ROBOT, Thing("cat")),
}


def compose(things: Sequence[Thing], rng: np.random.Generator) -> Image.Image:
    """Draw things side by side, a little turned, on a plain background."""
    width, height = SIZE
    canvas = np.full((height, width, 3), BACKGROUND, dtype=float)
    column = width // len(things)
    side = min(SIDE, 0.85 * column)
    tiles, corners = [], []
    for i, thing in enumerate(things):
        tile = draw_tile(thing, Pose(side * rng.uniform(0.9, 1), rng.uniform(-8, 8)), height)
        tiles.append(tile)
        middle = i * column + column // 2
        corners.append((middle - tile.shape[1] // 2, (height - tile.shape[0]) // 2))
    pixels, _ = paste(canvas, tiles, corners)
    return Image.fromarray(pixels)


@dataclass
class ExampleArgs:
    """examples"""

    output: Path = flag(Path(), "folder to write to", required=True)
    seed: int = flag(0, "of places and sizes")


def parse_args(argv: list[str] | None = None) -> ExampleArgs:
    return parse(ExampleArgs, __doc__, argv)


def main(args: ExampleArgs) -> None:
    """Write references/, a data folder as training takes it, and pictures/."""
    rng = np.random.default_rng(args.seed)
    write_pair(args.output / "references", SUBJECTS, rng, REFERENCES, REFERENCE_SIDE)
    (args.output / "pictures").mkdir(exist_ok=True)
    for name, things in PICTURES.items():
        compose(things, rng).save(args.output / "pictures" / f"{name}.jpg", quality=JPEG_QUALITY)


if __name__ == "__main__":
    main(parse_args())
