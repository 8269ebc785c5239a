"""From a folder of photos to their masks and metadata, by a detector and a segmenter.

jobs = find_jobs(folder, ids, problems)
results = make_masks(jobs, Masker(*load_models(...), queries))
write_metadata(folder, jobs, names)
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from segment_anything import sam_model_registry
from tqdm.auto import tqdm

from mudi import segment
from mudi.files import replace_file
from mudi.images import Box, ImageError, load_mask, load_rgb
from mudi.metadata import (
    MAX_FOREGROUND,
    MIN_FOREGROUND,
    MetadataError,
    load_subjects,
    read_records,
    write_records,
)
from mudi.preview import contact_sheet, outline

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
METADATA = "metadata.jsonl"
SHEET = "masks_sheet.png"
MASK_PREFIX = "mask_"
BOX_COLOUR = (255, 160, 0)
SEEN_SIDE = 640  # px, of the pictures kept for the sheet

Point = tuple[int, int]


class UnresolvedError(Exception):
    """A photo has no one box; the message says what was seen and what to do."""


@dataclass(frozen=True)
class Job:
    """One photo, named relative to its folder, the subject in it, and where its mask goes."""

    name: str
    photo: Path
    mask: Path
    subject: str


@dataclass(frozen=True)
class Result:
    """What came of a photo.

    Attributes:
        picture: the photo, small, with its box and the outline of its mask.
        note: how its place was found.
        problem: why there is no mask, and what to do; None if there is one.
    """

    job: Job
    picture: Image.Image
    note: str
    problem: str | None


def add_masking_flags(parser: argparse.ArgumentParser, threshold: float) -> None:
    """Add the flags of the detector and the segmenter; `threshold` is the script's own."""
    group = parser.add_argument_group("masks")
    group.add_argument(
        "--detector", default=segment.DETECTOR, help="OWLv2 checkpoint: folder or hub id"
    )
    group.add_argument(
        "--threshold", type=float, default=threshold, help="a box's least confidence, 0 to 1"
    )
    group.add_argument(
        "--segmenter",
        choices=("sam", "foreground"),
        default="sam",
        help="foreground: what differs from the border's colour; for plain backgrounds",
    )
    group.add_argument(
        "--sam_checkpoint", type=Path, default=Path("sam_vit_h_4b8939.pth"), help=".pth file"
    )
    group.add_argument("--sam_type", choices=sorted(sam_model_registry), default="vit_h")


def load_models(
    detector: str,
    segmenter: str,
    sam_checkpoint: Path,
    sam_type: str,
    device: str | torch.device,
) -> tuple[segment.Detector, segment.Segmenter]:
    """Load what the flags of `add_masking_flags` choose.

    Raises:
        SegmentError: one of them can't be loaded.
    """
    detect = segment.Detector(detector, device)
    if segmenter == "foreground":
        return detect, segment.foreground_segmenter
    return detect, segment.SamSegmenter(sam_checkpoint, sam_type, device)


def find_jobs(folder: Path, ids: list[str], problems: list[str]) -> list[Job]:
    """Return the photos with their subjects and mask files; add what is wrong to problems."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return []
    try:
        listed = {record["file_name"]: record for record in _photo_lines(folder)}
    except MetadataError as error:
        problems += error.problems
        listed = {}
    masks = {record.get("mask_path") for record in listed.values()}
    jobs: list[Job] = []
    taken: set[Path] = set()
    for photo in sorted(folder.rglob("*")):
        name = photo.relative_to(folder).as_posix()
        generated = photo.name.startswith(MASK_PREFIX) or photo.name == SHEET or name in masks
        if photo.suffix.lower() not in PHOTO_SUFFIXES or photo.name.startswith(".") or generated:
            continue
        record = listed.get(name, {})
        subject = record.get("id") or _id_of(photo.relative_to(folder), ids)
        if subject not in ids:
            problems.append(
                f"{name}: belongs to none of {', '.join(ids)}; name it after its id, put it into "
                f"a sub-folder of that name, or list it in {METADATA}"
            )
            continue
        mask = folder / (record.get("mask_path") or _mask_name(Path(name)))
        if mask in taken:
            problems.append(f"{name}: its mask {mask.name} is another photo's; rename the photo")
        taken.add(mask)
        jobs.append(Job(name, photo, mask, subject))
    if not jobs and not problems:
        problems.append(f"{folder}: no photos ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return jobs


def _id_of(relative: Path, ids: list[str]) -> str | None:
    for part in relative.parts[:-1]:
        if part in ids:
            return part
    beginning = [i for i in ids if relative.name.startswith(i)]
    return max(beginning, key=len) if beginning else None


def _mask_name(relative: Path) -> str:
    return (relative.parent / f"{MASK_PREFIX}{relative.stem}.png").as_posix()


def _photo_lines(folder: Path) -> list[dict]:
    """Return the photo lines of metadata.jsonl, if there is one."""
    records = read_records(folder / METADATA)
    return [record for record in records if isinstance(record.get("file_name"), str)]


class Masker:
    """Finds the subject of a photo, cuts it out and writes its mask.

    Args:
        queries: what to look for, by the subject's id.
        threshold: least confidence of a box.
        pick: which of several boxes: "largest" or "best"; None: they are a problem.
    """

    def __init__(
        self,
        detect: segment.Detector,
        cut: segment.Segmenter,
        queries: dict[str, str],
        threshold: float = segment.PHOTO_THRESHOLD,
        pick: str | None = None,
    ):
        self._detect, self._cut = detect, cut
        self._queries, self._threshold, self._pick = queries, threshold, pick

    def make(
        self, job: Job, box: Sequence[float] | None = None, points: Sequence[Point] = ()
    ) -> tuple[Box | None, str]:
        """Write the mask of a photo; return the box that was cut, and how it was found.

        Args:
            box: left, top, right, bottom by hand (px).
            points: pixels on the subject by hand (x, y).

        Raises:
            ImageError: the photo can't be read.
            UnresolvedError: it has no one box, or its mask is useless.
        """
        image = load_rgb(job.photo)
        place: Box | None = None
        note = "points by hand"
        if box is not None:
            place, note = segment.clip(box, image.size), "box by hand"
        elif not points:
            place, note = self._find(job, image)
        mask = self._cut(image, place, points)
        if not is_plausible(mask):
            raise UnresolvedError(
                f"the mask covers {mask.mean():.1%} of the photo; give a --box or a --point by hand"
            )
        write_mask(job.mask, mask)
        return place, note

    def _find(self, job: Job, image: Image.Image) -> tuple[Box, str]:
        query = self._queries[job.subject]
        [found] = self._detect([image], [[query]], self._threshold)
        if not found:
            raise UnresolvedError(
                f'no "{query}" above {self._threshold}; lower --threshold, reword --query, or give '
                f"--box {job.name}=x0,y0,x1,y1 or --point {job.name}=x,y"
            )
        if len(found) > 1 and self._pick is None:
            seen = "; ".join(f"{d.score:.2f} at {','.join(map(str, d.box))}" for d in found[:5])
            raise UnresolvedError(
                f'{len(found)} boxes for "{query}" ({seen}); raise --threshold, '
                f"--pick largest|best, or give --box {job.name}=x0,y0,x1,y1"
            )
        areas = [d.box.width * d.box.height for d in found]
        chosen = found[areas.index(max(areas))] if self._pick == "largest" else found[0]
        return segment.widen(chosen.box, image.size), f'"{query}" {chosen.score:.2f}'


def make_masks(
    jobs: list[Job],
    masker: Masker,
    boxes: dict[str, Sequence[float]] | None = None,
    points: dict[str, list[Point]] | None = None,
    overwrite: bool = False,
) -> list[Result]:
    """Make the masks that are missing, and anew those of photos with a box or points by hand.

    Args:
        boxes: left, top, right, bottom (px) by the photo's name, or by its last part.
        points: pixels (x, y) on the subject, likewise.
        overwrite: make all masks anew.
    """
    results = []
    for job in tqdm(jobs, desc="masks"):
        box = _by_hand(job, boxes)
        marks = _by_hand(job, points) or ()
        note, problem, used = "kept", None, None
        try:
            if overwrite or box or marks or not job.mask.is_file():
                used, note = masker.make(job, box, marks)
        except (UnresolvedError, ImageError) as error:
            note, problem = "NO MASK", str(error)
        results.append(Result(job, _picture(job, used), note, problem))
    return results


def _by_hand(job: Job, table: dict | None):
    """Return what a table by photo holds for this one."""
    return (table or {}).get(job.name) or (table or {}).get(job.photo.name)


def _picture(job: Job, box: Box | None) -> Image.Image:
    try:
        image = load_rgb(job.photo)
    except ImageError:
        return Image.new("RGB", (SEEN_SIDE, SEEN_SIDE), "black")
    scale = min(1.0, SEEN_SIDE / max(image.size))
    small = image.resize((round(image.width * scale), round(image.height * scale)))
    if job.mask.is_file():
        mask = Image.fromarray(load_mask(job.mask)).resize(small.size)
        small = outline(np.asarray(small), np.asarray(mask))
    if box is not None:
        corners = [edge * scale for edge in box]
        ImageDraw.Draw(small).rectangle(corners, outline=BOX_COLOUR, width=3)
    return small


def result_sheet(results: list[Result]) -> Image.Image:
    """Lay the results on a contact sheet."""
    captions = [f"{r.job.name} ({r.job.subject}): {r.note}" for r in results]
    return contact_sheet([result.picture for result in results], captions)


def write_metadata(folder: Path, jobs: list[Job], names: dict[str, str]) -> None:
    """Complete metadata.jsonl with the photos that have masks, and check the result."""
    path = folder / METADATA
    records = read_records(path) or [{"id": names}]
    names = records[0]["id"]
    listed = {record.get("file_name") for record in records}
    for job in jobs:
        if job.name in listed or not job.mask.is_file():
            continue
        record = {
            "id": job.subject,
            "file_name": job.name,
            "mask_path": job.mask.relative_to(folder).as_posix(),
            "text": f"A photo of a {names[job.subject]}.",
        }
        records.append(record)
    write_records(path, records)
    try:
        load_subjects(folder)
        print(f"{path} is ready; edit its captions: say everything but what makes the subject")
    except MetadataError as error:
        print(f"{path} is written, but training will not accept it yet:\n{error}")


def is_plausible(mask: np.ndarray) -> bool:
    """Say whether a mask (H, W) bool has both a subject and a background, as training demands."""
    return bool(MIN_FOREGROUND <= mask.mean() <= MAX_FOREGROUND)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as black and white, lossy only where the name says JPEG."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    options = {"format": "JPEG", "quality": 95} if lossy else {"format": "PNG"}
    replace_file(path, lambda temporary: picture.save(temporary, **options))
