"""Subjects to personalise: particular things that no training scene shows.

    python -m mini.subjects --output output/mini/subjects

writes one data folder a set, as `train_segmix_lora_sdxl.py` takes it, and a sheet of the subjects.
A subject has a body of two shades that no colour word tells, and an emoji on, of which training
showed other shapes.
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


SHADES = {  # RGB, 0 to 1; none is a colour with a name in the world
    "mint": (0.60, 0.98, 0.78),
    "coral": (1.00, 0.45, 0.38),
    "cream": (1.00, 0.95, 0.78),
    "navy": (0.12, 0.16, 0.45),
    "olive": (0.52, 0.55, 0.18),
    "lilac": (0.80, 0.68, 1.00),
    "gold": (0.88, 0.70, 0.16),
    "charcoal": (0.25, 0.26, 0.28),
    "wine": (0.50, 0.06, 0.22),
    "sky": (0.55, 0.80, 1.00),
    "lime": (0.70, 0.95, 0.20),
    "rust": (0.70, 0.32, 0.12),
}
KEPT_SATURATION = 0.15
STRIPES = 4  # bands; training things have two or five


def _shade(name: str) -> Paint:
    return Paint(0.0, KEPT_SATURATION, SHADES[name], name)


def _subject(token: str, noun: str, upper: str, lower: str, worn: str, bands: int = 2) -> Subject:
    """Make a subject from names of shades; what it wears keeps the emoji's own colours."""
    thing = Thing(noun, _shade(upper), worn, second_paint=_shade(lower), bands=bands)
    return Subject(token, thing)


SUBJECTS = {
    "mint robot": _subject("olis", "robot", "mint", "wine", "top hat"),
    "coral robot": _subject("vrn", "robot", "coral", "navy", "glasses"),
    "rust bear": _subject("hta", "teddy bear", "rust", "cream", "bow"),
    "lilac bear": _subject("kem", "teddy bear", "lilac", "charcoal", "cap"),
    "coral fox": _subject("zul", "fox", "coral", "cream", "crown"),
    "sky fox": _subject("pll", "fox", "sky", "navy", "flower"),
    "charcoal cat": _subject("ubo", "cat", "charcoal", "sky", "glasses"),
    "lime cat": _subject("dref", "cat", "lime", "wine", "bow", STRIPES),
    "gold owl": _subject("gax", "owl", "gold", "navy", "top hat"),
    "mint owl": _subject("yld", "owl", "mint", "rust", "flower"),
    "gold dog": _subject("mig", "dog", "gold", "wine", "crown"),
    "mint car": _subject("sna", "car", "mint", "charcoal", "bow"),
    "wine penguin": _subject("ovi", "penguin", "wine", "cream", "sun hat"),
    "lilac frog": _subject("teb", "frog", "lilac", "olive", "top hat", STRIPES),
    "olive rabbit": _subject("qex", "rabbit", "olive", "coral", "cap"),
    "sky panda": _subject("wup", "panda", "sky", "rust", "sun hat"),
}
DOSES = {  # of likeness: a pair differs in one, two, three, four traits
    "fox": (
        _subject("zul", "fox", "coral", "cream", "crown"),
        _subject("pll", "fox", "navy", "cream", "crown"),
        _subject("pll", "fox", "navy", "lime", "crown"),
        _subject("pll", "fox", "navy", "lime", "glasses"),
        _subject("pll", "cat", "navy", "lime", "glasses"),
    ),
    "robot": (
        _subject("olis", "robot", "mint", "wine", "bow"),
        _subject("vrn", "robot", "gold", "wine", "bow"),
        _subject("vrn", "robot", "gold", "sky", "bow"),
        _subject("vrn", "robot", "gold", "sky", "top hat"),
        _subject("vrn", "owl", "gold", "sky", "top hat"),
    ),
}
PAIRS = {
    "robot_and_teddy_bear": ("mint robot", "rust bear"),
    "cat_and_dog": ("charcoal cat", "gold dog"),
    "fox_and_car": ("coral fox", "mint car"),
    "rabbit_and_panda": ("olive rabbit", "sky panda"),
    "two_robots": ("mint robot", "coral robot"),
    "two_teddy_bears": ("rust bear", "lilac bear"),
    "two_foxes": ("coral fox", "sky fox"),
    "two_cats": ("charcoal cat", "lime cat"),
}  # evaluated
PILOT = {"penguin_and_frog": ("wine penguin", "lilac frog"), "two_owls": ("gold owl", "mint owl")}
MORE = {
    "three": ("mint robot", "lilac bear", "lime cat"),
    "five": ("sky fox", "gold dog", "mint car", "wine penguin", "olive rabbit"),
}
SETS = {name: [SUBJECTS[key] for key in keys] for name, keys in (PAIRS | PILOT | MORE).items()} | {
    f"{name}_dose_{traits}": [family[0], family[traits]]
    for name, family in DOSES.items()
    for traits in range(1, len(family))
}


def subjects_of(name: str) -> list[Subject]:
    """Return the subjects of a set of SETS."""
    return SETS[name]


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
