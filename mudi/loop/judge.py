r"""Judge pictures about the subjects that each one's prompt names.

    accelerate launch -m mudi.loop.judge --images output/loop/round_0/pictures \
        --instance_data_dir dataset/category/robot_and_teddy --output scores.jsonl

--images is inference.py's output folder. A line of --output is one of detect_and_compare's
scores.jsonl, but about those subjects alone; also `named`, their ids, and `nearest`, to which of
all subjects each crop is nearest, by embedder. A stopped run goes on with the same command.
"""

from dataclasses import dataclass
from pathlib import Path

from detect_and_compare.args import BATCH_SIZE, JudgeArgs
from mudi.ground.flags import DTYPES, flag, parse


@dataclass
class Place:
    """pictures"""

    images: Path = flag(Path(), "inference.py's output folder", required=True)
    instance_data_dir: Path = flag(Path(), "the subjects' photos", required=True)
    output: Path = flag(Path(), "JSONL to write", required=True)
    dtype: str = flag("fp32", "of the embedders", choices=DTYPES)
    cache_dir: Path | None = flag(None, "where embedders' checkpoints are kept or fetched to")
    batch_size: int = flag(BATCH_SIZE, "pictures at once", at_least=1)


@dataclass
class LoopJudgeArgs(Place, JudgeArgs):
    """What this command takes."""


def parse_args(argv: list[str] | None = None) -> LoopJudgeArgs:
    return parse(LoopJudgeArgs, __doc__, argv, prog="python -m mudi.loop.judge")


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

from collections.abc import Sequence
from itertools import groupby

import torch
from PIL import Image
from tqdm.auto import tqdm

from detect_and_compare.judge import Judge, checkpoint_complaints, load_judge, read_basis
from detect_and_compare.measure import read_ahead
from detect_and_compare.pictures import IMAGE, Picture, find_pictures, without_results
from detect_and_compare.results import Line
from mudi.ground.errors import program, refuse
from mudi.ground.flags import range_complaints
from mudi.ground.locks import hold
from mudi.ground.work import Journal, join_processes, share
from mudi.images import ImageError
from mudi.pictures.shot_args import named_subjects

NAMED, NEAREST = "named", "nearest"


@program
def main(args: LoopJudgeArgs) -> None:
    problems = range_complaints(args) + checkpoint_complaints(args.detector, args.embedder)
    basis = read_basis(args, args.instance_data_dir, "--instance_data_dir", problems)
    pictures = find_pictures(args.images, problems)
    refuse(problems)

    state = join_processes()
    hold(args.output.parent, state)
    names = basis.references.names
    journal = Journal(args.output, IMAGE, state)
    todo = [picture for picture in pictures if not is_judged(picture, journal.done)]
    if todo:
        with state.local_main_process_first():  # fetches what the others then find on the disk
            dtype = getattr(torch, DTYPES[args.dtype])
            judge = load_judge(args, basis, state.device, dtype, args.cache_dir)
        judge.check(journal.done, f"delete {args.output} to judge them all anew")
        mine = share(todo, state)
        bar = tqdm(total=len(mine), desc="judged", disable=not state.is_main_process)
        for named, group in groupby(mine, lambda picture: named_in(picture, names)):
            alike = list(group)
            batches = read_ahead([picture.path for picture in alike], args.batch_size)
            for start, images in zip(range(0, len(alike), args.batch_size), batches, strict=True):
                batch = alike[start : start + args.batch_size]
                for line in judged(judge, batch, images, named, tuple(names)):
                    journal.add(line)
                    bar.update()
        bar.close()
    journal.finish([picture.name for picture in pictures])


def named_in(picture: Picture, names: dict[str, str]) -> tuple[str, ...]:
    """Return the subjects that a picture's prompt names; all where it names none."""
    return tuple(named_subjects(picture.prompt or "", names)) or tuple(names)


def is_judged(picture: Picture, done: dict[str, Line]) -> bool:
    """Say whether there are scores of the picture as it is now."""
    line = done.get(picture.name)
    if line is None:
        return False
    stamp = without_results(line)
    return {k: v for k, v in stamp.items() if k not in (NAMED, NEAREST)} == picture.stamp


def judged(
    judge: Judge,
    pictures: Sequence[Picture],
    images: Sequence[Image.Image | ImageError],
    named: tuple[str, ...],
    subjects: tuple[str, ...],
) -> list[Line]:
    """Return the lines of pictures that are to show the same subjects."""
    found = judge.about(named)(images)
    among_all = found if named == subjects else judge(images)
    lines = []
    for picture, records, others in zip(pictures, found, among_all, strict=True):
        nearest = {
            name: [subjects[crop.subject] for crop in record.likenesses]
            for name, record in others.items()
        }
        stamp = {**picture.stamp, NAMED: list(named)}
        lines.append({**judge.line(stamp, records), NEAREST: nearest})
    return lines


if __name__ == "__main__":
    main(ARGS)
