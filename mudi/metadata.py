"""`metadata.jsonl` -> the subjects and their photos. The format is described in dataset/README.md.

Everything that is wrong with a folder is found before anything else happens, and told in one go.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from mudi.ground.errors import SetupError
from mudi.photo_checks import Findings, PhotoAndMask, check_photos
from mudi.texts import find_file, folded, has_half_character

PRIOR_FILENAME = "class_metadata.jsonl"
FEW_PHOTOS = 3
NO_NAMES = (
    "the first line must name the subjects, as in "
    '{"id": {"a": "<rare token> <noun>", "b": "<rare token> <noun>"}}'
)
NO_TEXT = '"{}" must be a non-empty text'
HALF_CHARACTER = (
    'holds half a character (such as "\\ud83d", a lone half of an emoji); mend the line'
)
FILES = {"file_name": "photo", "mask_path": "mask"}  # what a line's keys name


class MetadataError(SetupError):
    """Lists every problem of a data folder, one a line, each with its place and what to do.

    Attributes:
        warnings: what is unwise besides, as far as it could be seen.
    """

    def __init__(self, problems: list[str], warnings: Iterable[str] = ()):
        super().__init__("\n".join(problems))
        self.problems, self.warnings = problems, tuple(warnings)


@dataclass(frozen=True)
class Photo:
    """One photo of one subject; `subject` is an id of `Subjects.names`.

    Attributes:
        caption: its first caption.
        more_captions: others, of which a training draws one a time.
        place: the metadata's file and line.
    """

    image: Path
    mask: Path
    caption: str
    subject: str
    more_captions: tuple[str, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption, *self.more_captions)


@dataclass(frozen=True)
class Subjects:
    """A data folder: `names` maps id -> prompt name, folded, in the file's order."""

    names: dict[str, str]
    photos: list[Photo]
    warnings: tuple[str, ...] = ()
    folder: Path = Path()

    def photos_of(self, subject: str) -> list[Photo]:
        return [photo for photo in self.photos if photo.subject == subject]


def load_subjects(
    folder: str | Path,
    filename: str = "metadata.jsonl",
    min_subjects: int = 1,
    caption_key: str = "text",
    resolution: int | None = None,
    look: Callable[[list[PhotoAndMask], int | None], list[Findings]] = check_photos,
) -> Subjects:
    """Read and check a data folder; every photo and mask is decoded once.

    Args:
        folder: the directory with the metadata file, the photos and the masks.
        filename: "metadata.jsonl", or "class_metadata.jsonl" for a prior set.
        min_subjects: 2 where Seg-Mix is on.
        caption_key: key of the caption, or the list of captions, in the photo lines.
        resolution: side of the training samples (px); None: there is no training.
        look: in place of `check_photos`, by who keeps what it found.

    Raises:
        MetadataError: lists every problem as "file:line: what; what to do".
    """
    path = Path(folder) / filename
    lines = _read_lines(path)
    reader = _Reader(path, caption_key)
    reader.read(lines)
    reader.check_subjects(min_subjects)
    reader.check_images(resolution, look)
    warnings = tuple(_warnings(path, reader))
    if reader.problems:
        problems = [text for _, text in sorted(reader.problems, key=lambda item: item[0])]
        raise MetadataError(problems, warnings)
    photos = [photo for _, photo in reader.photos]
    return Subjects(reader.names, photos, warnings, path.parent)


def read_records(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines; none where there is no file.

    Their ids (but the first line's, which may be the table of names) and file names are texts where
    they are there at all; nothing else is checked.

    Raises:
        MetadataError: lists what is wrong.
    """
    if not path.is_file():
        return []
    records: list[dict] = []
    problems: list[str] = []
    for number, line in _read_lines(path):
        record, found = _parse(line)
        if record is not None:
            texts = [key for key in (*FILES, "id") if key in record]
            if not records and isinstance(record.get("id"), dict):
                texts.remove("id")
            found += [NO_TEXT.format(key) for key in texts if not _is_text(record[key])]
            records.append(record)
        problems += [f"{path}:{number}: {problem}" for problem in found]
    if problems:
        raise MetadataError(problems)
    return records


def file_problem(key: str, name: object) -> str | None:
    """Say why a line's "file_name" or "mask_path" can't be in its folder, or return None."""
    if not _is_text(name):
        return NO_TEXT.format(key)
    if has_half_character(name):
        return f'"{key}" {HALF_CHARACTER}'
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


def _parse(text: str) -> tuple[dict | None, list[str]]:
    """Return a line's JSON object, if it is one, and what is wrong with it."""
    repeated: list[str] = []

    def pairs_to_dict(pairs: list[tuple[str, object]]) -> dict:
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        record = json.loads(text, object_pairs_hook=pairs_to_dict)
        halved = has_half_character(json.dumps(record, ensure_ascii=False))
    except json.JSONDecodeError as error:
        return None, [f"broken JSON ({error.msg} at column {error.colno}); mend the line"]
    except (ValueError, RecursionError) as error:  # a number or a nesting without end
        return None, [f"broken JSON ({error}); mend the line"]
    if halved:
        return None, [HALF_CHARACTER]
    problems = [f'"{key}" stands twice in this line; keep one' for key in repeated]
    if isinstance(record, dict):
        return record, problems
    return None, [*problems, 'not a JSON object; a line looks like {"id": …, "file_name": …}']


class _Reader:
    """Gathers names, photos and problems; a problem is (line number, text), sorted at the end."""

    def __init__(self, path: Path, caption_key: str):
        self.path = path
        self.caption_key = caption_key
        self.names: dict[str, str] = {}
        self.header_line = 1
        self.photos: list[tuple[int, Photo]] = []
        self.files: list[tuple[int, Path | None, Path | None]] = []
        self.warnings: list[str] = []
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
        record, problems = _parse(text)
        for problem in problems:
            self.complain(line, problem)
        return record

    def _read_names(self, line: int, record: dict) -> None:
        names = record.get("id")
        if not isinstance(names, dict) or not names:
            self.complain(line, NO_NAMES)
            return
        for subject, name in names.items():
            if not subject.strip() or not isinstance(name, str) or not name.strip():
                self.complain(line, f'subject "{subject}" needs a name (a non-empty text)')
        self.names = {subject: folded(str(name)) for subject, name in names.items()}

    def _read_photo(self, line: int, record: dict, ids_known: bool) -> None:
        missing = [k for k in ("id", *FILES, self.caption_key) if k not in record]
        for key in missing:
            self.complain(line, f'no "{key}"; add it to the line')
        captions = _captions(record.get(self.caption_key))
        wrong = ["id"] if "id" in record and not _is_text(record["id"]) else []
        if self.caption_key in record and not captions:
            wrong.append(self.caption_key)
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
        place = f"{self.path}:{line}"
        self.photos.append((line, Photo(image, mask, captions[0], subject, captions[1:], place)))

    def _file(self, line: int, key: str, name: Any) -> Path | None:
        """Return the file that a line names, or complain and return None."""
        problem = file_problem(key, name)
        path = None if problem else find_file(self.path.parent, name)
        if problem is None and path is None:
            problem = f'no such {FILES[key]}: "{name}"; mend "{key}" or add the file'
        if problem is not None:
            self.complain(line, problem)
        return path

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

    def check_images(self, resolution: int | None, look: Callable) -> None:
        found = look([(photo, mask) for _, photo, mask in self.files], resolution)
        for (line, *_), (problems, warnings) in zip(self.files, found, strict=True):
            for text in problems:
                self.complain(line, text)
            self.warnings += [f"{self.path}:{line}: {text}" for text in warnings]


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _captions(value: object) -> tuple[str, ...]:
    """Return the caption, or the list of captions; none where anything else is given."""
    given = value if isinstance(value, list) else [value]
    texts = tuple(text for text in given if _is_text(text))
    return texts if len(texts) == len(given) else ()


def _warnings(path: Path, reader: _Reader) -> Iterator[str]:
    """What is legal but unwise."""
    yield from reader.warnings
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
        if any(name.lower() not in folded(caption).lower() for caption in photo.captions):
            yield f'{path}:{line}: the caption lacks its subject\'s name "{name}"'
