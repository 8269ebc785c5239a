"""Files and folders that appear complete or not at all, whenever the process is killed."""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mudi.ground.errors import FULL, SetupError

TEMPORARY = ".incomplete-"  # begins the name of what is still being written
REPLACED = ".replaced-"  # begins the name of a folder that is being swapped for a new one
NEARLY_FULL = 2**20  # bytes; torch's and numpy's writers tell no reason, but leave less free
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of network shares and WSL


class DiskFullError(SetupError, OSError):
    """There is no room for what is to be written.

    Attributes:
        wanted: bytes that were to be written, or that were when the room gave out.
    """

    def __init__(self, path: Path, wanted: int):
        self.path, self.wanted = path, wanted
        free = shutil.disk_usage(_existing(path)).free
        super().__init__(
            f"{path}: the disk is full: {_size(wanted)} or more are wanted, {_size(free)} are "
            "free. Make room, then give the command again"
        )


@contextmanager
def room_for(path: Path, temporary: Path | None = None, wanted: int = 0) -> Iterator[None]:
    """Turn a full disk into one line that names path.

    Args:
        temporary: file or folder that is being filled; removed where it can't be finished.
        wanted: bytes to be written, where there is no temporary to tell by.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error, path):
            raise
        inner = error.wanted if isinstance(error, DiskFullError) else 0  # removed already
        begun = 0 if temporary is None else _content(temporary)
        if temporary is not None:
            _remove(temporary)
        raise DiskFullError(path, max(wanted, begun + inner)) from error


def _is_full(error: BaseException | None, path: Path) -> bool:
    """Say whether an error comes of a full disk, whichever library passes it on."""
    told = error
    while told is not None:
        if isinstance(told, DiskFullError) or "os error 28" in str(told):  # safetensors' words
            return True
        if isinstance(told, OSError) and told.errno in FULL:
            return True
        told = told.__cause__ or told.__context__
    nearly = shutil.disk_usage(_existing(path)).free < NEARLY_FULL
    nameless = isinstance(error, OSError) and error.errno is None  # numpy's
    return nearly and (nameless or isinstance(error, RuntimeError))


def _existing(path: Path) -> Path:
    """Return a path, or the first folder above it that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _content(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(count: int) -> str:
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    name = next((name for name, unit in units.items() if count >= unit), "kB")
    return f"{count / units[name]:.1f} {name}"


def replace_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside path, then rename it over path.

    Raises:
        DiskFullError: it does not fit; the file that was there stays.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with room_for(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors would make it private
        write(temporary)
        temporary.chmod(mode)
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

    Raises:
        DiskFullError: the content does not fit; the folder that was there stays.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with room_for(path, temporary):
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


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give the empty folder in which path's content is to be written, and put it in its place.

    Raises:
        DiskFullError: the content does not fit; the folder that was there stays.
    """
    with room_for(path, path.with_name(f"{TEMPORARY}{path.name}")):
        yield temporary_folder(path)
        finish_folder(path)


def clean_up(folder: Path, *below: str) -> None:
    """Mend what a killed run left in folder: drop unfinished entries, restore swapped ones.

    Args:
        below: folders in it that are mended too; others may be another run's.
    """
    for name in below:
        clean_up(folder / name)
    for entry in folder.glob(f"{REPLACED}*"):
        original = entry.with_name(entry.name.removeprefix(REPLACED))
        if original.exists():
            shutil.rmtree(entry)
        else:
            entry.rename(original)
    for entry in list(folder.glob(f"{TEMPORARY}*")):
        _remove(entry)


def _sync(path: Path) -> None:
    """Flush a file's or folder's content to the disk; a folder's only where that can be done."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def unwritable(folder: Path) -> str | None:
    """Say why a folder can't be made or written, or return None."""
    for path in (folder, *folder.absolute().parents):
        try:
            path.lstat()  # of a link that leads nowhere, too
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # a name that no file can have, a loop of links
            return f"no folder can be made there ({getattr(error, 'strerror', None) or error})"
        if not path.is_dir():
            return f"{path} is a {'link that leads nowhere' if path.is_symlink() else 'file'}"
        return None if os.access(path, os.W_OK) else f"{path} cannot be written"
    return f"{folder}: no such place"


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, complete or not at all."""
    lines = [json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records]
    write_text(path, "".join(lines))


def write_table(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write records of the same keys as CSV, complete or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())
