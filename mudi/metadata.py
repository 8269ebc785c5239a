"""`metadata.jsonl` -> the subjects and their photos. The format is described in dataset/README.md.

Everything that is wrong with a folder is found before anything else happens, and told in one go.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mudi.ground.errors import SetupError
from mudi.photo_checks import Findings, PhotoAndMask, check_photos
from mudi.subjects import PHOTOS, Photo, Scene, Subjects
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
PHOTO_TEXTS = (*FILES, "id")  # keys of a photo's line whose values are texts
SUBJECTS, SHARES, SOURCE = "subjects", "shares", "source"
NO_SUBJECTS = f'"{SUBJECTS}" must be a list such as [{{"id": "a", "mask_path": "mask_a.png"}}, …]'
MAX_SHARES = 1000  # draws in which all shares come to whole numbers


class MetadataError(SetupError):
    """Lists every problem of a data folder, one a line, each with its place and what to do.

    Attributes:
        warnings: what is unwise besides, as far as it could be seen.
    """

    def __init__(self, problems: list[str], warnings: Iterable[str] = ()):
        super().__init__("\n".join(problems))
        self.problems, self.warnings = problems, tuple(warnings)


def load_subjects(
    folder: str | Path,
    filename: str = "metadata.jsonl",
    min_subjects: int = 1,
    caption_key: str | None = "text",
    resolution: int | None = None,
    look: Callable[[list[PhotoAndMask], int | None], list[Findings]] = check_photos,
) -> Subjects:
    """Read and check a data folder; every photo and mask is decoded once.

    Args:
        folder: the directory with the metadata file, the photos and the masks.
        filename: "metadata.jsonl", or "class_metadata.jsonl" for a prior set.
        min_subjects: 2 where Seg-Mix is on.
        caption_key: key of the caption, or the list of captions, in the photo lines; None: captions
            are of no use, and each is "".
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
    scenes = tuple(scene for _, scene in reader.scenes)
    return Subjects(reader.names, photos, warnings, path.parent, scenes, reader.shares)


def read_records(path: Path, texts: Sequence[str] = ()) -> list[dict]:
    """Return the objects of a file of JSON lines; none where there is no file.

    Args:
        texts: keys whose values must be texts where they are there at all, such as PHOTO_TEXTS; an
            "id" in the first line may also be the table of names. Nothing else is checked.

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
            is_table = not records and isinstance(record.get("id"), dict)
            own = [key for key in texts if key in record and not (key == "id" and is_table)]
            found += [NO_TEXT.format(key) for key in own if not _is_text(record[key])]
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

    def __init__(self, path: Path, caption_key: str | None):
        self.path = path
        self.caption_key = caption_key
        self.names: dict[str, str] = {}
        self.header_line = 1
        self.shares: dict[str, int] = {}
        self.photos: list[tuple[int, Photo]] = []
        self.scenes: list[tuple[int, Scene]] = []
        self.files: list[tuple[int, Path | None, Path | None]] = []
        self.warnings: list[str] = []
        self.subject_lines: Counter[str] = Counter()  # with a mask
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
            self._read_shares(first[0], header)
        readable = len(self.problems) == header_problems and bool(self.names)
        for line, text in rest:
            record = self._parse(line, text)
            if record is not None:
                is_scene = SUBJECTS in record and "id" not in record
                read_line = self._read_scene if is_scene else self._read_photo
                read_line(line, record, readable)

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

    def _read_shares(self, line: int, record: dict) -> None:
        shares = record.get(SHARES, {})
        whole = isinstance(shares, dict) and all(
            type(share) is int and share > 0 for share in shares.values()
        )
        if not whole or sum(shares.values()) > MAX_SHARES:
            self.complain(
                line,
                f'"{SHARES}" must give each source its draws, as {{"{PHOTOS}": 3, "made": 1}}: '
                f"whole numbers above 0, {MAX_SHARES} in all at most",
            )
            return
        self.shares = {folded(source): share for source, share in shares.items()}

    def _read_photo(self, line: int, record: dict, ids_known: bool) -> None:
        captions = self._read_keys(line, record, ("id", *FILES))
        if "id" in record and not _is_text(record["id"]):
            hint = " (a second subjects line? there is one, the first)"
            self.complain(line, NO_TEXT.format("id") + hint)
        if SUBJECTS in record:
            told = f'"{SUBJECTS}" is not read beside "id"; leave one of them out'
            self.warnings.append(f"{self.path}:{line}: {told}")
        subject = self._known(line, record.get("id"), ids_known)
        files = {key: self._file(line, key, record[key]) for key in FILES if key in record}
        image, mask = files.get("file_name"), files.get("mask_path")
        self.files.append((line, image, mask))
        if subject is not None:
            self.subject_lines[subject] += 1
        source = self._source(line, record)
        if not captions or image is None or mask is None or subject not in self.names:
            return
        place = f"{self.path}:{line}"
        photo = Photo(image, mask, captions[0], subject, captions[1:], place, source)
        self.photos.append((line, photo))

    def _read_scene(self, line: int, record: dict, ids_known: bool) -> None:
        """Read a line of several subjects in one picture, or of subjects without a mask."""
        captions = self._read_keys(line, record, ("file_name",))
        if "mask_path" in record:
            self.complain(line, f'"mask_path" beside "{SUBJECTS}"; give each of these its own')
        entries = record[SUBJECTS]
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries or [0]):
            self.complain(line, NO_SUBJECTS)
            entries = []
        image = None
        if "file_name" in record:
            image = self._file(line, "file_name", record["file_name"])
        masks: dict[str, Path | None] = {}
        for entry in entries:
            if not _is_text(entry.get("id")):
                self.complain(line, f'"{SUBJECTS}": {NO_TEXT.format("id")} in each of them')
                continue
            subject = self._known(line, entry["id"], ids_known)
            if subject in masks:
                self.complain(line, f'subject "{subject}" stands twice in this line; keep one')
            elif subject is not None:
                mask = entry.get("mask_path")
                masks[subject] = None if mask is None else self._file(line, "mask_path", mask)
        self._add_scene(line, image, masks, captions, self._source(line, record))

    def _add_scene(
        self,
        line: int,
        image: Path | None,
        masks: dict[str, Path | None],
        captions: tuple[str, ...],
        source: str,
    ) -> None:
        """Keep a scene, to be checked; masks are by subject, None where there is none."""
        found = {subject: mask for subject, mask in masks.items() if mask}
        for mask, count in Counter(found.values()).items():
            if count > 1:
                self.complain(line, f'mask "{mask.name}" stands twice in this line; keep one')
        self.files += [(line, image, mask) for mask in found.values()] or [(line, image, None)]
        self.subject_lines.update(found.keys())
        if image is None or not captions:
            return
        place = f"{self.path}:{line}"
        cuts = tuple(
            Photo(image, mask, captions[0], subject, captions[1:], place, source)
            for subject, mask in found.items()
        )
        scene = Scene(image, tuple(masks), cuts, captions[0], captions[1:], place, source)
        self.scenes.append((line, scene))

    def _read_keys(self, line: int, record: dict, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Complain about keys that are missing, the captions' too; return the captions."""
        wanted = keys if self.caption_key is None else (*keys, self.caption_key)
        for key in wanted:
            if key not in record:
                self.complain(line, f'no "{key}"; add it to the line')
        if self.caption_key is None:
            return ("",)
        captions = _captions(record.get(self.caption_key))
        if self.caption_key in record and not captions:
            self.complain(line, NO_TEXT.format(self.caption_key))
        return captions

    def _known(self, line: int, subject: object, ids_known: bool) -> str | None:
        """Return a subject's id if it is a text; complain where the first line lacks it."""
        if not _is_text(subject):
            return None
        if ids_known and subject not in self.names:
            known = ", ".join(self.names)
            self.complain(line, f'unknown id "{subject}"; the first line has: {known}')
        return subject

    def _source(self, line: int, record: dict) -> str:
        """Return where a line's picture comes from; all is one where there are no shares."""
        if not self.shares:
            return PHOTOS
        source = record.get(SOURCE, PHOTOS)
        if not _is_text(source):
            self.complain(line, NO_TEXT.format(SOURCE))
        elif folded(source) not in self.shares:
            known = ", ".join(self.shares)
            self.complain(line, f'source "{source}" has no share; the first line has: {known}')
        return folded(str(source))

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
                seen = any(subject in scene.subjects for _, scene in self.scenes)
                what += " with a mask" * seen
                self.complain(self.header_line, f"{what}; add its lines or drop it")
        used = {photo.source for _, photo in self.photos}
        used |= {scene.source for _, scene in self.scenes}
        for source in self.shares.keys() - used:
            what = f'"{SHARES}": no line has the source "{source}"; drop it'
            self.complain(self.header_line, what)

    def check_images(self, resolution: int | None, look: Callable) -> None:
        found = look([(photo, mask) for _, photo, mask in self.files], resolution)
        for (line, *_), (problems, warnings) in zip(self.files, found, strict=True):
            for text in problems:
                if (line, f"{self.path}:{line}: {text}") not in self.problems:  # of a photo twice
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
    first_line: dict[str, tuple[int, str]] = {}
    pictures: list[tuple[int, Photo | Scene]] = sorted(
        [*reader.photos, *reader.scenes], key=lambda item: item[0]
    )
    for line, picture in pictures:
        named = picture.subjects if isinstance(picture, Scene) else (picture.subject,)
        ids = [subject for subject in named if subject in reader.names]
        if not ids:
            continue  # a problem, told by itself
        digest = hashlib.sha256(picture.image.read_bytes()).hexdigest()
        if digest in first_line:
            earlier, subject = first_line[digest]
            hint = "" if subject == ids[0] else f'; of several subjects make one line: "{SUBJECTS}"'
            yield f'{path}:{line}: "{picture.image.name}" is the photo of line {earlier}{hint}'
        first_line.setdefault(digest, (line, ids[0]))
        if reader.caption_key is None:
            continue
        for name in (reader.names[subject] for subject in ids):
            if any(name.lower() not in folded(caption).lower() for caption in picture.captions):
                yield f'{path}:{line}: the caption lacks its subject\'s name "{name}"'
