r"""Cut the subjects out of picked pictures; write a data folder of these beside the photos.

    python -m mudi.loop.cut --picks output/loop/round_0/picks.jsonl \
        --images output/loop/round_0/pictures --instance_data_dir dataset/category/robot_and_teddy \
        --shares 1 1 --output_dir output/loop/round_0/data --segmenter foreground

Each picked picture becomes a scene: whole, its prompt for a caption, with a mask of each subject
whose box could be cut out; one that could not is told, and stays in the whole picture only. The
folder appears complete or not at all. data.png beside it shows the masks.
"""

from dataclasses import dataclass
from pathlib import Path

from mudi.ground.flags import flag, parse
from mudi.masks.args import SegmenterArgs


@dataclass
class Place:
    """pictures and folders"""

    picks: Path = flag(Path(), "JSONL of mudi.loop", required=True)
    images: Path = flag(Path(), "folder of the pictures", required=True)
    instance_data_dir: Path = flag(Path(), "the subjects' photos", required=True)
    caption_column: str = flag("text", "key of the captions")
    shares: list[int] = flag([1, 1], "draws of photos, and of pictures", nargs=2)
    output_dir: Path = flag(Path(), "data folder to write", required=True)


@dataclass
class CutArgs(Place, SegmenterArgs):
    """What this command takes."""


def parse_args(argv: list[str] | None = None) -> CutArgs:
    return parse(CutArgs, __doc__, argv, prog="python -m mudi.loop.cut")


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mudi.data import outlined
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.files import new_folder, write_image, write_records
from mudi.ground.locks import hold
from mudi.ground.sheets import contact_sheet
from mudi.ground.work import join_processes
from mudi.images import Box, load_rgb
from mudi.islands import drop_islands
from mudi.loop.picking import PICKED
from mudi.masks.folder import METADATA, load_segmenter, masking_complaints, write_mask
from mudi.masks.segment import Segmenter, widen
from mudi.metadata import MetadataError, load_subjects, read_records
from mudi.subjects import PHOTOS, Photo, Scene, Subjects

MADE = "made"  # the pictures' source, and their sub-folder
BOX_SHARE = (0.1, 0.97)  # of a widened box; less is a part of a subject, more the background too
OVERLAP = 0.3  # of the smaller of two masks; more, and they hold the same thing
SHEET = "data.png"
SHEET_PICTURES = 32


@program
def main(args: CutArgs) -> None:
    problems = masking_complaints(args)
    picks, subjects = [], None
    try:
        picks = [pick for pick in read_records(args.picks) if pick["fate"] == PICKED]
        subjects = load_subjects(args.instance_data_dir, caption_key=args.caption_column)
    except MetadataError as error:
        problems += error.problems
    if not picks:
        problems.append(f"--picks {args.picks}: no picture was picked")
    refuse(problems)
    if subjects is None:  # cannot be: that left a problem
        raise SetupError(f"--instance_data_dir {args.instance_data_dir}: no subjects")
    state = join_processes()
    hold(args.output_dir.parent, state)
    if state.is_main_process:  # of a launch of several; there is little to share
        segmenter = (args.segmenter, args.sam_checkpoint, args.sam_type)
        write_data(picks, subjects, args, load_segmenter(*segmenter, state.device))
    state.wait_for_everyone()


def write_data(
    picks: Sequence[Mapping[str, Any]], subjects: Subjects, args: CutArgs, cut: Segmenter
) -> None:
    """Write the data folder and its sheet."""
    with new_folder(args.output_dir) as folder:
        lines = photo_lines(subjects, folder, args.caption_column)
        (folder / MADE).mkdir()
        made = [write_scene(pick, args, folder, cut) for pick in picks]
        shares = dict(zip((PHOTOS, MADE), args.shares, strict=True))
        write_records(folder / METADATA, [{"id": subjects.names, "shares": shares}, *lines, *made])
        load_subjects(folder, caption_key=args.caption_column)  # or its complaints are this one's
    scenes = load_subjects(args.output_dir, caption_key=args.caption_column).scenes
    write_image(args.output_dir.with_name(SHEET), scene_sheet(scenes))
    cuts = sum(len(scene.cuts) for scene in scenes)
    shown = sum(len(scene.subjects) for scene in scenes)
    print(f"{len(scenes)} pictures, {cuts} of their {shown} subjects cut out: {args.output_dir}")


def photo_lines(subjects: Subjects, folder: Path, caption_key: str) -> list[dict[str, Any]]:
    """Copy the photos into a data folder; return their lines."""
    lines: list[dict[str, Any]] = []
    for picture in subjects.pictures:
        line: dict[str, Any] = {"file_name": _copied(picture.image, subjects.folder, folder)}
        captions = list(picture.captions)
        line[caption_key] = captions if len(captions) > 1 else captions[0]
        if isinstance(picture, Photo):
            mask = _copied(picture.mask, subjects.folder, folder)
            lines.append({"id": picture.subject, **line, "mask_path": mask})
            continue
        masks = {c.subject: _copied(c.mask, subjects.folder, folder) for c in picture.cuts}
        lines.append({**line, "subjects": _listed(picture.subjects, masks)})
    return lines


def _copied(path: Path, source: Path, folder: Path) -> str:
    """Copy a file to its place in another folder; return its name there."""
    name = Path(PHOTOS) / path.relative_to(source)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / name)
    return name.as_posix()


def _listed(subjects: Any, masks: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"id": s} | ({"mask_path": masks[s]} if s in masks else {}) for s in subjects]


def write_scene(
    pick: Mapping[str, Any], args: CutArgs, folder: Path, cut: Segmenter
) -> dict[str, Any]:
    """Copy a picked picture and write its masks; return its line."""
    name = f"{MADE}/{pick['image']}"
    image = load_rgb(args.images / pick["image"])
    shutil.copyfile(args.images / pick["image"], folder / name)
    boxes = {subject: Box(*box) for subject, box in pick["boxes"].items()}
    files: dict[str, str] = {}
    for subject, mask in cut_subjects(image, boxes, cut).items():
        if mask is None:
            print(f"{pick['image']}: {subject} could not be cut out; it stays in the whole picture")
            continue
        files[subject] = f"{MADE}/mask_{Path(pick['image']).stem}_{len(files)}.png"
        write_mask(folder / files[subject], mask)
    captions = {args.caption_column: pick["prompt"]}
    return {
        "file_name": name,
        **captions,
        "subjects": _listed(pick["named"], files),
        "source": MADE,
    }


def cut_subjects(
    image: Image.Image, boxes: Mapping[str, Box], cut: Segmenter
) -> dict[str, np.ndarray | None]:
    """Return each subject's mask (H, W) bool; None where it is none, or another's as well.

    What two masks share where subjects touch, neither keeps.
    """
    masks: dict[str, np.ndarray | None] = {}
    for subject, box in boxes.items():
        around = widen(box, image.size)
        mask = cut(image, around)
        share = mask.sum() / (around.width * around.height)
        masks[subject] = mask if BOX_SHARE[0] <= share <= BOX_SHARE[1] else None
    found = {subject: mask for subject, mask in masks.items() if mask is not None}
    for one, mask in found.items():
        for other, second in found.items():
            both = (mask & second).sum()
            if one != other and both > OVERLAP * min(mask.sum(), second.sum()):
                masks[one] = None
    kept = {subject: mask for subject, mask in masks.items() if mask is not None}
    shared = sum(mask.astype(int) for mask in kept.values()) > 1
    return masks | {subject: drop_islands(mask & ~shared) for subject, mask in kept.items()}


def scene_sheet(scenes: tuple[Scene, ...]) -> Image.Image:
    """Lay scenes on a sheet, each with the outlines of its masks."""
    tiles = [outlined(scene) for scene in scenes[:SHEET_PICTURES]]
    return contact_sheet(tiles, [scene.caption for scene in scenes[:SHEET_PICTURES]])


if __name__ == "__main__":
    main(ARGS)
