"""Subjects to personalise: particular things that no training scene shows.

    python -m mini.subjects --output output/mini/subjects

writes one data folder a set, as `train_segmix_lora_sdxl.py` takes it, and a sheet of the subjects.
What makes a subject itself (its colours and what it wears) is not told by its class, and what it
wears is worn by nothing that the miniature was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from PIL import Image

from mini.art import Paint, Thing
from mini.backgrounds import background_names, draw_background
from mini.world import MAX_ANGLE, SIZE, Pose, draw_tile, paste, with_article
from mudi.ground.files import finish_folder, temporary_folder, write_image, write_records
from mudi.ground.flags import flag, parse
from mudi.ground.sheets import contact_sheet

PHOTOS = 5  # of each subject
PHOTO_SIDES = (0.5, 0.85)  # of the subject, as a share of the photo's side


@dataclass(frozen=True)
class Subject:
    """A particular thing, and the rare word that will stand for it."""

    token: str
    thing: Thing

    @property
    def name(self) -> str:
        """What prompts call it: "<rare token> <noun>"."""
        return f"{self.token} {self.thing.noun}"


@dataclass(frozen=True)
class SubjectPhoto:
    """pixels (S, S, 3) uint8; mask (S, S) bool, exact; its caption."""

    pixels: np.ndarray
    mask: np.ndarray
    caption: str


# Tints are RGB factors; turns are degrees from the emoji's own hue.
SUBJECTS = {
    "mint robot": Subject("olis", Thing("robot", Paint(0, 1, (0.66, 1.0, 0.8)), "top hat")),
    "pink robot": Subject("vrn", Thing("robot", Paint(60, 1, (1, 0.6, 0.8)), "glasses")),
    "brown bear": Subject(
        "hta", Thing("teddy bear", Paint(5, 0.8, (0.75, 0.68, 0.6)), "bow", Paint(-120))
    ),
    "violet bear": Subject("kem", Thing("teddy bear", Paint(-125, 0.9), "cap", Paint(-150))),
    "red fox": Subject("zul", Thing("fox", Paint(-25, 1.1), "crown")),
    "blue fox": Subject("pll", Thing("fox", Paint(180, 1), "flower", Paint(60, 1.2))),
    "grey cat": Subject(
        "ubo", Thing("cat", Paint(0, 0.1, (0.8, 0.85, 0.9)), "glasses", Paint(150))
    ),
    "green cat": Subject("dref", Thing("cat", Paint(75, 0.9), "bow")),
    "golden dog": Subject("mig", Thing("dog", Paint(15, 1.7), "crown", Paint(150))),
    "teal car": Subject("sna", Thing("car", Paint(170, 1), "bow", Paint(40))),
    "sunny penguin": Subject("ovi", Thing("penguin", Paint(140, 1.1), "sun hat")),
    "rosy owl": Subject(
        "gax", Thing("owl", Paint(-50, 1.3, (1, 0.85, 0.95)), "flower", Paint(150))
    ),
    "purple frog": Subject("teb", Thing("frog", Paint(120, 1), "top hat", Paint(180, 1.5))),
}
SETS = {  # name -> keys of SUBJECTS
    "robot_and_teddy_bear": ("mint robot", "brown bear"),
    "cat_and_dog": ("grey cat", "golden dog"),
    "fox_and_car": ("red fox", "teal car"),
    "penguin_and_owl": ("sunny penguin", "rosy owl"),
    "two_robots": ("mint robot", "pink robot"),
    "two_teddy_bears": ("brown bear", "violet bear"),
    "two_foxes": ("red fox", "blue fox"),
    "two_cats": ("grey cat", "green cat"),
    "three": ("mint robot", "violet bear", "green cat"),
    "five": ("blue fox", "golden dog", "teal car", "sunny penguin", "purple frog"),
}


def subjects_of(name: str) -> list[Subject]:
    """Return the subjects of a set of SETS."""
    return [SUBJECTS[key] for key in SETS[name]]


def subject_photos(
    subject: Subject, count: int, rng: np.random.Generator, size: int = SIZE
) -> list[SubjectPhoto]:
    """Draw reference photos of the given side (px), each on a background of its own kind."""
    kinds = [name for name in background_names() if name not in ("white", "black")]
    chosen = rng.choice(kinds, count, replace=count > len(kinds))
    return [_photo(subject, str(background), rng, size) for background in chosen]


def write_pair(
    folder: Path,
    subjects: Sequence[Subject],
    rng: np.random.Generator,
    photos: int = PHOTOS,
    size: int = SIZE,
) -> Path:
    """Write the subjects' photos, masks and metadata.jsonl; the folder appears complete."""
    keys = ascii_lowercase[: len(subjects)]
    lines: list[dict] = [{"id": {k: s.name for k, s in zip(keys, subjects, strict=True)}}]
    temporary = temporary_folder(folder)
    for key, subject in zip(keys, subjects, strict=True):
        for i, photo in enumerate(subject_photos(subject, photos, rng, size)):
            files = {"file_name": f"{key}{i:02d}.png", "mask_path": f"mask_{key}{i:02d}.png"}
            Image.fromarray(photo.pixels).save(temporary / files["file_name"])
            Image.fromarray(photo.mask).save(temporary / files["mask_path"])
            lines.append({"id": key, **files, "text": photo.caption})
    write_records(temporary / "metadata.jsonl", lines)
    return finish_folder(folder)


def _photo(subject: Subject, background: str, rng: np.random.Generator, size: int) -> SubjectPhoto:
    side, angle = size * rng.uniform(*PHOTO_SIDES), rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    tile = draw_tile(subject.thing, Pose(side, angle, bool(rng.random() < 0.5)), size)
    left = int(rng.integers(0, size - tile.shape[1] + 1))
    top = int(rng.integers(0, size - tile.shape[0] + 1))
    pixels, masks = paste(draw_background(background, size, rng), [tile], [(left, top)])
    caption = f"A photo of a {subject.name} on {with_article(f'{background} background')}."
    return SubjectPhoto(pixels, masks[0], caption)


@dataclass
class SubjectsArgs:
    """subjects"""

    output: Path = flag(Path(), "folder to write", required=True)
    photos: int = flag(PHOTOS, "of each subject")
    size: int = flag(SIZE, "side of a photo (px)")
    seed: int = flag(0, "of the photos")


def parse_args(argv: list[str] | None = None) -> SubjectsArgs:
    return parse(SubjectsArgs, __doc__, argv)


def main(args: SubjectsArgs) -> None:
    """Write every set's data folder and a sheet with photos of every subject."""
    for i, name in enumerate(SETS):
        rng = np.random.default_rng([args.seed, i])
        write_pair(args.output / name, subjects_of(name), rng, args.photos, args.size)
    rng = np.random.default_rng(args.seed)
    shown = {s.name: subject_photos(s, args.photos, rng, 128) for s in SUBJECTS.values()}
    pictures = [Image.fromarray(photo.pixels) for photos in shown.values() for photo in photos]
    captions = [name for name, photos in shown.items() for _ in photos]
    sheet = contact_sheet(pictures, captions, columns=2 * args.photos, tile=128)
    print(f"the sheet: {write_image(args.output / 'subjects.png', sheet)}")


if __name__ == "__main__":
    main(parse_args())
