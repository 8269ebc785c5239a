"""Photos and masks: suggested, clicked, tidied, saved."""

import threading
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from mudi.ground.errors import SetupError
from mudi.images import Box, tight_box
from mudi.islands import drop_islands, fill_holes
from mudi.masks import segment
from mudi.masks.args import MaskingArgs
from mudi.masks.folder import masking_complaints
from mudi.masks.making import UnresolvedError, box_by_hand
from mudi.studio.folder import BY_HAND, PhotoFolder
from mudi.studio.pictures import jpeg, thumbnail
from mudi.studio.runs import from_runs, to_runs
from mudi.studio.server import Answers, Asked, Refusal
from mudi.texts import class_noun

MOST_POINTS = 64  # of one mask
TIDY: dict[str, Callable[[np.ndarray], np.ndarray]] = {"holes": fill_holes, "islands": drop_islands}


class Models:
    """The detector and the segmenter that the flags choose, each loaded when it is first wanted."""

    def __init__(self, args: MaskingArgs, device: str):
        self._args, self._device = args, device
        self._loading = threading.Lock()
        self._detector: segment.Detector | None = None
        self._segmenter: segment.Segmenter | None = None

    @property
    def complaints(self) -> list[str]:
        """What keeps them from being loaded."""
        return masking_complaints(self._args)

    @property
    def finds(self) -> bool:
        """Whether there is a detector: a plain background needs none."""
        return self._args.segmenter != "foreground"

    @property
    def detector(self) -> segment.Detector:
        with self._loading:
            if self._detector is None:
                self._detector = segment.Detector(self._args.detector, self._device)
            return self._detector

    @property
    def segmenter(self) -> segment.Segmenter:
        with self._loading:
            if self._segmenter is None:
                if self.complaints:
                    raise SetupError("; ".join(self.complaints))
                self._segmenter = self._load()
            return self._segmenter

    def _load(self) -> segment.Segmenter:
        if not self.finds:
            return segment.foreground_segmenter
        args = self._args
        return segment.SamSegmenter(args.sam_checkpoint, args.sam_type, self._device)

    def find(self, image: Image.Image, query: str) -> tuple[Box | None, str]:
        """Return the box of what is looked for, and how it was found; no box: all of the photo.

        Raises:
            Refusal: nothing was found.
        """
        if not self.finds:
            return None, "foreground"
        self.detector.check([query])
        [found] = self.detector([image], [[query]], self._args.threshold)
        if not found:
            told = f'no "{query}" above {self._args.threshold}; other words, a click or a box?'
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
        others = f" (best of {len(found)})" if len(found) > 1 else ""
        note = f'"{query}" {found[0].score:.2f}{others}'
        return segment.widen(found[0].box, image.size), note


def answers(folder: PhotoFolder, models: Models) -> Answers:
    """Return what the tab asks for."""
    return {
        ("GET", "folder"): lambda asked: folder.state(),
        ("GET", "segmenter"): lambda asked: {"problems": models.complaints, "finds": models.finds},
        ("GET", "photo"): lambda asked: jpeg(folder.photo(asked.text("photo"))),
        ("GET", "thumbnail"): lambda asked: thumbnail(folder.photo(asked.text("photo"))),
        ("GET", "mask"): lambda asked: opened(folder, asked.text("photo")),
        ("POST", "prepare"): lambda asked: prepared(folder, models, asked),
        ("POST", "suggest"): lambda asked: suggested(folder, models, asked),
        ("POST", "cut"): lambda asked: clicked(folder, models, asked),
        ("POST", "tidy"): lambda asked: tidied(folder, asked),
        ("POST", "save"): lambda asked: saved(folder, asked),
    }


def opened(folder: PhotoFolder, name: str) -> dict[str, Any]:
    """Return a photo's size, its mask and what a save has to name as the one that it replaces."""
    version = folder.version(name)  # first: a mask that changes meanwhile is refused later
    size = folder.photo(name).size
    problem = None
    try:
        mask = folder.mask(name)
    except Refusal as refusal:
        mask, problem = None, str(refusal)
    runs = to_runs(np.zeros(size[::-1], dtype=bool) if mask is None else mask)
    box = None if mask is None or not mask.any() else tight_box(mask)
    return {"size": size, "version": version, "runs": runs, "box": box, "problem": problem}


def prepared(folder: PhotoFolder, models: Models, asked: Asked) -> dict[str, Any]:
    """Load SAM and encode a photo before it is clicked; the seconds that a click is saved."""
    start = perf_counter()
    if models.finds and not models.complaints:
        image = folder.photo(asked.text("photo"))
        segmenter = models.segmenter
        if isinstance(segmenter, segment.SamSegmenter):
            segmenter.encode(image)
    return {"seconds": perf_counter() - start}


def suggested(folder: PhotoFolder, models: Models, asked: Asked) -> dict[str, Any]:
    """Find the subject by its noun (or the words given) and cut it out."""
    entry = folder.entry(asked.text("photo"))
    name = folder.names().get(entry.subject or "")
    query = asked.maybe_text("query") or (class_noun(name) if name else None)
    if query is None and models.finds:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "say what to look for, or name the subject")
    image = folder.photo(entry.name)
    start = perf_counter()
    box, note = models.find(image, query or "")
    mask = models.segmenter(image, box)
    return {"runs": to_runs(mask), "box": box, "note": note, "seconds": perf_counter() - start}


def clicked(folder: PhotoFolder, models: Models, asked: Asked) -> dict[str, Any]:
    """Cut out what a box and points say."""
    image = folder.photo(asked.text("photo"))
    start = perf_counter()
    box, marks = _box(asked, image.size), _points(asked)
    on_it = [(x, y) for x, y, positive in marks if positive]
    off_it = [(x, y) for x, y, positive in marks if not positive]
    try:
        place = box_by_hand(box, on_it, off_it, image.size)
    except UnresolvedError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    if place is None and not on_it:
        told = "click on the subject first, or drag a box round it"
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
    mask = models.segmenter(image, place, on_it, off_it)
    return {"runs": to_runs(mask), "box": place, "seconds": perf_counter() - start}


def tidied(folder: PhotoFolder, asked: Asked) -> dict[str, Any]:
    """Fill a mask's holes, or drop its islands."""
    what, size = asked.text("what"), folder.photo(asked.text("photo")).size
    if what not in TIDY:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"one of {', '.join(TIDY)} is wanted")
    return {"runs": to_runs(TIDY[what](from_runs(asked.items("runs"), size)))}


def saved(folder: PhotoFolder, asked: Asked) -> dict[str, Any]:
    """Save a mask, noted by hand where the user touched it."""
    name, note = asked.text("photo"), asked.text("note")
    if asked.flag("touched") and BY_HAND not in note:
        note = f"{note}, {BY_HAND}" if note else BY_HAND
    size = folder.photo(name).size
    box, mask = _box(asked, size), from_runs(asked.items("runs"), size)
    version = folder.save_mask(name, mask, asked.text("version"), {"box": box, "note": note})
    return {"version": version, "folder": folder.state()}


def _box(asked: Asked, size: tuple[int, int]) -> Box | None:
    if not asked.has("box"):
        return None
    edges = asked.items("box")
    if len(edges) != 4 or not all(_is_place(edge) for edge in edges):
        raise Refusal(HTTPStatus.BAD_REQUEST, "a box is left, top, right, bottom")
    return segment.clip(edges, size)


def _points(asked: Asked) -> list[tuple[int, int, bool]]:
    points = asked.items("points")
    good = all(isinstance(p, list) and len(p) == 3 and all(map(_is_place, p[:2])) for p in points)
    if not good or len(points) > MOST_POINTS:
        told = f"points are [x, y, is it the subject's?], {MOST_POINTS} at most"
        raise Refusal(HTTPStatus.BAD_REQUEST, told)
    return [(int(x), int(y), positive is True) for x, y, positive in points]


def _is_place(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6  # no NaN either
