"""Files and folders that appear complete or not at all, whenever the process is killed."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

TEMPORARY = ".incomplete-"  # begins the name of what is still being written
REPLACED = ".replaced-"  # begins the name of a folder that is being swapped for a new one


def replace_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside path, then rename it over path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    write(temporary)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file, complete or not at all."""
    return replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_image(path: Path, image: Image.Image) -> Path:
    """Write a PNG, complete or not at all."""
    return replace_file(path, partial(image.save, format="PNG"))


def temporary_folder(path: Path) -> Path:
    """Make and return the empty folder in which path's content is to be written."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def finish_folder(path: Path) -> Path:
    """Rename path's temporary folder to path, replacing an older one.

    A folder can't be renamed over another in one step. If a kill falls between the two renames,
    `clean_up` restores the old one.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    _sync(temporary)
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)  # a killed run's; path is newer
        path.rename(replaced)
    temporary.rename(path)
    _sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def remove_folder(path: Path) -> None:
    """Delete a folder so that a kill half-way leaves no half-empty folder of that name."""
    doomed = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def clean_up(folder: Path) -> None:
    """Mend what a killed run left in folder: drop unfinished entries, restore swapped ones."""
    for entry in folder.glob(f"{REPLACED}*"):
        original = entry.with_name(entry.name.removeprefix(REPLACED))
        if original.exists():
            shutil.rmtree(entry)
        else:
            entry.rename(original)
    for entry in list(folder.rglob(f"{TEMPORARY}*")):  # first, as some stand inside others
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(folder: Path) -> str | None:
    """Say why a folder can't be made or written, or return None."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return None if os.access(existing, os.W_OK) else f"{existing} cannot be written"


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, complete or not at all."""
    lines = [json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records]
    write_text(path, "".join(lines))
