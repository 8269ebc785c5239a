"""Layout: cut-outs on a canvas, as `inference.py --layout` takes them, and pictures from there."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image

from mudi.ground.files import write_text
from mudi.ground.sheets import COLOURS
from mudi.images import load_mask, load_rgb
from mudi.layouts import Layout, LayoutError, load_layout, parse_layout
from mudi.metadata import Photo, Subjects
from mudi.pictures.args import SDXL_BASE, PipelineArgs
from mudi.pictures.chat_model import llm_layout
from mudi.pictures.sampling import Shot, Stage
from mudi.pictures.shot_args import MAX_SEED, SIZE_UNIT, named_subjects
from mudi.segmix import cut_out, listed
from mudi.studio.args import Drawing, StudioArgs
from mudi.studio.folder import PhotoFolder, stamp_of, version_of
from mudi.studio.pictures import png
from mudi.studio.server import Answers, Asked, Refusal, Reply
from mudi.texts import folded

FOLDER = "layouts"  # in the photos' folder
NAME = re.compile(r"[\w][\w .-]{0,59}")  # of a layout's file, without its suffix
LARGEST_SIDE = 2048  # px
BIGGEST_GAMMA = 1e3  # far above any use; no NaN either
CUTOUT_SIDE = 768  # px, of what is dragged
DEFAULTS = StudioArgs()


def answers(folder: PhotoFolder, stages: "Stages", args: StudioArgs) -> Answers:
    """Return what the tab asks for."""
    tab = _Tab(folder, stages, args)
    return {
        ("GET", "scene"): tab.scene,
        ("GET", "cutout"): tab.cutout,
        ("POST", "start"): tab.start,
        ("POST", "shuffled"): tab.shuffled,
        ("POST", "ask"): tab.ask,
        ("GET", "layout"): tab.opened,
        ("POST", "layout"): tab.save,
    }


@dataclass(frozen=True)
class _Tab:
    """What the tab's questions are answered from."""

    folder: PhotoFolder
    stages: "Stages"
    args: StudioArgs

    @property
    def subjects(self) -> Subjects:
        return self.folder.ready_subjects(min_subjects=1)

    def scene(self, asked: Asked) -> dict[str, Any]:
        """Return who may be laid out, and what else there is."""
        subjects = self.subjects
        return {
            "names": subjects.names,
            "colours": dict(zip(subjects.names, cycle(COLOURS), strict=False)),
            "photos": {s: _photo_names(subjects, s) for s in subjects.names},
            "prompt": _everybody(subjects),
            "files": files(self.folder.path),
            "asks": bool(self.args.llm_url),
            "draws": bool(self.args.pretrained_model_name_or_path),
        }

    def cutout(self, asked: Asked) -> Reply:
        """Return a photo's cut-out, small, to be dragged."""
        photo = _photo(self.subjects, asked.text("subject"), asked.text("photo"))
        image = Image.fromarray(cut_out(load_rgb(photo.image), load_mask(photo.mask)).pixels)
        image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE))
        return png(image)

    def start(self, asked: Asked) -> Reply:
        """Return the collage that sampling would start from."""
        wish = self.stages.wish(asked)
        return png(wish.stage.start(wish.shot).scene.image)

    def shuffled(self, asked: Asked) -> dict[str, Any]:
        """Return layout and photos as inference.py draws them for the seed."""
        names, seed = self._named(asked), asked.whole("seed", most=MAX_SEED)
        stage = self.stages.stage(self.subjects, _size(asked))
        start = stage.start(Shot(asked.text("prompt"), seed))
        photos = tuple(_name_of(photo, stage.subjects) for photo in start.photos)
        return told(replace(start.layout, photos=photos), list(names))

    def ask(self, asked: Asked) -> dict[str, Any]:
        """Return a chat model's layout."""
        names, size = self._named(asked), _size(asked)
        url, model = self.args.llm_url or "", self.args.llm_model or ""
        layout = llm_layout(asked.text("prompt"), list(names.values()), url, model, size)
        return told(layout, list(names))

    def _named(self, asked: Asked) -> dict[str, str]:
        """Return the names that the prompt holds, by id."""
        names = self.subjects.names
        ids = named_subjects(asked.text("prompt"), names)
        if not ids:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "the prompt names no subject")
        return {subject: names[subject] for subject in ids}

    def opened(self, asked: Asked) -> dict[str, Any]:
        """Return a layout file's content, and its version."""
        path, subjects = _file(self.folder.path, asked.text("name")), self.subjects
        ids = _ids_in(path, subjects)
        layout = load_layout(path, [subjects.names[subject] for subject in ids])
        return {**told(layout, ids), "version": version_of(path)}

    def save(self, asked: Asked) -> dict[str, Any]:
        """Write a layout file in place of the one of a version ("": a new one)."""
        wish, path = self.stages.wish(asked), _file(self.folder.path, asked.text("name"))
        version = asked.text("version")
        with self.folder.lock:
            if version_of(path) != version:
                how = "has changed since it was opened here" if version else "is there already"
                text = f"{path.name} {how}; open it, or take another name"
                raise Refusal(HTTPStatus.CONFLICT, text, changed=True)
            write_text(path, file_text(wish))
            version = version_of(path)
        there = files(self.folder.path)
        return {"version": version, "command": command(wish, path, self.args), "files": there}


@dataclass(frozen=True)
class Wish:
    """A picture as the tab describes it.

    Attributes:
        ids: of the subjects that the prompt names, in the layout's order.
        gammas: by id.
    """

    stage: Stage
    prompt: str
    seed: int
    ids: list[str]
    layout: Layout
    gammas: dict[str, float]

    @property
    def shot(self) -> Shot:
        return Shot(self.prompt, self.seed, self.gammas, self.layout)

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
        prompt = asked.text("prompt").strip()
        ids = named_subjects(prompt, subjects.names)
        names = [subjects.names[subject] for subject in ids]
        layout = parse_layout(json.dumps(asked.table("layout")), names)
        gammas, seed = _gammas(asked.table("gamma"), ids), asked.whole("seed", most=MAX_SEED)
        return Wish(self.stage(subjects, _size(asked)), prompt, seed, ids, layout, gammas)

    def stage(self, subjects: Subjects, size: tuple[int, int]) -> Stage:
        """Return where subjects are laid out."""
        files = [stamp_of(path) for p in subjects.cuts for path in (p.image, p.mask)]
        key = repr((subjects, size, files))
        if self._kept is None or self._kept[0] != key:
            self._kept = key, Stage(subjects, size)
        return self._kept[1]


def _gammas(given: Mapping[str, Any], ids: list[str]) -> dict[str, float]:
    gammas: dict[str, Any] = {subject: given.get(subject) for subject in ids}
    for value in gammas.values():
        if type(value) not in (int, float) or not abs(value) < BIGGEST_GAMMA:
            raise Refusal(HTTPStatus.BAD_REQUEST, "a gamma, a number, for each subject is wanted")
    return {subject: float(value) for subject, value in gammas.items()}


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
    record = {
        "boxes": {name[subject]: box for subject, box in by_id["boxes"].items()},
        "front_to_back": [name[subject] for subject in by_id["front_to_back"]],
        "photos": {name[subject]: p for subject, p in by_id["photos"].items() if p is not None},
    }
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def command(wish: Wish, path: Path, args: StudioArgs) -> str:
    """Return the command whose first picture is the one that is drawn here, by its saved layout.

    Where there is no model to draw with, it names one for an example.
    """
    if not args.pretrained_model_name_or_path:
        args = replace(args, pretrained_model_name_or_path=SDXL_BASE, lora=["output/LORA"])
    width, height = wish.stage.size
    subjects = wish.stage.subjects
    gammas = [f"{subject}={wish.gammas.get(subject, 0.0)!r}" for subject in subjects.names]
    parts = [
        "python inference.py",
        *_drawing_flags(args),
        f"--instance_data_dir {shlex.quote(str(subjects.folder))}",
        f"--prompt={shlex.quote(wish.prompt)}",
        f"--layout {shlex.quote(str(path))}",
        f"--gamma {shlex.join(gammas)}",
        f"--width {width} --height {height} --seed {wish.seed}",
        f"--output_dir {shlex.quote(f'output/{path.stem}')}",
    ]
    return " \\\n    ".join(parts)


def _drawing_flags(args: StudioArgs) -> list[str]:
    """Return what was given of the model's flags and of drawing's, which inference.py has too."""
    names = [declared.name for declared in (*fields(PipelineArgs), *fields(Drawing))]
    given = {name: getattr(args, name) for name in names}
    return [_flag(*item) for item in given.items() if item[1] != getattr(DEFAULTS, item[0])]


def _flag(name: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return shlex.join([f"--{name}", *(str(part) for part in values if part is not True)])


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


def _ids_in(path: Path, subjects: Subjects) -> list[str]:
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
        if folded(_name_of(photo, subjects)) == folded(name):
            return photo
    raise Refusal(HTTPStatus.NOT_FOUND, "no such photo of that subject")


def _photo_names(subjects: Subjects, subject: str) -> list[str]:
    return [_name_of(photo, subjects) for photo in subjects.photos_of(subject)]


def _name_of(photo: Photo, subjects: Subjects) -> str:
    return photo.image.relative_to(subjects.folder).as_posix()


def _everybody(subjects: Subjects) -> str:
    names = list(subjects.names.values())
    return f"a photo of {listed(names) if len(names) > 1 else f'a {names[0]}'}"
