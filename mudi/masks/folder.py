"""A folder of photos, their masks and metadata; and the flags that say how masks are made.

jobs = find_jobs(folder, ids, problems)
results = make_masks(jobs, Masker(*load_models(...), queries))  # of mudi.masks.making
write_metadata(folder, jobs, names)
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from segment_anything import sam_model_registry

from mudi.ground.files import TEMPORARY, replace_file, write_records
from mudi.ground.flags import range_complaints
from mudi.images import NOTE
from mudi.masks import segment
from mudi.masks.args import SegmenterArgs
from mudi.metadata import (
    NO_NAMES,
    PHOTO_TEXTS,
    SUBJECTS,
    MetadataError,
    file_problem,
    load_subjects,
    read_records,
)
from mudi.photo_checks import MAX_FOREGROUND, MIN_FOREGROUND
from mudi.photo_files import photo_files
from mudi.texts import find_file, folded

METADATA = "metadata.jsonl"
SHEET = "masks_sheet.png"
MASK_PREFIX = "mask_"
PLAIN_CAPTION = "A photo of a {}."  # until there is a better one
LONGEST_NAME = 255 - len(TEMPORARY)  # bytes, of a file that is written under another name first


@dataclass(frozen=True)
class Job:
    """One photo, named relative to its folder, the subject in it, and where its mask goes."""

    name: str
    photo: Path
    mask: Path
    subject: str


def masking_complaints(args: SegmenterArgs) -> list[str]:
    """Say what is wrong with the flags that can be seen without loading anything."""
    complaints = range_complaints(args)
    if args.sam_type not in sam_model_registry:
        known = ", ".join(sorted(sam_model_registry))
        complaints.append(f"--sam_type {args.sam_type}: known are {known}")
    if args.segmenter == "sam" and not args.sam_checkpoint.is_file():
        complaints.append(segment.no_sam(args.sam_checkpoint, args.sam_type))
    return complaints


def load_models(
    detector: str,
    segmenter: str,
    sam_checkpoint: Path,
    sam_type: str,
    device: str | torch.device,
) -> tuple[segment.Detector, segment.Segmenter]:
    """Load what the flags choose.

    Raises:
        SegmentError: one of them can't be loaded.
    """
    detect = segment.Detector(detector, device)
    return detect, load_segmenter(segmenter, sam_checkpoint, sam_type, device)


def load_segmenter(
    segmenter: str, sam_checkpoint: Path, sam_type: str, device: str | torch.device
) -> segment.Segmenter:
    """Load what --segmenter chooses.

    Raises:
        SegmentError: SAM can't be loaded.
    """
    if segmenter == "foreground":
        return segment.foreground_segmenter
    return segment.SamSegmenter(sam_checkpoint, sam_type, device)


def find_jobs(folder: Path, ids: list[str], problems: list[str]) -> list[Job]:
    """Return the photos with their subjects and mask files; add what is wrong to problems.

    A photo that stands on several lines, one for each of its subjects, is a job for each. Lines of
    several subjects are passed over; their masks are not made here.
    """
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return []
    problems += [
        f'id "{i}": files that begin with {MASK_PREFIX} are taken for masks; choose another id'
        for i in ids
        if f"{i}_".startswith(MASK_PREFIX)
    ]
    try:
        records = read_metadata(folder)
    except MetadataError as error:
        problems += error.problems
        records = []
    jobs: dict[Path, Job] = {}  # by their masks
    photos = {file_in(folder, name) for name in lines_by_photo(records)}
    for name, line in photo_lines(folder, records):
        subject = (line or {}).get("id") or id_of(Path(name), ids)
        mask_path = mask_path_of(name, line)
        if subject not in ids:
            problems.append(
                f"{name}: belongs to none of {', '.join(ids)}; name it after its id, put it into "
                f"a sub-folder of that name, or list it in {METADATA}"
            )
        elif problem := file_problem("mask_path", mask_path):
            problems.append(f"{folder / METADATA}: {name}: {problem}")
        elif len(os.fsencode(Path(mask_path).name)) > LONGEST_NAME:
            problems.append(f"{name}: the name of its mask is too long for a file; shorten it")
        else:
            job = Job(name, file_in(folder, name), file_in(folder, mask_path), subject)
            if complaint := _mask_complaint(job, jobs.get(job.mask, job), photos):
                problems.append(f"{name}: {complaint}")
            else:
                jobs.setdefault(job.mask, job)
    if not jobs and not problems:
        problems.append(f"{folder}: no photos")
    return list(jobs.values())


def _mask_complaint(job: Job, other: Job, photos: set[Path]) -> str | None:
    """Say why a job can't have its mask, which may be a listed photo, or that of another job."""
    if job.mask in photos or job.photo != other.photo:
        return f"its mask {job.mask.name} is another photo's; rename the photo"
    if job.subject != other.subject:
        both = f"{other.subject} and {job.subject}"
        return f'{both} have one mask, {job.mask.name}; give each line a "mask_path" of its own'
    return None


def id_of(relative: Path, ids: list[str]) -> str | None:
    """Return the subject that a photo's sub-folder, or else the beginning of its name, tells."""
    for part in relative.parts[:-1]:
        if part in ids:
            return part
    beginning = [i for i in ids if relative.name.startswith(i)]
    return max(beginning, key=len) if beginning else None


def mask_name(relative: Path) -> str:
    """Return where a photo's mask goes, unless its line says it."""
    return (relative.parent / f"{MASK_PREFIX}{relative.stem}.png").as_posix()


def photo_lines(folder: Path, records: list[dict]) -> Iterator[tuple[str, dict | None]]:
    """Give the photos by name, each with its line, None where it has none; no scenes, no masks.

    A photo that stands on several lines comes with each. Its name is the one of its line but for
    "./" and the like, also where the file system writes that in other letters: see `find_file`.
    """
    lines, masks = lines_by_photo(records), _masks(records)
    listed, cuts = ({folded(name): name for name in names} for names in (lines, masks))
    there = {_listed_name(folder, path, listed) for path in photo_files(folder)}
    there |= {
        name
        for name in lines
        if not file_problem("file_name", name) and find_file(folder, name) is not None
    }
    for name in sorted(there, key=lambda name: (folder / name).parts):
        path = folder / name
        made = path.name.startswith(MASK_PREFIX) or path.name == SHEET
        if name in lines:
            yield from ((name, line) for line in lines[name] if not is_scene(line))
        elif not made and _listed_name(folder, path, cuts) not in masks:
            yield name, None


def _listed_name(folder: Path, path: Path, listed: dict[str, str]) -> str:
    """Return the name in a folder under which a file is listed; its own where it is not.

    Args:
        listed: names by what `folded` makes of them.
    """
    name = path.relative_to(folder).as_posix()
    alike = listed.get(folded(name), name)
    found = None if alike == name else find_file(folder, alike)
    return alike if found is not None and found.samefile(path) else name


def _masks(records: list[dict]) -> set[str]:
    """Return the names of the masks that lines give, those of scenes too."""
    cuts = [cut for record in records if is_scene(record) for cut in record[SUBJECTS]]
    named = [line.get("mask_path") for line in [*records, *cuts] if isinstance(line, dict)]
    return {normpath(name) for name in named if isinstance(name, str)}


def is_scene(record: dict) -> bool:
    """Say whether a line is one of several subjects."""
    return "id" not in record and isinstance(record.get(SUBJECTS), list)


def read_metadata(folder: Path) -> list[dict]:
    """Return the lines of metadata.jsonl, the subjects' names first; none where there is no file.

    Raises:
        MetadataError: lists what is no JSON object; or the first line has no names.
    """
    path = folder / METADATA
    records = read_records(path, PHOTO_TEXTS)
    if records and not isinstance(records[0].get("id"), dict):
        raise MetadataError([f"{path}: {NO_NAMES}"])
    return records


def lines_by_photo(records: list[dict]) -> dict[str, list[dict]]:
    """Return the photos' lines by their photo's name, without "./" and the like."""
    lines: dict[str, list[dict]] = {}
    for record in records:
        if isinstance(record.get("file_name"), str):
            lines.setdefault(normpath(record["file_name"]), []).append(record)
    return lines


def mask_path_of(name: str, line: dict | None) -> Any:
    """Return where in its folder a photo's mask goes, as its line or else its name tells."""
    return (line or {}).get("mask_path", mask_name(Path(name)))


def file_in(folder: Path, name: str) -> Path:
    """Return the file in a folder that `find_file` takes for a name; a new one where none is."""
    name = normpath(name)
    return find_file(folder, name) or folder / name


def name_complaints(folder: Path, ids: Collection[str], names: dict[str, str]) -> list[str]:
    """Say which ids `write_metadata` would have no prompt name for, or two, or no use for."""
    try:
        records = read_metadata(folder)
    except MetadataError:
        return []  # find_jobs tells
    known = records[0]["id"] if records else {}
    complaints = [
        f"--names {i}: no such id; there are {', '.join(ids)}" for i in names if i not in ids
    ]
    complaints += [
        f'{i} is "{known[i]}" in {METADATA}, "{name}" in --names; keep one'
        for i, name in names.items()
        if known.get(i, name) != name
    ]
    missing = [i for i in ids if i not in {**known, **names}]
    if missing:
        complaints.append(f"{METADATA} has no name for {', '.join(missing)}; give --names")
    return complaints


def write_metadata(folder: Path, jobs: list[Job], names: dict[str, str]) -> None:
    """Complete metadata.jsonl, and check the result.

    Names that it lacks are added, and what it lacks of each photo that has a mask; what stands
    there stays.

    Args:
        names: prompt names by id, such that `name_complaints` has none.
    """
    path = folder / METADATA
    records = read_metadata(folder) or [{"id": {}}]
    records[0]["id"] = names = {**records[0]["id"], **names}
    listed = lines_by_photo(records)
    for job in jobs:
        if not job.mask.is_file():
            continue
        if job.name not in listed:
            records.append({})
            listed[job.name] = [records[-1]]
        for line in listed[job.name]:
            mask = file_in(folder, mask_path_of(job.name, line))
            if (line.get("id", job.subject), mask) == (job.subject, job.mask):
                complete_line(line, job, folder, names)
    write_records(path, records)
    try:
        load_subjects(folder)
        print(f"{path} is ready; edit its captions: say everything but what makes the subject")
    except MetadataError as error:
        print(f"{path} is written, but training will not accept it yet:\n{error}")


def complete_line(line: dict, job: Job, folder: Path, names: dict[str, str]) -> None:
    """Add to a photo's line what it lacks."""
    complete = {
        "id": job.subject,
        "file_name": job.name,
        "mask_path": job.mask.relative_to(folder).as_posix(),
        "text": PLAIN_CAPTION.format(names[job.subject]),
    }
    for key, value in complete.items():
        line.setdefault(key, value)


def is_plausible(mask: np.ndarray) -> bool:
    """Say whether a mask (H, W) bool has both a subject and a background, as training demands."""
    return bool(MIN_FOREGROUND <= mask.mean() <= MAX_FOREGROUND)


def write_mask(path: Path, mask: np.ndarray, note: str = "") -> None:
    """Write a mask (H, W) bool as black and white, lossy only where the name says JPEG.

    Args:
        note: what `note_in` is to find in the file.
    """
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    options: dict[str, Any] = {"format": "JPEG", "quality": 95, "comment": note}
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        text = PngInfo()
        text.add_itxt(NOTE, note)
        options = {"format": "PNG", "pnginfo": text}
    replace_file(path, lambda temporary: picture.save(temporary, **options))
