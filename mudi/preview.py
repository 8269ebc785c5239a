"""A contact sheet of collages, to look at before training.

    python -m mudi.preview --instance_data_dir dataset/category/robot_and_teddy --output sheet.png

Every tile is a collage as the training would see it, with the outline of its mask in magenta and
its prompt below.
"""

import argparse
import sys
from pathlib import Path

from mudi.backbones.table import BACKBONES
from mudi.data import SampleOptions, SegMixDataset, collage_sheet
from mudi.ground.errors import program, refuse
from mudi.ground.files import write_image
from mudi.ground.flags import Parser
from mudi.metadata import MetadataError, load_subjects
from mudi.texts import printable
from mudi.training.args import MIXES, subject_scales


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instance_data_dir", required=True, help="folder with metadata.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--style", choices=BACKBONES, default="sdxl", help="whose Seg-Mix")
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


@program
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
        print(printable(warning), file=sys.stderr)
    options = SampleOptions(
        resolution=args.resolution,
        style=BACKBONES[args.style].style,
        segmix_prob=1.0,
        num_subjects=args.segmix_num_subjects,
        scales=scales,
        random_flip=args.random_flip,
        mix=args.mix,
    )
    sheet = collage_sheet(SegMixDataset(subjects, options), args.num_collages, args.seed)
    write_image(args.output, sheet)
    print(f"wrote {args.num_collages} collages to {args.output}")


if __name__ == "__main__":
    main(parse_args())
