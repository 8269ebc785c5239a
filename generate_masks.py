"""Make the masks of a folder of photos: OWLv2 finds the subject, SAM cuts it out.

    python generate_masks.py --instance_data_dir photos --query a="action figure" b="dog" \
        --sam_checkpoint sam_vit_h_4b8939.pth \
        --write_metadata --names a="olis action figure" b="hta corgi"

A photo belongs to the id that metadata.jsonl gives it, else to the id its sub-folder is named after,
else to the longest id that its name begins with. Existing masks are kept. A contact sheet shows every
photo with its box and mask; photos that need help are listed with what was seen and what to do.
"""  # noqa: E501

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from mudi import segment
from mudi.args import id_table
from mudi.checks import refuse
from mudi.files import write_image, write_text
from mudi.images import Box, ImageError, load_mask, load_rgb
from mudi.masking import MASK_PREFIX, add_masking_flags, is_plausible, load_models, write_mask
from mudi.metadata import MetadataError, load_subjects
from mudi.preview import contact_sheet, outline

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
METADATA = "metadata.jsonl"
SHEET = "masks_sheet.png"
BOX_COLOUR = (255, 160, 0)
SEEN_SIDE = 640  # px, of the pictures kept for the sheet


class UnresolvedError(Exception):
    """A photo has no one box; the message says what was seen and what to do."""


@dataclass(frozen=True)
class Job:
    """One photo, the subject in it, and where its mask goes."""

    photo: Path
    mask: Path
    subject: str


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instance_data_dir", type=Path, required=True, help="folder of photos")
    parser.add_argument(
        "--query", nargs="+", required=True, metavar="ID=NOUN", help="what to look for, per subject"
    )
    add_masking_flags(parser, segment.PHOTO_THRESHOLD)
    parser.add_argument("--pick", choices=("largest", "best"), help="which of several boxes")
    parser.add_argument(
        "--box",
        nargs="+",
        default=[],
        metavar="FILE=x0,y0,x1,y1",
        help="a photo's box by hand (px)",
    )
    parser.add_argument(
        "--point",
        nargs="+",
        default=[],
        metavar="FILE=x,y",
        help="a pixel on the subject; repeatable",
    )
    parser.add_argument("--overwrite", action="store_true", help="make existing masks anew")
    parser.add_argument("--write_metadata", action="store_true", help=f"complete {METADATA}")
    parser.add_argument(
        "--names",
        nargs="+",
        default=[],
        metavar="ID=NAME",
        help="prompt names for --write_metadata",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    problems: list[str] = []
    queries = id_table(args.query, "--query", problems)
    names = id_table(args.names, "--names", problems)
    boxes = _by_file(args.box, 4, "--box", problems)
    points = _by_file(args.point, 2, "--point", problems)
    jobs = find_jobs(args.instance_data_dir, list(queries), problems)
    known = {job.photo.name for job in jobs}
    problems += [f"no photo {name} to give a box or point" for name in {*boxes, *points} - known]
    if args.write_metadata:
        problems += _name_complaints(args.instance_data_dir, queries, names)
    refuse(problems)

    try:
        masker = Masker(args, queries, boxes, points)
    except segment.SegmentError as error:
        refuse([str(error)])
    unresolved, pictures, captions = [], [], []
    for job in tqdm(jobs, desc="masks"):
        note = "kept"
        try:
            if args.overwrite or not job.mask.is_file():
                note = masker.make(job)
        except (UnresolvedError, ImageError) as error:
            unresolved.append(f"{job.photo.name}: {error}")
            note = "NO MASK"
        pictures.append(masker.picture(job))
        captions.append(f"{job.photo.name} ({job.subject}): {note}")
    sheet = args.instance_data_dir / SHEET
    write_image(sheet, contact_sheet(pictures, captions))
    print(f"{len(jobs) - len(unresolved)} of {len(jobs)} photos have masks; look at {sheet}")
    if args.write_metadata:
        write_metadata(args.instance_data_dir, jobs, names)
    if unresolved:
        raise SystemExit("These photos need help:\n" + "\n".join(unresolved))


class Masker:
    """Finds, cuts out and writes; loads the models it needs when it is made."""

    def __init__(
        self,
        args: argparse.Namespace,
        queries: dict[str, str],
        boxes: dict[str, list[tuple[int, ...]]],
        points: dict[str, list[tuple[int, ...]]],
    ):
        self._args, self._queries = args, queries
        self._boxes, self._points = boxes, points
        self._used: dict[Path, Box] = {}
        self._detect, self._segment = load_models(args, args.device)

    def make(self, job: Job) -> str:
        """Write the mask of a photo; return how its place was found."""
        image = load_rgb(job.photo)
        points = [(x, y) for x, y in self._points.get(job.photo.name, [])]
        box, note = self._box(job, image, bool(points))
        mask = self._segment(image, box, points)
        if not is_plausible(mask):
            raise UnresolvedError(
                f"the mask covers {mask.mean():.1%} of the photo; give a --box or a --point by hand"
            )
        if box is not None:
            self._used[job.photo] = box
        write_mask(job.mask, mask)
        return note

    def _box(self, job: Job, image: Image.Image, has_points: bool) -> tuple[Box | None, str]:
        name = job.photo.name
        if name in self._boxes:
            return segment.clip(self._boxes[name][-1], image.size), "box by hand"
        if has_points:
            return None, "points by hand"
        query, threshold = self._queries[job.subject], self._args.threshold
        [found] = self._detect([image], [[query]], threshold)
        if not found:
            raise UnresolvedError(
                f'no "{query}" above {threshold}; lower --threshold, reword --query, or give '
                f"--box {name}=x0,y0,x1,y1 or --point {name}=x,y"
            )
        if len(found) > 1 and self._args.pick is None:
            seen = "; ".join(f"{d.score:.2f} at {','.join(map(str, d.box))}" for d in found[:5])
            raise UnresolvedError(
                f'{len(found)} boxes for "{query}" ({seen}); raise --threshold, '
                f"--pick largest|best, or give --box {name}=x0,y0,x1,y1"
            )
        area = {d: d.box.width * d.box.height for d in found}
        chosen = max(found, key=area.__getitem__) if self._args.pick == "largest" else found[0]
        return segment.widen(chosen.box, image.size), f'"{query}" {chosen.score:.2f}'

    def picture(self, job: Job) -> Image.Image:
        """Return the photo, small, with its box and the outline of its mask."""
        try:
            image = load_rgb(job.photo)
        except ImageError:
            return Image.new("RGB", (SEEN_SIDE, SEEN_SIDE), "black")
        scale = min(1.0, SEEN_SIDE / max(image.size))
        small = image.resize((round(image.width * scale), round(image.height * scale)))
        if job.mask.is_file():
            mask = Image.fromarray(load_mask(job.mask)).resize(small.size)
            small = outline(np.asarray(small), np.asarray(mask))
        if job.photo in self._used:
            corners = [edge * scale for edge in self._used[job.photo]]
            ImageDraw.Draw(small).rectangle(corners, outline=BOX_COLOUR, width=3)
        return small


def find_jobs(folder: Path, ids: list[str], problems: list[str]) -> list[Job]:
    """Return the photos with their subjects and mask files; add what is wrong to problems."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return []
    listed = {record["file_name"]: record for record in _metadata_lines(folder, problems)}
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
        jobs.append(Job(photo, mask, subject))
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


def _metadata_lines(folder: Path, problems: list[str]) -> Iterator[dict]:
    """Yield the photo lines of metadata.jsonl, if there is one."""
    path = folder / METADATA
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: broken JSON ({error.msg}); mend the line")
            continue
        if isinstance(record, dict) and isinstance(record.get("file_name"), str):
            yield record


def write_metadata(folder: Path, jobs: list[Job], names: dict[str, str]) -> None:
    """Complete metadata.jsonl with the photos that have masks, and check the result."""
    path = folder / METADATA
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    lines = [line for line in lines if line.strip()]
    if not lines:
        lines = [json.dumps({"id": names}, ensure_ascii=False)]
    names = json.loads(lines[0])["id"]
    listed = {record["file_name"] for record in _metadata_lines(folder, [])}
    for job in jobs:
        name = job.photo.relative_to(folder).as_posix()
        if name in listed or not job.mask.is_file():
            continue
        record = {
            "id": job.subject,
            "file_name": name,
            "mask_path": job.mask.relative_to(folder).as_posix(),
            "text": f"A photo of a {names[job.subject]}.",
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")
    try:
        load_subjects(folder)
        print(f"{path} is ready; edit its captions: say everything but what makes the subject")
    except MetadataError as error:
        print(f"{path} is written, but training will not accept it yet:\n{error}")


def _name_complaints(folder: Path, queries: dict[str, str], names: dict[str, str]) -> list[str]:
    if (folder / METADATA).is_file():
        return []
    missing = [subject for subject in queries if subject not in names]
    return [f"--write_metadata needs --names for {', '.join(missing)}"] if missing else []


def _by_file(
    pairs: list[str], count: int, flag: str, problems: list[str]
) -> dict[str, list[tuple[int, ...]]]:
    """Read FILE=number,number,... words; a file may come several times."""
    table: dict[str, list[tuple[int, ...]]] = {}
    for pair in pairs:
        name, _, numbers = pair.rpartition("=")
        try:
            values = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            values = ()
        if not name or len(values) != count:
            problems.append(
                f"{flag} {pair}: write it as FILE={','.join('xyxy'[:count])}, in pixels"
            )
            continue
        table.setdefault(name, []).append(values)
    return table


if __name__ == "__main__":
    main(parse_args())
