"""Layout: cut-outs on a canvas, as `inference.py --layout` takes them, and pictures from there."""

import json
import random
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from PIL import Image

from comfyui.layouts import Layout, LayoutError, random_layout
from mudi.ground.files import write_text
from mudi.ground.sheets import COLOURS
from mudi.images import load_mask, load_rgb
from mudi.layouts import load_layout, parse_layout
from mudi.metadata import Photo, Subjects
from mudi.pictures.chat_model import llm_layout
from mudi.pictures.sampling import Shot, Stage
from mudi.pictures.shot_args import MAX_SEED, SIZE_UNIT, named_subjects
from mudi.segmix import cut_out, listed
from mudi.studio.args import StudioArgs
from mudi.studio.folder import PhotoFolder, stamp_of, version_of
from mudi.studio.pictures import png
from mudi.studio.server import Answers, Asked, Refusal, Reply

FOLDER = "layouts"  # in the photos' folder
NAME = re.compile(r"[\w][\w .-]{0,59}")  # of a layout's file, without its suffix
DIGITS = 4  # of a box's edges: a tenth of a pixel at 1024
LARGEST_SIDE = 2048  # px
CUTOUT_SIDE = 768  # px, of what is dragged


def answers(folder: PhotoFolder, stages: "Stages", args: StudioArgs) -> Answers:
    """Return what the tab asks for."""

    def scene(asked: Asked) -> dict[str, Any]:
        subjects = folder.ready_subjects(min_subjects=1)
        return {
            "names": subjects.names,
            "colours": dict(zip(subjects.names, COLOURS * len(subjects.names), strict=False)),
            "photos": {s: _photo_names(subjects, s) for s in subjects.names},
            "prompt": _everybody(subjects),
            "files": files(folder.path),
            "asks": bool(args.llm_url and args.llm_model),
            "draws": bool(args.pretrained_model_name_or_path),
        }

    def cutout(asked: Asked) -> Reply:
        photo = _photo(
            folder.ready_subjects(min_subjects=1), asked.text("subject"), asked.text("photo")
        )
        pixels = cut_out(load_rgb(photo.image), load_mask(photo.mask)).pixels
        image = Image.fromarray(pixels)
        image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE))
        return png(image)

    def start(asked: Asked) -> Reply:
        wish = stages.wish(asked)
        return png(wish.stage.start(wish.shot).scene.image)

    def shuffled(asked: Asked) -> dict[str, Any]:
        subjects, size = folder.ready_subjects(min_subjects=1), _size(asked)
        ids = named_subjects(asked.text("prompt"), subjects.names)
        if not ids:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "the prompt names no subject")
        rng = random.Random(f"layout {asked.whole('seed')}")
        return told(random_layout(len(ids), rng, aspect=size[0] / size[1]), ids)

    def ask(asked: Asked) -> dict[str, Any]:
        subjects, size = folder.ready_subjects(min_subjects=1), _size(asked)
        ids = named_subjects(asked.text("prompt"), subjects.names)
        names = [subjects.names[subject] for subject in ids]
        url, model = args.llm_url or "", args.llm_model or ""
        return told(llm_layout(asked.text("prompt"), names, url, model, size), ids)

    def opened(asked: Asked) -> dict[str, Any]:
        path = _file(folder.path, asked.text("name"))
        subjects = folder.ready_subjects(min_subjects=1)
        names = list(_names_in(path, subjects))
        layout = load_layout(path, [subjects.names[subject] for subject in names])
        return {**told(layout, names), "version": version_of(path)}

    def save(asked: Asked) -> dict[str, Any]:
        wish, path = stages.wish(asked), _file(folder.path, asked.text("name"))
        with folder.lock:
            if version_of(path) != asked.text("version"):
                how = "has changed since it was opened here" if asked.text("version") else "exists"
                text = f"{path.name} {how}; open it, or take another name"
                raise Refusal(HTTPStatus.CONFLICT, text, changed=True)
            write_text(path, file_text(wish))
            version = version_of(path)
        return {
            "version": version,
            "command": command(wish, path, args),
            "files": files(folder.path),
        }

    return {
        ("GET", "scene"): scene,
        ("GET", "cutout"): cutout,
        ("POST", "start"): start,
        ("POST", "shuffled"): shuffled,
        ("POST", "ask"): ask,
        ("GET", "layout"): opened,
        ("POST", "layout"): save,
    }


@dataclass(frozen=True)
class Wish:
    """A picture as the tab describes it.

    Attributes:
        ids: of the subjects that the prompt names, in the layout's order.
    """

    stage: Stage
    shot: Shot
    ids: list[str]

    @property
    def layout(self) -> Layout:
        layout = self.shot.layout
        assert layout is not None  # `read_wish` gives one always
        return layout

    @property
    def names(self) -> list[str]:
        return [self.stage.subjects.names[subject] for subject in self.ids]


class Stages:
    """Reads what the tab sends; photos are cut out once while data and canvas stay the same."""

    def __init__(self, folder: PhotoFolder):
        self._folder = folder
        self._kept: tuple[str, Stage] | None = None

    def wish(self, asked: Asked) -> Wish:
        """Read prompt, size, seed, gammas, and a layout as its files have it.

        Raises:
            LayoutError, Refusal: it can't be used.
        """
        subjects = self._folder.ready_subjects(min_subjects=1)
        prompt = asked.text("prompt")
        ids = named_subjects(prompt, subjects.names)
        names = [subjects.names[subject] for subject in ids]
        layout = parse_layout(json.dumps(asked.table("layout")), names)
        gamma = _gammas(asked.table("gamma"), ids)
        shot = Shot(prompt, asked.whole("seed", most=MAX_SEED), gamma, layout)
        return Wish(self._stage(subjects, _size(asked)), shot, ids)

    def _stage(self, subjects: Subjects, size: tuple[int, int]) -> Stage:
        files = [stamp_of(path) for p in subjects.photos for path in (p.image, p.mask)]
        key = repr((subjects, size, files))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, Stage(subjects, size)
        return self._kept[1]


def _gammas(given: Mapping[str, Any], ids: list[str]) -> dict[str, float]:
    if any(type(given.get(subject)) not in (int, float) for subject in ids):
        raise Refusal(HTTPStatus.BAD_REQUEST, "a gamma, a number, for each subject is wanted")
    return {subject: float(given[subject]) for subject in ids}


def _size(asked: Asked) -> tuple[int, int]:
    width, height = (asked.whole(key, SIZE_UNIT, LARGEST_SIDE) for key in ("width", "height"))
    if width % SIZE_UNIT or height % SIZE_UNIT:
        told = f"width and height must be multiples of {SIZE_UNIT}"
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
    return width, height


def told(layout: Layout, ids: list[str]) -> dict[str, Any]:
    """Return a layout as the page keeps it, by the subjects' ids."""
    photos = layout.photos or (None,) * len(ids)
    return {
        "boxes": {subject: list(box) for subject, box in zip(ids, layout.boxes, strict=True)},
        "front_to_back": [ids[i] for i in layout.front_to_back],
        "photos": dict(zip(ids, photos, strict=True)),
    }


def file_text(wish: Wish) -> str:
    """Return a layout file by the subjects' names; see `comfyui.layout_json`."""
    by_id = told(wish.layout, wish.ids)
    name = dict(zip(wish.ids, wish.names, strict=True))
    rounded = {
        name[subject]: [round(edge, DIGITS) for edge in box]
        for subject, box in by_id["boxes"].items()
    }
    record = {
        "boxes": rounded,
        "front_to_back": [name[subject] for subject in by_id["front_to_back"]],
        "photos": {name[subject]: p for subject, p in by_id["photos"].items() if p is not None},
    }
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def command(wish: Wish, path: Path, args: StudioArgs) -> str:
    """Return the command that makes pictures of a saved layout."""
    width, height = wish.stage.size
    gammas = wish.shot.gamma
    assert isinstance(gammas, dict)  # `read_wish` reads one a subject
    model = args.pretrained_model_name_or_path or "stabilityai/stable-diffusion-xl-base-1.0"
    loras = " ".join(map(shlex.quote, args.lora)) or "output/LORA"
    parts = [
        f"python inference.py --pretrained_model_name_or_path {shlex.quote(model)}",
        f"--lora {loras}",
        f"--instance_data_dir {shlex.quote(str(wish.stage.subjects.folder))}",
        f"--prompt {shlex.quote(wish.shot.prompt)}",
        f"--layout {shlex.quote(str(path))}",
        "--gamma " + " ".join(shlex.quote(f"{s}={value:g}") for s, value in gammas.items()),
        f"--width {width} --height {height} --seed {wish.shot.seed}",
        f"--output_dir {shlex.quote(f'output/{path.stem}')}",
    ]
    return " \\\n    ".join(parts)


def files(folder: Path) -> list[str]:
    """Return the names of the layouts that are there."""
    return sorted(path.stem for path in (folder / FOLDER).glob("*.json"))


def _file(folder: Path, name: str) -> Path:
    """Return a layout's file.

    Raises:
        Refusal: the name could be a path, or the file is a link that leads out of the folder.
    """
    path = folder / FOLDER / f"{name}.json"
    inside = path.resolve().is_relative_to(folder.resolve())
    if not NAME.fullmatch(name) or not inside:
        told = "a layout's name has letters, digits, blanks, dots and dashes, up to 60"
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
    return path


def _names_in(path: Path, subjects: Subjects) -> list[str]:
    """Return the ids of the subjects that a layout file names, in the metadata's order."""
    try:
        boxes = json.loads(path.read_text(encoding="utf-8-sig"))["boxes"]
        if isinstance(boxes, list):  # in the order of the subjects
            return list(subjects.names)
        found = named_subjects(", ".join(boxes), subjects.names)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise LayoutError(f"{path.name}: cannot be read ({error})") from error
    return found


def _photo(subjects: Subjects, subject: str, name: str) -> Photo:
    for photo in subjects.photos_of(subject):
        if photo.image.relative_to(subjects.folder).as_posix() == name:
            return photo
    raise Refusal(HTTPStatus.NOT_FOUND, "no such photo of that subject")


def _photo_names(subjects: Subjects, subject: str) -> list[str]:
    return [p.image.relative_to(subjects.folder).as_posix() for p in subjects.photos_of(subject)]


def _everybody(subjects: Subjects) -> str:
    names = list(subjects.names.values())
    return f"a photo of {listed(names) if len(names) > 1 else f'a {names[0]}'}"
