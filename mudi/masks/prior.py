"""The pictures of a prior set: which there are to be, which there are, and class_metadata.jsonl."""

import hashlib
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mudi.ground.errors import SetupError
from mudi.ground.files import write_records
from mudi.ground.work import Journal
from mudi.masks.args import DEFAULT_ID
from mudi.masks.folder import MASK_PREFIX, PLAIN_CAPTION
from mudi.metadata import (
    PHOTO_TEXTS,
    PRIOR_FILENAME,
    MetadataError,
    load_subjects,
    read_records,
)
from mudi.texts import find_file


@dataclass(frozen=True)
class Job:
    """One picture of one class, and how many objects each try so far has shown."""

    subject: str
    noun: str
    query: str
    index: int
    objects: tuple[int, ...] = ()

    @property
    def image_name(self) -> str:
        return f"{self._prefix}img_{self.index}.png"

    @property
    def mask_name(self) -> str:
        return f"{self._prefix}{MASK_PREFIX}{self.index}.png"

    @property
    def _prefix(self) -> str:
        return "" if self.subject == DEFAULT_ID else f"{self.subject}_"

    def generator(self, seed: int) -> torch.Generator:
        """Return the noise of this try; on the CPU, so that every device draws the same."""
        name = f"prior {seed} {self.subject} {self.noun} {self.index} {len(self.objects)}"
        return torch.Generator().manual_seed(random.Random(name).getrandbits(63))


def settings_of(job: Job, origin: dict[str, Any]) -> str:
    """Return a short name for what a picture's tries follow from.

    Args:
        origin: the flags among it.
    """
    settings = {name: str(origin[name]) for name in sorted(origin)} | {"query": job.query}
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def check_log(jobs: list[Job], journal: Journal) -> None:
    """Refuse to mix classes.

    Raises:
        SetupError: an earlier run made pictures of another class under the same names.
    """
    for job in jobs:
        earlier = journal.done.get(job.image_name, {}).get("class", job.noun)
        if earlier != job.noun:
            raise SetupError(
                f"{journal.path}: {job.image_name} is a {earlier}, not a {job.noun}; "
                "take another --out_dir or --id"
            )


def unfinished(
    jobs: list[Job],
    journal: Journal,
    out_dir: Path,
    with_mask: bool,
    tries: int,
    origin: dict[str, Any],
) -> list[Job]:
    """Return the jobs without a picture that have tries left.

    What earlier runs with the same settings tried in vain counts; with others it starts anew.
    """
    todo = []
    for job in jobs:
        record = journal.done.get(job.image_name, {})
        if is_done(record, out_dir, with_mask):
            continue
        if record.get("settings") == settings_of(job, origin):
            job = replace(job, objects=tuple(record.get("objects", ())))
        if len(job.objects) < tries:
            todo.append(job)
    return todo


def is_done(record: dict, out_dir: Path, with_mask: bool) -> bool:
    """Say whether a noted picture is there, and its mask if one is wanted."""
    keys = ("file_name", "mask_path") if with_mask else ("file_name",)
    return all(key in record and find_file(out_dir, record[key]) for key in keys)


def read_listed(folder: Path, classes: dict[str, str], problems: list[str]) -> list[dict]:
    """Return the lines of an earlier class_metadata.jsonl, the names of its classes first."""
    path = folder / PRIOR_FILENAME
    try:
        records = read_records(path, PHOTO_TEXTS) or [{"id": {}}]
    except MetadataError as error:
        problems += error.problems
        return []
    names = records[0].get("id")
    if not isinstance(names, dict):
        problems.append(f"{path}:1: the first line must name the classes; mend or remove the file")
        return []
    for subject in names.keys() & classes.keys():
        if names[subject] != classes[subject]:
            problems.append(
                f'{path}:1: "{subject}" is a {names[subject]}, not a {classes[subject]}; '
                "take another --out_dir or --id"
            )
    return records


def class_lines(listed: list[dict], records: list[dict], made: list[dict]) -> list[dict]:
    """Return the lines of class_metadata.jsonl, class by class.

    Args:
        listed: see `read_listed`. Captions that stand there are kept, as are the lines of pictures
            that the log does not know.
        records: the log.
        made: those of its records whose files are there.
    """
    earlier = {line.get("file_name"): line for line in listed[1:]}
    ours = {record["file_name"] for record in records}
    lines = [line for name, line in earlier.items() if name not in ours]
    for record in made:
        places = {key: record[key] for key in ("id", "file_name", "mask_path")}
        text = PLAIN_CAPTION.format(record["class"])
        lines.append({"text": text, **earlier.get(record["file_name"], {}), **places})
    names = listed[0]["id"] | {record["id"]: record["class"] for record in made}
    by_class = {name: [line for line in lines if line.get("id") == name] for name in names}
    header = {subject: names[subject] for subject in names if by_class[subject]}
    unknown = [line for line in lines if line.get("id") not in names]  # told by the check
    return [{"id": header}, *(line for own in by_class.values() for line in own), *unknown]


def write_class_metadata(folder: Path, lines: list[dict]) -> None:
    """Write class_metadata.jsonl and check the folder.

    Raises:
        SetupError: training would refuse it; all problems are listed.
    """
    path = folder / PRIOR_FILENAME
    write_records(path, lines)
    try:
        load_subjects(folder, PRIOR_FILENAME)
    except MetadataError as error:
        raise SetupError(f"{path} is written, but training will not take it:\n{error}") from error
