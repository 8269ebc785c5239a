"""A contact sheet of collages, to look at before training.

    python -m mudi.preview --instance_data_dir dataset/category/robot_and_teddy --output sheet.png

Every tile is a collage as the training would see it, with the outline of its mask in magenta and
its prompt below.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from mudi.backbones.table import BACKBONES
from mudi.ground.flags import flag, parse
from mudi.training.args import MIXES, TrainingArgs, subject_scales


@dataclass
class PreviewArgs:
    """collages"""

    instance_data_dir: str = flag("", "folder with metadata.jsonl", required=True)
    output: Path = flag(Path(), "PNG to write", required=True)
    style: str = flag("sdxl", "whose Seg-Mix", choices=BACKBONES)
    resolution: int = flag(1024, "side of a collage (px)", at_least=1)
    num_collages: int = flag(12, "tiles on the sheet", at_least=1)
    seed: int = flag(0, "another seed, other collages")
    caption_column: str = flag("text", "key of the captions")
    mix: str = flag("segmix", "as in training", choices=MIXES)
    segmix_num_subjects: int = flag(2, "subjects a collage", at_least=2)
    relative_scale: float = flag(0.0, "as in training", at_least=-1, at_most=1)
    subject_scales: list[str] | None = flag(None, "as in training", nargs="+", metavar="ID=SCALE")
    random_flip: bool = flag(False, "as in training")


def parse_args(argv: list[str] | None = None) -> PreviewArgs:
    return parse(PreviewArgs, __doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import sys

from mudi.data import SampleOptions, SegMixDataset, collage_sheet
from mudi.ground.errors import program, refuse
from mudi.ground.files import unwritable, write_image
from mudi.ground.flags import range_complaints
from mudi.metadata import MetadataError, load_subjects
from mudi.texts import printable
from mudi.training.checks import data_complaints, mixing_complaints


@program
def main(args: PreviewArgs) -> None:
    backbone = BACKBONES[args.style]
    flags = {declared.name for declared in fields(TrainingArgs)} & vars(args).keys()
    training = TrainingArgs(segmix_prob=1.0, **{name: getattr(args, name) for name in flags})
    problems = range_complaints(args) + data_complaints(training, backbone.size_unit)
    if why := unwritable(args.output.absolute().parent):
        problems.append(f"--output {args.output}: {why}")
    refuse(problems)
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
    refuse(mixing_complaints(training, subjects, backbone.style))
    for warning in subjects.warnings:
        print(printable(warning), file=sys.stderr)
    options = SampleOptions(
        resolution=args.resolution,
        style=backbone.style,
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
    main(ARGS)
