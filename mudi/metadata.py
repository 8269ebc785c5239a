"""`metadata.jsonl` -> the subjects and their photos. The format is described in dataset/README.md.

Everything that is wrong with a folder is found before anything else happens, and told in one go.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mudi.images import FOREGROUND_LEVEL, ImageError, load_gray, load_rgb

PRIOR_FILENAME = "class_metadata.jsonl"
MIN_FOREGROUND = 0.001  # of the pixels; JPEG noise alone can pass FOREGROUND_LEVEL here and there
MAX_FOREGROUND = 0.999
FEW_PHOTOS = 3
NO_NAMES = (
    "the first line must name the subjects, as in "
    '{"id": {"a": "<rare token> <noun>", "b": "<rare token> <noun>"}}'
)
NO_TEXT = '"{}" must be a non-empty text'
FILES = {"file_name": "photo", "mask_path": "mask"}  # what a line's keys name


class MetadataError(ValueError):
    """Lists every problem of a data folder, one a line, each with its place and what to do."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Photo:
    """One photo of one subject; `subject` is an id of `Subjects.names`."""

    image: Path
    mask: Path
    caption: str
    subject: str


@dataclass(frozen=True)
class Subjects:
    """A data folder: `names` maps id -> prompt name, in the file's order."""

    names: dict[str, str]
    photos: list[Photo]
    warnings: tuple[str, ...] = ()

    def photos_of(self, subject: str) -> list[Photo]:
        return [photo for photo in self.photos if photo.subject == subject]


def load_subjects(
    folder: str | Path,
    filename: str = "metadata.jsonl",
    min_subjects: int = 1,
    caption_key: str = "text",
) -> Subjects:
    """Read and check a data folder; every photo and mask is decoded once.

    Args:
        folder: the directory with the metadata file, the photos and the masks.
        filename: "metadata.jsonl", or "class_metadata.jsonl" for a prior set.
        min_subjects: 2 where Seg-Mix is on.
        caption_key: key of the caption in the photo lines.

    Raises:
        MetadataError: lists every problem as "file:line: what; what to do".
    """
    path = Path(folder) / filename
    lines = _read_lines(path)
    reader = _Reader(path, caption_key)
    reader.read(lines)
    reader.check_subjects(min_subjects)
    reader.check_images()
    if reader.problems:
        raise MetadataError([text for _, text in sorted(reader.problems, key=lambda item: item[0])])
    photos = [photo for _, photo in reader.photos]
    return Subjects(reader.names, photos, tuple(_warnings(path, reader)))


def read_records(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines, unchecked; none where there is no file.

    Raises:
        MetadataError: lists the lines that are no JSON object.
    """
    if not path.is_file():
        return []
    records, problems = [], []
    for number, line in _read_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: broken JSON ({error.msg}); mend the line")
            continue
        if not isinstance(record, dict):
            problems.append(f"{path}:{number}: not a JSON object; mend the line")
        records.append(record)
    if problems:
        raise MetadataError(problems)
    return records


def file_problem(key: str, name: object) -> str | None:
    """Say why a line's "file_name" or "mask_path" can't be in its folder, or return None."""
    if not _is_text(name):
        return NO_TEXT.format(key)
    if Path(name).is_absolute() or Path(os.path.normpath(name)).parts[:1] == ("..",):
        return f'{FILES[key]} "{name}" lies outside the folder; move it inside'
    return None


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the non-blank lines with their numbers."""
    if not path.parent.is_dir():
        raise MetadataError([f"{path.parent}: no such folder; check the path"])
    if not path.is_file():
        raise MetadataError([f"{path}: no such file; dataset/README.md describes the format"])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MetadataError([f"{path}: not UTF-8 ({error}); save it as UTF-8"]) from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise MetadataError([f"{path}: the file is empty; dataset/README.md describes the format"])
    return lines


class _Reader:
    """Gathers names, photos and problems; a problem is (line number, text), sorted at the end."""

    def __init__(self, path: Path, caption_key: str):
        self.path = path
        self.caption_key = caption_key
        self.names: dict[str, str] = {}
        self.header_line = 1
        self.photos: list[tuple[int, Photo]] = []
        self.files: list[tuple[int, Path | None, Path | None]] = []
        self.subject_lines: Counter[str] = Counter()
        self.problems: list[tuple[int, str]] = []

    def complain(self, line: int, text: str) -> None:
        self.problems.append((line, f"{self.path}:{line}: {text}"))

    def read(self, lines: list[tuple[int, str]]) -> None:
        first, rest = lines[0], lines[1:]
        self.header_line = first[0]
        header = self._parse(*first)
        header_problems = len(self.problems)
        if header is not None:
            self._read_names(first[0], header)
        readable = len(self.problems) == header_problems and bool(self.names)
        for line, text in rest:
            record = self._parse(line, text)
            if record is not None:
                self._read_photo(line, record, ids_known=readable)

    def _parse(self, line: int, text: str) -> dict | None:
        repeated: list[str] = []

        def pairs_to_dict(pairs: list[tuple[str, object]]) -> dict:
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key, count in counts.items() if count > 1)
            return dict(pairs)

        try:
            record = json.loads(text, object_pairs_hook=pairs_to_dict)
        except json.JSONDecodeError as error:
            self.complain(line, f"broken JSON ({error.msg} at column {error.colno}); mend the line")
            return None
        except (ValueError, RecursionError) as error:  # a number or a nesting without end
            self.complain(line, f"broken JSON ({error}); mend the line")
            return None
        for key in repeated:
            self.complain(line, f'"{key}" stands twice in this line; keep one')
        if not isinstance(record, dict):
            self.complain(line, 'not a JSON object; a line looks like {"id": …, "file_name": …}')
            return None
        return record

    def _read_names(self, line: int, record: dict) -> None:
        names = record.get("id")
        if not isinstance(names, dict) or not names:
            self.complain(line, NO_NAMES)
            return
        for subject, name in names.items():
            if not subject.strip() or not isinstance(name, str) or not name.strip():
                self.complain(line, f'subject "{subject}" needs a name (a non-empty text)')
        self.names = {subject: str(name).strip() for subject, name in names.items()}

    def _read_photo(self, line: int, record: dict, ids_known: bool) -> None:
        missing = [k for k in ("id", *FILES, self.caption_key) if k not in record]
        for key in missing:
            self.complain(line, f'no "{key}"; add it to the line')
        texts = ("id", self.caption_key)
        wrong = [key for key in texts if key in record and not _is_text(record[key])]
        for key in wrong:
            hint = " (a second subjects line? there is one, the first)" if key == "id" else ""
            self.complain(line, NO_TEXT.format(key) + hint)
        subject = record.get("id")
        if _is_text(subject):
            self.subject_lines[subject] += 1
            if ids_known and subject not in self.names:
                known = ", ".join(self.names)
                self.complain(line, f'unknown id "{subject}"; the first line has: {known}')
        files = {key: self._file(line, key, record[key]) for key in FILES if key in record}
        image, mask = files.get("file_name"), files.get("mask_path")
        self.files.append((line, image, mask))
        if missing or wrong or image is None or mask is None or subject not in self.names:
            return
        self.photos.append((line, Photo(image, mask, record[self.caption_key], subject)))

    def _file(self, line: int, key: str, name: Any) -> Path | None:
        """Return the file that a line names, or complain and return None."""
        problem = file_problem(key, name)
        if problem is None and not _is_file(self.path.parent / name):
            problem = f'no such {FILES[key]}: "{name}"; mend "{key}" or add the file'
        if problem is not None:
            self.complain(line, problem)
            return None
        return self.path.parent / name

    def check_subjects(self, min_subjects: int) -> None:
        if self.names and len(self.names) < min_subjects:
            self.complain(
                self.header_line,
                f"{len(self.names)} subject, Seg-Mix needs {min_subjects} or more; "
                "add one, or train with --segmix_prob 0",
            )
        for subject, name in self.names.items():
            if self.subject_lines[subject] == 0:
                what = f'subject "{subject}" ({name}) has no photo'
                self.complain(self.header_line, f"{what}; add its lines or drop it")

    def check_images(self) -> None:
        """Decode all photos and masks; Pillow's decoders release the GIL, so threads help."""
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            complaints = pool.map(lambda item: list(_image_problems(*item[1:])), self.files)
            for (line, *_), found in zip(self.files, complaints, strict=True):
                for text in found:
                    self.complain(line, text)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False


def _image_problems(image: Path | None, mask: Path | None) -> Iterator[str]:
    """Check the files that a line names and that exist, whatever else is wrong with the line."""
    size = gray = None
    if image is not None:
        try:
            size = load_rgb(image).size
        except ImageError as error:
            yield f'photo "{image.name}" {error}'
    if mask is not None:
        try:
            gray = load_gray(mask)
        except ImageError as error:
            yield f'mask "{mask.name}" {error}'
    if mask is None or gray is None:
        return
    mask_size = (gray.shape[1], gray.shape[0])
    if image is not None and size is not None and mask_size != size:
        yield (
            f'mask "{mask.name}" is {mask_size[0]}x{mask_size[1]}, its photo '
            f'"{image.name}" {size[0]}x{size[1]} (after EXIF rotation); make them equal'
        )
    foreground = float((gray > FOREGROUND_LEVEL).mean())
    if foreground < MIN_FOREGROUND:
        yield (
            f'mask "{mask.name}" has {foreground:.2%} foreground (pixels above '
            f"{FOREGROUND_LEVEL}; its brightest is {gray.max()}); the subject must be white (255)"
        )
    elif foreground > MAX_FOREGROUND:
        yield (
            f'mask "{mask.name}" is foreground all over ({foreground:.2%}); '
            "the background must be black (0)"
        )


def _warnings(path: Path, reader: _Reader) -> Iterator[str]:
    """What is legal but unwise."""
    for subject, name in reader.names.items():
        count = reader.subject_lines[subject]
        if count < FEW_PHOTOS:
            place = f"{path}:{reader.header_line}"
            yield f'{place}: subject "{subject}" ({name}) has {count} photo(s); five are advised'
    first_line: dict[str, int] = {}
    for line, photo in reader.photos:
        digest = hashlib.sha256(photo.image.read_bytes()).hexdigest()
        if digest in first_line:
            yield f'{path}:{line}: "{photo.image.name}" is the photo of line {first_line[digest]}'
        first_line.setdefault(digest, line)
        name = reader.names[photo.subject]
        if name.lower() not in photo.caption.lower():
            yield f'{path}:{line}: the caption lacks its subject\'s name "{name}"'
