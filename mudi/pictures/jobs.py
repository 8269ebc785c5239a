"""Pictures as files: what each follows from, whether it is there, how it is written."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import PngImagePlugin

from mudi.ground.errors import SetupError
from mudi.ground.files import replace_file
from mudi.ground.flags import differences, origins
from mudi.ground.lora_outline import lora_path
from mudi.metadata import Subjects
from mudi.pictures.args import PictureArgs
from mudi.pictures.sampling import Picture, Shot
from mudi.pictures.shot_args import negative_prompt
from mudi.words import words_file

PICTURES, SHEET = "pictures.jsonl", "sheet.png"  # of an output folder: the list of what is in it
ANEW = "use --overwrite or another --output_dir"


@dataclass(frozen=True)
class Job:
    """A picture's file name and what is to be in it."""

    name: str
    shot: Shot


def origin_of(args: PictureArgs, subjects: Subjects | None) -> dict[str, Any]:
    """Return the flags that a picture follows from, and what the files that they name hold."""
    return {
        **origins(args, PictureArgs),
        "negative_prompt": negative_prompt(args),
        "lora_files": lora_digests(args.lora),
        "data": data_digest(subjects),
    }


def lora_digests(loras: Sequence[str]) -> list[str]:
    """Return short names for what LoRAs and their learned words hold, as far as they are here."""
    files = [lora_path(Path(path)) for path in loras]
    words = [path for path in map(words_file, files) if path is not None]
    return [file_digest(path) for path in (*files, *words) if path.is_file()]


def data_digest(subjects: Subjects | None) -> str:
    """Return a short name for the subjects' names, photos and masks."""
    photos = subjects.cuts if subjects else []
    data = [file_digest(path) for photo in photos for path in (photo.image, photo.mask)]
    names = json.dumps(subjects.names if subjects else {})
    return hashlib.sha256(f"{names}{data}".encode()).hexdigest()[:12]


def file_digest(path: Path) -> str:
    """Return a short name for a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def settings_of(job: Job, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that a picture follows from, as JSON has it."""
    return json.loads(json.dumps({**asdict(job.shot), **origin}))


def check_unchanged(path: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare what a picture was made by with what it is to be made by.

    Raises:
        SetupError: it is another picture.
    """
    if changed := differences(record, settings):
        raise SetupError(f"{path} was made otherwise ({'; '.join(changed)}): {ANEW}")


def write_picture(
    job: Job, picture: Picture, path: Path, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a picture with its parameters to path; return its line."""
    width, height = picture.image.size
    record = {"image": job.name, **settings_of(job, origin), "canvas": [width, height]}
    if picture.start:
        record["start"] = asdict(picture.start.layout)
        record["start_photos"] = [photo.image.name for photo in picture.start.photos]
    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt("mudi", json.dumps(record, ensure_ascii=False))
    replace_file(path, lambda file: picture.image.save(file, format="PNG", pnginfo=metadata))
    return record
