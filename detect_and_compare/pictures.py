"""The pictures to score: a folder of them, or a JSONL that says more about each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect_and_compare.references import pictures_in
from mudi.ground.work import CHECKSUM
from mudi.metadata import MetadataError, read_records

IMAGE, PROMPT = "image", "prompt"
LIST = "pictures.jsonl"  # inference.py's, in its output folder, which holds a contact sheet as well
# Keys of scores.jsonl, which a JSONL of pictures may not use
FILE_KEYS = ("bytes", "modified")
FOUND_BY = "found_by"  # the detector, of lines that are kept without a run.json
RESULT_KEYS = (
    FOUND_BY,
    "size",
    "boxes",
    "confidences",
    "answers",
    "problem",
    "scores",
    "text_fidelity",
)


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        name: as the JSONL says it, or relative to the folder; unique.
        extra: the JSONL's other keys, `prompt` among them.
    """

    name: str
    path: Path
    extra: dict[str, Any]

    @property
    def prompt(self) -> str | None:
        """The JSONL's; null counts as none."""
        text = self.extra.get(PROMPT)
        return None if text is None else str(text)

    @property
    def stamp(self) -> dict[str, Any]:
        """What the picture's line of scores.jsonl begins with; if it changes, so may the scores."""
        stat = self.path.stat() if self.path.is_file() else None
        file = dict(zip(FILE_KEYS, (stat.st_size, stat.st_mtime), strict=True)) if stat else {}
        return {IMAGE: self.name, **self.extra, **file}


def without_results(line: dict[str, Any]) -> dict[str, Any]:
    """Return the `Picture.stamp` that a line of scores.jsonl was written with."""
    return {key: value for key, value in line.items() if key not in RESULT_KEYS}


def find_pictures(source: Path, problems: list[str]) -> list[Picture]:
    """Return the pictures below a folder, or those of a JSONL's lines; add what is wrong.

    Of a folder with a pictures.jsonl, as inference.py writes it, those of its lines.
    """
    if (source / LIST).is_file():
        source /= LIST
    if source.is_dir():
        found = [
            Picture(path.relative_to(source).as_posix(), path, {}) for path in pictures_in(source)
        ]
    elif source.is_file():
        found = _listed(source, problems)
    else:
        problems.append(f"--images {source}: no such folder or file")
        return []
    if not found and not problems:
        problems.append(f"--images {source}: no pictures")
    return found


def _listed(source: Path, problems: list[str]) -> list[Picture]:
    try:
        records = read_records(source)
    except MetadataError as error:
        problems += error.problems
        return []
    found: dict[str, Picture] = {}
    for number, record in enumerate(records, 1):
        name = record.get(IMAGE)
        taken = [key for key in record if key in (*FILE_KEYS, *RESULT_KEYS)]
        if not isinstance(name, str) or not name:
            problems.append(f'{source}: object {number} has no "{IMAGE}" (a path)')
        elif name in found:
            problems.append(f'{source}: object {number} names "{name}" again; keep one')
        elif taken:
            problems.append(
                f'{source}: object {number}: "{taken[0]}" is a key of the scores; rename it'
            )
        else:
            extra = {key: record[key] for key in record if key not in (IMAGE, CHECKSUM)}
            found[name] = Picture(name, source.parent / name, extra)
    return list(found.values())
