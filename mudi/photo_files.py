"""Which files below a folder are photos, and what it takes to read them."""

import importlib
from collections import deque
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from mudi.ground.errors import SetupError
from mudi.texts import has_half_character

# What Pillow opens and is no photo: data that it has no reader for, films, drawings.
_NO_PHOTOS = set(".bufr .grib .h5 .hdf .fit .fits .mpeg .mpg .eps .ps .wmf .emf .iim".split())
_UNLISTED = {".mpo"}  # read as the JPEG that it is
_RAW = set(".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split())  # Pillow may take a thumbnail for it
_PLUGINS = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
_NEEDED = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"),
    ".jxl": "pillow-jxl-plugin",
    ".avif": "'pillow>=11.3'",
}
# Of a NAS, of archives made on a Mac, of wastebaskets; others begin with a dot.
_SYSTEM_FOLDERS = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found"}


@cache
def photo_suffixes() -> frozenset[str]:
    """Return the suffixes, in small letters, of files that count as photos.

    Those of all photos that Pillow reads with its installed plug-ins, and of those that it does
    not, which `reading_help` has something to say about.
    """
    register_plugins()
    Image.init()
    read = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset((read - _NO_PHOTOS) | _UNLISTED | _RAW | _NEEDED.keys())


@cache
def register_plugins() -> None:
    """Make Pillow read what its installed plug-ins read."""
    for module in filter(find_spec, _PLUGINS):
        plugin = importlib.import_module(module)  # pillow_jxl is ready by this alone
        if hasattr(plugin, "register_heif_opener"):
            plugin.register_heif_opener()


def is_raw(path: Path) -> bool:
    """Say whether a file is a camera's raw picture by its name."""
    return path.suffix.lower() in _RAW


def reading_help(path: Path) -> str | None:
    """Say what to do about a photo that Pillow can't read, if its name tells."""
    if is_raw(path):
        return f"a camera's raw {path.suffix} is not read here; export it as JPEG or PNG"
    suffix = path.suffix.lower()
    if suffix not in _NEEDED or suffix in Image.registered_extensions():
        return None
    return f"{path.suffix} needs `pip install {_NEEDED[suffix]}`, or save it as JPEG or PNG"


def is_passed_over(path: Path) -> bool:
    """Say whether a file or folder is hidden, or one that a system made for itself."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FOLDERS


def photo_files(folder: Path) -> list[Path]:
    """Return the photos below a folder, sorted; not those in hidden and system folders.

    Folders that are symbolic links are followed, except to one that holds this folder; none is
    visited twice. Photos keep the names that they have by way of the link.

    Raises:
        SetupError: a folder may not be read, or a name is no text.
    """
    real_folder = folder.resolve()
    waiting, links = deque([folder]), deque[Path]()
    seen, found = set(), []
    while waiting or links:
        place = (waiting or links).popleft()  # a folder's own name goes before a link's
        real = place.resolve()
        if real in seen or real in real_folder.parents:
            continue
        seen.add(real)
        try:
            entries = list(place.iterdir())
        except PermissionError as error:
            raise SetupError(f"{place}: the folder may not be read") from error
        for entry in entries:
            if is_passed_over(entry):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append(entry)
            elif entry.suffix.lower() in photo_suffixes() and entry.is_file():
                found.append(entry)
    for path in found:
        if has_half_character(str(path)):
            raise SetupError(f"{str(path)!a}: the name is no UTF-8; rename it")
    return sorted(found)
