"""A folder of photos as the page shows it: each with its subject, captions, mask and complaints.

It is read anew for every answer, as other programs write there too. A write says what it replaces,
and is refused where that is no longer there: two tabs, or a tab and an editor, lose nothing.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from posixpath import normpath
from typing import Any

import numpy as np
from PIL import Image

from mudi.ground.files import write_records
from mudi.images import ImageError, load_mask, load_rgb, note_in
from mudi.masks.folder import (
    METADATA,
    Job,
    complete_line,
    file_in,
    id_of,
    is_plausible,
    is_scene,
    lines_by_photo,
    mask_name,
    mask_path_of,
    photo_lines,
    read_metadata,
    write_mask,
)
from mudi.metadata import SUBJECTS, MetadataError, Subjects, file_problem, load_subjects
from mudi.photo_checks import Findings, PhotoAndMask, check_photos
from mudi.studio.server import Refusal
from mudi.texts import folded, rename

BY_HAND = "by hand"  # in the note of a mask that was touched
KEPT_PHOTOS = 3  # decoded; one of 12 megapixels takes 36 MB
NO_LINE = f"not in {METADATA} yet: say whose photo it is"
SEVERAL = f"{{}} lines of {METADATA} list it; only the last of one subject is shown here"
NO_MASK = f"not in {METADATA} yet: that comes with its mask"

Stamp = tuple[int, int] | None  # of a file: when it changed (ns), and its size; None: not there


@dataclass(frozen=True)
class Entry:
    """A photo of the folder.

    Attributes:
        name: relative to the folder, as its line has it but for "./" and the like.
        mask: where its mask is, or goes.
        subject: its line's id, or what its name tells; None: not known.
        line: of metadata.jsonl; None: it has none.
    """

    name: str
    photo: Path
    mask: Path
    subject: str | None
    line: dict[str, Any] | None

    @property
    def text(self) -> Any:
        return None if self.line is None else self.line.get("text")


class PhotoFolder:
    """What is read from a data folder, and written to it."""

    def __init__(self, path: Path, resolution: int | None = None):
        self.path, self.resolution = path, resolution
        self.lock = threading.RLock()  # while something is read, changed and written
        self._seen: dict[tuple, Findings] = {}  # of all versions of all files: a line each
        self._looking = threading.Lock()
        self._decoded = lru_cache(KEPT_PHOTOS)(lambda path, stamp: load_rgb(path))

    @property
    def metadata(self) -> Path:
        return self.path / METADATA

    def records(self) -> list[dict]:
        """Return the lines of metadata.jsonl, the names first.

        Raises:
            MetadataError: it is broken.
        """
        return read_metadata(self.path) or [{"id": {}}]

    def names(self) -> dict[str, str]:
        """Return the subjects' names by id; none where the file is broken."""
        try:
            return dict(self.records()[0]["id"])
        except MetadataError:
            return {}

    def entries(self) -> list[Entry]:
        """Return the photos, listed ones and others, sorted by name."""
        try:
            records = self.records()
        except MetadataError:
            records = [{"id": {}}]
        last, ids = dict(photo_lines(self.path, records)), list(records[0]["id"])
        return [self._entry(name, line, ids) for name, line in last.items()]

    def _entry(self, name: str, line: dict | None, ids: list[str]) -> Entry:
        given = mask_path_of(name, line)
        mask = given if file_problem("mask_path", given) is None else mask_name(Path(name))
        subject = (line or {}).get("id") or id_of(Path(name), ids)
        return Entry(name, file_in(self.path, name), file_in(self.path, mask), subject, line)

    def entry(self, name: str) -> Entry:
        """Return the photo of a name that `entries` gives.

        Raises:
            Refusal: there is none, or it is a link that leads out of the folder.
        """
        found = next((entry for entry in self.entries() if entry.name == name), None)
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such photo; load the page again")
        root = self.path.resolve()
        for path in (found.photo, found.mask):
            if not path.resolve().is_relative_to(root):
                told = f"{path.name} is a link that leads out of the folder; copy the file in"
                raise Refusal(HTTPStatus.FORBIDDEN, told)
        return found

    def photo(self, name: str) -> Image.Image:
        """Return a photo, upright.

        Raises:
            Refusal: it can't be read.
        """
        path = self.entry(name).photo
        try:
            return self._decoded(path, stamp_of(path))
        except ImageError as error:
            told = f"{path.name}: {error}"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told) from error

    def mask(self, name: str) -> np.ndarray | None:
        """Return a photo's mask (H, W) bool; None: there is none.

        Raises:
            Refusal: it can't be read, or has another size than the photo.
        """
        path = self.entry(name).mask
        if not path.is_file():
            return None
        width, height = self.photo(name).size
        try:
            mask = load_mask(path)
        except ImageError as error:
            told = f"{path.name} {error}; a new one can be saved over it"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told) from error
        if mask.shape != (height, width):
            told = f"{path.name} is of another size than its photo; a new one can be saved over it"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
        return mask

    def version(self, name: str) -> str:
        """Return what `save_mask` has to name as the mask that it replaces."""
        return version_of(self.entry(name).mask)

    def save_mask(self, name: str, mask: np.ndarray, version: str, note: dict[str, Any]) -> str:
        """Write a photo's mask in place of the one of that version; return the new version.

        The photo gets its line of metadata.jsonl, if it has none and its subject is known.

        Raises:
            Refusal: another mask is there by now, or this one is empty or all of the photo.
        """
        if not is_plausible(mask):
            told = f"the mask covers {mask.mean():.1%} of the photo; it was not saved"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
        with self.lock:
            records, entry = self.records(), self.entry(name)
            if version_of(entry.mask) != version:
                told = f"{entry.mask.name} has changed since it was opened here; it was not saved"
                raise Refusal(HTTPStatus.CONFLICT, told, changed=True)
            write_mask(entry.mask, mask, json.dumps(note))
            if entry.line is None:
                self._list([entry], records)
            return version_of(entry.mask)

    def _list(self, entries: Iterable[Entry], records: list[dict]) -> None:
        """Give photos their lines, those whose subject has a name."""
        names, listed = records[0]["id"], _last_lines(records)
        for entry in entries:
            if entry.subject is not None and entry.subject in names:
                if entry.name not in listed:
                    records.append(listed.setdefault(entry.name, {}))
                job = Job(entry.name, entry.photo, entry.mask, entry.subject)
                complete_line(listed[entry.name], job, self.path, names)
        write_records(self.metadata, records)

    def set_text(self, name: str, was: Any, now: list[str]) -> None:
        """Give a photo other captions.

        Raises:
            Refusal: the line has others than `was`, or there is no line.
        """
        texts = [text.strip() for text in now if text.strip()]
        with self.lock:
            records = self.records()
            line = _last_lines(records).get(self.entry(name).name)
            if line is None:
                raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, NO_LINE)
            _check_same(line.get("text"), was, f"the caption of {name}")
            line["text"] = texts[0] if len(texts) == 1 else texts or ""
            write_records(self.metadata, records)

    def set_subject(self, name: str, was: str | None, now: str) -> None:
        """Say whose photo it is.

        Raises:
            Refusal: somebody else said otherwise, or there is no such subject.
        """
        with self.lock:
            records, entry = self.records(), self.entry(name)
            if now not in records[0]["id"]:
                raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"no subject {now}")
            _check_same(entry.subject, was, f"the subject of {name}")
            line = _last_lines(records).get(name)
            if line is not None:
                line["id"] = now
            told = Entry(entry.name, entry.photo, entry.mask, now, line)
            self._list([told], records)

    def set_name(self, subject: str, was: str | None, now: str) -> None:
        """Name a subject, a new one (was: None) or by another name, in its captions too.

        Raises:
            Refusal: it has another name by now, the new one is another subject's, or a later
                renaming could not tell it from other words of the captions.
        """
        subject, now = subject.strip(), folded(now)
        if not subject or not now:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "a subject needs an id and a name")
        with self.lock:
            records = self.records()
            names = records[0]["id"]
            _check_same(names.get(subject), was, f"the name of {subject}")
            others = {i: folded(str(name)) for i, name in names.items() if i != subject}
            for other, name in others.items():
                if name.casefold() == now.casefold():
                    told = f'subject {other} is named "{name}"; take another name'
                    raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
            names[subject] = now
            if was is not None:
                own = [line for line in records[1:] if subject in _shown_in(line)]
                _rename_in(own, was, now, [name for name in others.values() if name])
            write_records(self.metadata, records)
            waiting = [e for e in self.entries() if e.line is None and e.mask.is_file()]
            self._list(waiting, self.records())

    def subjects(self, min_subjects: int = 2, resolution: int | None = None) -> Subjects:
        """Return what training would read.

        Raises:
            MetadataError: lists every problem.
        """
        return load_subjects(
            self.path, min_subjects=min_subjects, resolution=resolution, look=self._look
        )

    def ready_subjects(self, min_subjects: int = 2, resolution: int | None = None) -> Subjects:
        """Return what training would read, for answers that need it.

        Raises:
            Refusal: it would not take the folder.
        """
        try:
            return self.subjects(min_subjects, resolution)
        except MetadataError as error:
            problems = [text.removeprefix(f"{self.path}/") for text in error.problems]
            told = "\n".join(["The folder is not ready yet:", *problems])
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told) from error

    def _look(self, files: list[PhotoAndMask], resolution: int | None) -> list[Findings]:
        """Look at what has changed since it was looked at."""
        keys = [(*pair, *map(stamp_of, pair), resolution) for pair in files]
        with self._looking:
            new = {
                key: pair for key, pair in zip(keys, files, strict=True) if key not in self._seen
            }
            self._seen.update(zip(new, check_photos(new.values(), resolution), strict=True))
            return [self._seen[key] for key in keys]

    def complaints(self) -> tuple[list[str], list[str]]:
        """Return the checker's problems and warnings, as training would tell them."""
        if not self.metadata.is_file():
            return [f"no {METADATA} yet: name the subjects"], []
        try:
            return [], list(self.subjects(resolution=self.resolution).warnings)
        except MetadataError as error:
            return error.problems, list(error.warnings)

    def state(self) -> dict[str, Any]:
        """Return all that the page shows of the folder."""
        with self.lock:
            entries, (problems, warnings) = self.entries(), self.complaints()
            lines = self._lines()
        names = self.names()
        at: dict[str, dict[str, list[str]]] = {e.name: {} for e in entries}
        general: dict[str, list[str]] = {"problems": [], "warnings": []}
        for kind, texts in (("problems", problems), ("warnings", warnings)):
            for text in texts:
                number, told = _placed(text, self.metadata)
                own = at.get(lines.get(number, ""), general)
                own.setdefault(kind, []).append(told)
        for name, count in Counter(lines.values()).items():
            if count > 1 and name in at:
                at[name].setdefault("warnings", []).append(SEVERAL.format(count))
        return {
            "folder": self.path.resolve().name,
            "key": hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:12],
            "names": names,
            "photos": [self._told(entry, names, **at[entry.name]) for entry in entries],
            **general,
        }

    def _lines(self) -> dict[int, str]:
        """Return the photos by the numbers of their lines."""
        try:
            texts = self.metadata.read_text(encoding="utf-8-sig").split("\n")
            numbers = [number for number, text in enumerate(texts, 1) if text.strip()]
            records = self.records()
        except (MetadataError, OSError, UnicodeDecodeError):
            return {}
        return {
            number: normpath(record["file_name"])
            for number, record in zip(numbers, records, strict=False)
            if isinstance(record.get("file_name"), str)
        }

    def _told(
        self,
        entry: Entry,
        names: dict[str, str],
        problems: Iterable[str] = (),
        warnings: Iterable[str] = (),
    ) -> dict[str, Any]:
        problems, warnings = list(problems), list(warnings)
        if entry.line is None and entry.subject in names:
            warnings.append(NO_MASK)
        elif entry.line is None:
            problems.append(NO_LINE)
        state = "made" if entry.mask.is_file() else "none"
        if state == "made" and BY_HAND in note_in(entry.mask):
            state = "hand"
        return {
            "name": entry.name,
            "subject": entry.subject,
            "text": entry.text,
            "listed": entry.line is not None,
            "state": "problem" if problems and entry.line and state != "none" else state,
            "stamp": "-".join(map(str, stamp_of(entry.photo) or ())),
            "version": version_of(entry.mask),
            "problems": problems,
            "warnings": warnings,
        }


def version_of(path: Path) -> str:
    """Return a short name for what a file holds; "" where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def stamp_of(path: Path | None) -> Stamp:
    """Return what changes with a file; None where there is none."""
    try:
        stat = path.stat() if path else None
    except OSError:
        return None
    return None if stat is None else (stat.st_mtime_ns, stat.st_size)


def _last_lines(records: list[dict]) -> dict[str, dict[str, Any]]:
    """Return by their names the lines of photos that are shown: the last of each, no scenes."""
    own = [record for record in records if not is_scene(record)]
    return {name: lines[-1] for name, lines in lines_by_photo(own).items()}


def _check_same(there: Any, was: Any, what: str) -> None:
    if there != was:
        told = f"{what} has changed since it was read here; nothing was written"
        raise Refusal(HTTPStatus.CONFLICT, told, changed=True)


def _shown_in(line: dict[str, Any]) -> list[Any]:
    """Return the ids of a photo's subject, or of a scene's."""
    scene = line.get(SUBJECTS)
    cuts = scene if isinstance(scene, list) else []
    return [line.get("id"), *(cut.get("id") for cut in cuts if isinstance(cut, dict))]


def _rename_in(lines: list[dict[str, Any]], was: str, now: str, others: list[str]) -> None:
    """Put a subject's new name into the captions of its lines.

    Where none of them has the old one, they may have the new one already.

    Raises:
        Refusal: the old name could not be put back so.
    """
    found = [(line.get("file_name"), text) for line in lines for text in _texts_in(line)]
    renamed = {text: rename(text, was, now, others) for _, text in found}
    if any(text != new for text, new in renamed.items()):
        for photo, text in found:
            back = rename(renamed[text], now, was, others)
            if folded(back).casefold() != folded(text).casefold():
                told = (
                    f'in the caption of {photo}, "{now}" could not be told from other words; take '
                    "another name, or change that caption first"
                )
                raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
    for line in lines:
        if "text" in line:
            line["text"] = _replaced(line["text"], renamed)


def _texts_in(line: dict[str, Any]) -> list[str]:
    text = line.get("text")
    return [part for part in (text if isinstance(text, list) else [text]) if isinstance(part, str)]


def _replaced(text: Any, new: dict[str, str]) -> Any:
    if isinstance(text, list):
        return [_replaced(part, new) for part in text]
    return new.get(text, text) if isinstance(text, str) else text


def _placed(complaint: str, path: Path) -> tuple[int, str]:
    """Return the line that a complaint of the checker names, 0 where none, and the rest of it."""
    head, _, told = complaint.removeprefix(f"{path}:").partition(": ")
    return (int(head), told) if head.isdecimal() else (0, complaint)
