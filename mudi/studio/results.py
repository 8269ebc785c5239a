"""Results: pictures with Detect-and-Compare's boxes and verdicts, and what is kept of them."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from detect_and_compare.draw import EXTRA_COLOUR, colour_of, subjects_of_boxes
from detect_and_compare.pictures import PROMPT, Picture, find_pictures
from mudi.ground.errors import SetupError
from mudi.ground.files import write_records
from mudi.images import ImageError, load_rgb
from mudi.metadata import read_records
from mudi.studio.pictures import jpeg, thumbnail
from mudi.studio.server import Answers, Asked, Refusal, Reply

KEPT = "kept.jsonl"  # {"image": NAME, "keep": true or false} a line, in the pictures' folder
SCORES = "scores.jsonl"
SHEET = "sheet.png"  # inference.py's, in a folder without its JSONL
TILE = 384  # px


class Results:
    """A folder of pictures (or its JSONL), and the folder in which their scores are, if any.

    Raises:
        SetupError: there are no pictures, or no scores where they are said to be.
    """

    def __init__(self, source: Path | None, scores: Path | None):
        self.source, self.scores = source, scores
        self._known: dict[str, Picture] = {}
        if source is not None:
            self.pictures()
        if scores is not None and not (scores / SCORES).is_file():
            raise SetupError(
                f"--scores {scores}: no {SCORES}; python -m detect_and_compare writes it"
            )

    @property
    def kept_file(self) -> Path:
        if self.source is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "start the page with --results PICTURES")
        return (self.source if self.source.is_dir() else self.source.parent) / KEPT

    def pictures(self) -> dict[str, Picture]:
        """Look which pictures there are; return them by name."""
        if self.source is None:
            return {}
        problems: list[str] = []
        found = find_pictures(self.source, problems)
        if problems:
            raise SetupError("\n".join(problems).replace("--images", "--results"))
        self._known = {picture.name: picture for picture in found if not _is_sheet(picture)}
        return self._known

    def picture(self, name: str) -> Picture:
        """Return a picture by a name that `pictures` gives.

        Raises:
            Refusal: there is none, or its line leads out of the folder.
        """
        found = self._known.get(name) or self.pictures().get(name)
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such picture")
        if not found.path.resolve().is_relative_to(self.kept_file.parent.resolve()):
            raise Refusal(HTTPStatus.FORBIDDEN, f"{name} lies outside the folder")
        return found

    def lines(self) -> dict[str, dict[str, Any]]:
        """Return the scores' lines by picture."""
        if self.scores is None:
            return {}
        return {line["image"]: line for line in read_records(self.scores / SCORES)}

    def kept(self) -> dict[str, bool]:
        """Return what was decided, by picture."""
        records = read_records(self.kept_file)
        return {r["image"]: r["keep"] for r in records if isinstance(r.get("keep"), bool)}

    def keep(self, name: str, was: bool | None, now: bool | None) -> dict[str, bool]:
        """Keep a picture, reject it, or leave it open; return all that is decided.

        Raises:
            Refusal: it was decided elsewhere meanwhile.
        """
        kept, name = self.kept(), self.picture(name).name
        if kept.get(name) != was:
            told = f"{name} was decided elsewhere meanwhile; look again"
            raise Refusal(HTTPStatus.CONFLICT, told, changed=True)
        kept.pop(name, None)
        if now is not None:
            kept[name] = now
        write_records(self.kept_file, [{"image": n, "keep": k} for n, k in kept.items()])
        return kept


def answers(results: Results, lock: Any) -> Answers:
    """Return what the tab asks for."""

    def listing(asked: Asked) -> dict[str, Any]:
        if results.source is None:
            return {"pictures": [], "given": False}
        kept, lines = results.kept(), results.lines()
        pictures = results.pictures().values()
        rows = [_row(p, lines.get(p.name), kept.get(p.name)) for p in pictures]
        return {
            "pictures": rows,
            "given": True,
            "scored": bool(lines),
            "file": str(results.kept_file),
        }

    def small(asked: Asked) -> Reply:
        return thumbnail(_load(results.picture(asked.text("picture"))), TILE)

    def whole(asked: Asked) -> Reply:
        return jpeg(_load(results.picture(asked.text("picture"))))

    def keep(asked: Asked) -> dict[str, Any]:
        values = asked.raw("was"), asked.raw("now")
        if not all(value is None or isinstance(value, bool) for value in values):
            raise Refusal(HTTPStatus.BAD_REQUEST, "true, false or null")
        with lock:
            return {"kept": results.keep(asked.text("picture"), *values)}

    return {
        ("GET", "results"): listing,
        ("GET", "result_small"): small,
        ("GET", "result"): whole,
        ("POST", "keep"): keep,
    }


def _is_sheet(picture: Picture) -> bool:
    return not picture.extra and picture.name == SHEET


def _load(picture: Picture) -> Any:
    try:
        return load_rgb(picture.path)
    except ImageError as error:
        told = f"{picture.name}: {error}"
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told) from error


def _row(picture: Picture, line: dict[str, Any] | None, keep: bool | None) -> dict[str, Any]:
    """Return what the page shows of a picture; scores by embedder."""
    row: dict[str, Any] = {
        "name": picture.name,
        "prompt": picture.extra.get(PROMPT),
        "seed": picture.extra.get("seed"),
        "keep": keep,
        "verdict": None,
        "score": None,
        "scores": {},
        "boxes": [],
        "problem": (line or {}).get("problem"),
    }
    if line is None or "scores" not in line:
        return row
    scores = line["scores"]
    first = next(iter(scores.values()))
    return row | {
        "verdict": first["verdict"],
        "score": first["score"],
        "scores": {name: [s["score"], s["verdict"]] for name, s in scores.items()},
        "boxes": list(_boxes(line, first)),
    }


def _boxes(line: dict[str, Any], result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield boxes in fractions of the picture, each with its subject's number and colour."""
    width, height = line["size"]
    matched = [verdict["detection"] for verdict in result["subjects"].values()]
    ids = list(result["subjects"])
    for box, subject in zip(
        line["boxes"], subjects_of_boxes(matched, len(line["boxes"])), strict=True
    ):
        left, top, right, bottom = box
        yield {
            "box": [left / width, top / height, right / width, bottom / height],
            "label": "+" if subject is None else ids[subject],
            "colour": EXTRA_COLOUR if subject is None else colour_of(subject),
        }
