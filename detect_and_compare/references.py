"""The subjects' own pictures, that crops of generated ones are compared with.

A folder with metadata.jsonl (dataset/README.md), or one with a sub-folder a subject.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detect_and_compare.detect import square_crop
from mudi.ground.errors import SetupError
from mudi.images import Box, ImageError, load_mask, load_rgb
from mudi.masks.folder import MASK_PREFIX, METADATA
from mudi.metadata import load_subjects
from mudi.photo_files import is_passed_over, photo_files
from mudi.segmix import cut_out
from mudi.texts import class_noun


class ReferencesError(SetupError):
    """Says, a line each, what is wrong with a folder of references and what to do."""


@dataclass(frozen=True)
class References:
    """What the subjects look like.

    Attributes:
        names: id -> prompt name, in the folder's order.
        images: id -> RGB pictures, as they are to be embedded.
    """

    names: dict[str, str]
    images: dict[str, list[Image.Image]]

    @property
    def digest(self) -> str:
        """A short hash of the names and all pixels."""
        seen = hashlib.sha256()
        for subject, name in self.names.items():
            seen.update(f"{subject}={name}\n".encode())
            for image in self.images[subject]:
                seen.update(f"{image.size}".encode() + image.tobytes())
        return seen.hexdigest()[:16]


def load_references(folder: Path, crop: bool = False) -> References:
    """Read the references of all subjects.

    Args:
        folder: with metadata.jsonl, or with a sub-folder of pictures a subject, whose name is the
            subject's id and, with spaces for underscores, its name.
        crop: cut the subjects out by their masks onto white squares; as published, pictures are
            embedded whole.

    Raises:
        ReferencesError: there is neither, a sub-folder is empty, a picture can't be read, or there
            are no masks to crop by.
        MetadataError: lists what is wrong with metadata.jsonl.
    """
    if (folder / METADATA).is_file():
        return _from_metadata(folder, crop)
    if not folder.is_dir():
        raise ReferencesError(f"{folder}: no such folder")
    subjects = sorted(
        path for path in folder.iterdir() if path.is_dir() and not is_passed_over(path)
    )
    if not subjects:
        raise ReferencesError(f"{folder}: neither {METADATA} nor a sub-folder for each subject")
    if crop:
        raise ReferencesError(f"{folder}: has no {METADATA}, so there are no masks to crop by")
    images = {subject.name: _read_all(pictures_in(subject)) for subject in subjects}
    empty = [f"{folder / subject}: no pictures" for subject in images if not images[subject]]
    if empty:
        raise ReferencesError("\n".join(empty))
    return References({subject: subject.replace("_", " ") for subject in images}, images)


def _from_metadata(folder: Path, crop: bool) -> References:
    subjects = load_subjects(folder, caption_key=None)
    images: dict[str, list[Image.Image]] = {subject: [] for subject in subjects.names}
    for photo in subjects.cuts if crop else subjects.photos:
        image = load_rgb(photo.image)
        images[photo.subject].append(cut(image, load_mask(photo.mask)) if crop else image)
    together = [subjects.names[subject] for subject in images if not images[subject]]
    if together:
        raise ReferencesError(
            f"{folder}: {', '.join(together)} has no photo of its own; cut it out by its masks "
            "(--crop_references)"
        )
    return References(subjects.names, images)


def cut(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Lay what mask (H, W) bool holds on a white square as large as its longer side."""
    cutout = cut_out(image, mask)
    alone = Image.new("RGB", cutout.image.size, "white")
    alone.paste(cutout.image, mask=Image.fromarray(cutout.mask))
    return square_crop(alone, Box(0, 0, cutout.width, cutout.height))


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files below a folder by name; not masks (mask_*) nor hidden files."""
    return [path for path in photo_files(folder) if not path.name.startswith(MASK_PREFIX)]


def _read_all(paths: Iterable[Path]) -> list[Image.Image]:
    images, problems = [], []
    for path in paths:
        try:
            images.append(load_rgb(path))
        except ImageError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ReferencesError("\n".join(problems))
    return images


def default_query(name: str) -> str:
    """Return a subject's name without its first word, the rare token; a one-word name stays."""
    return class_noun(name)
