"""A contact sheet of collages, to look at before training.

    python -m mudi.preview --instance_data_dir dataset/category/robot_and_teddy --output sheet.png

Every tile is a collage as the training would see it, with the outline of its mask in magenta and
its prompt below.
"""

import argparse
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import binary_erosion

from mudi.args import MIXES, subject_scales
from mudi.checks import refuse
from mudi.data import Draw, SampleOptions, SegMixDataset
from mudi.files import write_image
from mudi.metadata import MetadataError, load_subjects
from mudi.segmix import FLUX_STYLE, SDXL_STYLE

STYLES = {"sdxl": SDXL_STYLE, "flux": FLUX_STYLE}
OUTLINE = (255, 0, 255)
# Of subjects and curves: Okabe and Ito's, told apart by the colour-blind too; then they recur.
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #b8860b #56b4e9 #7f3fbf #4d4d4d".split()
FRAME = (160, 160, 160)
GAP = 4  # px, around each picture
LETTER_WIDTH = 7  # px, about
TILE = 320  # px, the longest side of a picture on the sheet
TEXT_HEIGHT = 64  # px, below each picture


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instance_data_dir", required=True, help="folder with metadata.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--style", choices=STYLES, default="sdxl", help="whose Seg-Mix")
    parser.add_argument("--resolution", type=int, default=1024, help="side of a collage (px)")
    parser.add_argument("--num_collages", type=int, default=12, help="tiles on the sheet")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other collages")
    parser.add_argument("--caption_column", default="text", help="key of the captions")
    parser.add_argument("--mix", choices=MIXES, default="segmix", help="as in training")
    parser.add_argument("--segmix_num_subjects", type=int, default=2, help="subjects a collage")
    parser.add_argument("--relative_scale", type=float, default=0.0, help="as in training")
    parser.add_argument("--subject_scales", nargs="+", metavar="ID=SCALE", help="as in training")
    parser.add_argument("--random_flip", action="store_true", help="as in training")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    try:
        subjects = load_subjects(
            args.instance_data_dir,
            min_subjects=2,
            caption_key=args.caption_column,
            resolution=args.resolution,
        )
        scales = subject_scales(args, subjects.names)
    except MetadataError as error:
        refuse(error.problems)
    except ValueError as error:
        refuse([str(error)])
    for warning in subjects.warnings:
        print(warning, file=sys.stderr)
    options = SampleOptions(
        resolution=args.resolution,
        style=STYLES[args.style],
        segmix_prob=1.0,
        num_subjects=args.segmix_num_subjects,
        scales=scales,
        random_flip=args.random_flip,
        mix=args.mix,
    )
    sheet = collage_sheet(SegMixDataset(subjects, options), args.num_collages, args.seed)
    write_image(args.output, sheet)
    print(f"wrote {args.num_collages} collages to {args.output}")


def collage_sheet(dataset: SegMixDataset, count: int, seed: int) -> Image.Image:
    """Draw `count` mixed samples of a data set (its prior's too) on one sheet."""
    options = replace(dataset.options, segmix_prob=1.0, pool=None)  # no picture twice
    mixing = SegMixDataset(dataset.subjects, options, dataset.prior)
    photos = len(dataset.subjects.photos)
    step = dataset.options.segmix_start_step
    samples = [
        sample
        for i in range(count)
        for sample in mixing[Draw(i % photos, step, f"preview {seed} {i}")]
    ]
    return contact_sheet([outline(s.pixels, s.mask) for s in samples], [s.prompt for s in samples])


def contact_sheet(
    images: list[Image.Image], captions: list[str], columns: int = 4, tile: int = TILE
) -> Image.Image:
    """Lay pictures of any sizes on a white sheet, each with its caption below.

    Args:
        tile: longest side of a picture on the sheet (px).

    Raises:
        ValueError: there are no pictures.
    """
    if not images:
        raise ValueError("no pictures to lay on a sheet")
    rows = -(-len(images) // columns)
    height = tile + TEXT_HEIGHT
    sheet = Image.new("RGB", (columns * tile, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns * tile, i // columns * height
        scaled = ImageOps.contain(image, (tile - 2 * GAP, tile - 2 * GAP))
        place = (left + (tile - scaled.width) // 2, top + (tile - scaled.height) // 2)
        sheet.paste(ImageOps.expand(scaled, border=1, fill=FRAME), place)
        text = textwrap.fill(caption, tile // LETTER_WIDTH)
        pen.text((left + GAP, top + tile), text, fill="black", font=font)
    return sheet


def outline(pixels: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Draw the edge of mask (H, W) bool into a copy of pixels (H, W, 3) uint8."""
    thickness = max(1, max(mask.shape) // TILE)
    edge = mask & ~binary_erosion(mask, iterations=thickness)
    drawn = pixels.copy()
    drawn[edge] = OUTLINE
    return Image.fromarray(drawn)


if __name__ == "__main__":
    main(parse_args())
