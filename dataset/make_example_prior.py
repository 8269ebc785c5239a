"""Draw the example pair's prior set: robots and teddy bears of any colour, masks, metadata.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-*.tgz
    python dataset/make_example_prior.py --emoji package/assets

It stands in for what `generate_prior.py` makes with SDXL, in the same form: none of its things
wears an accessory or has the subjects' colours on purpose, the backgrounds are plain. The same seed
draws the same pictures.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from make_example import JPEG_QUALITY, Art, Scene, blend, draw_scene, grid, load_art

from mudi.ground.flags import flag, parse

CLASSES = {"a": ("robot", "1f916"), "b": ("teddy bear", "1f9f8")}
CAPTION = "A photo of a {}, simple background."
OUTPUT_DIR = Path(__file__).parent / "reg" / "robot_and_teddy"


def plain(size: int, rng: np.random.Generator) -> np.ndarray:
    """A pale wall in any colour, a little darker towards the floor."""
    _, ys = grid(size)
    colour = rng.uniform(170, 255, 3)
    return blend(tuple(colour), tuple(0.85 * colour), ys)


def random_art(codepoint: str, rng: np.random.Generator) -> Art:
    """Return an emoji in any colour."""
    tint = tuple(rng.uniform(0.7, 1.0, 3))
    return Art(codepoint, rng.uniform(-180, 180), rng.uniform(0.4, 1.2), tint)


def random_scene(rng: np.random.Generator) -> Scene:
    """Return a place about the middle; nothing is cut off."""
    height = rng.uniform(0.5, 0.75)
    room = (1 - 1.2 * height) / 2  # turning widens it
    x, y = 0.5 + rng.uniform(-room, room, 2)
    return Scene(plain, height, (x, y), rng.uniform(-10, 10), bool(rng.random() < 0.5))


@dataclass
class PriorArgs:
    """prior set"""

    emoji: Path = flag(Path(), "folder of <codepoint>.webp", required=True)
    output: Path = flag(OUTPUT_DIR, "folder to write to")
    num_images: int = flag(8, "pictures a class")
    size: int = flag(512, "side of a picture (px)")
    seed: int = flag(0, "of colours and places")


def parse_args(argv: list[str] | None = None) -> PriorArgs:
    return parse(PriorArgs, __doc__, argv)


def main(args: PriorArgs) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    lines: list[dict] = [{"id": {key: noun for key, (noun, _) in CLASSES.items()}}]
    for key, (noun, codepoint) in CLASSES.items():
        for index in range(args.num_images):
            art = load_art(random_art(codepoint, rng), args.emoji)
            art = art.crop(art.getbbox())
            picture, mask = draw_scene(art, random_scene(rng), args.size, rng)
            files = {"file_name": f"{key}{index:02}.jpg", "mask_path": f"mask_{key}{index:02}.png"}
            picture.save(args.output / files["file_name"], quality=JPEG_QUALITY)
            mask.save(args.output / files["mask_path"], optimize=True)
            lines.append({"id": key, **files, "text": CAPTION.format(noun)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (args.output / "class_metadata.jsonl").write_text(text)


if __name__ == "__main__":
    main(parse_args())
