"""Layouts as text: a file of one's own, or the answer of a chat model that was asked for it.

Both are JSON, coordinates as fractions of the canvas, (0, 0) its top left corner:

    {"boxes": {"olis robot": [0.05, 0.3, 0.45, 0.95], "hta corgi": [0.5, 0.5, 0.95, 0.9]},
     "front_to_back": ["hta corgi", "olis robot"],
     "photos": {"hta corgi": "b02.jpg"}}

A box is [left, top, right, bottom], the names are those of metadata.jsonl. The last two entries may
be left out: boxes without an order are listed front to back, and a subject without a photo may be
cut from any of its own. Lists in the order of the subjects do as well: `asdict(layout)` is such a
file.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .basics import folded
from .layouts import Layout, LayoutError, UnitBox, box_problems

EXCERPT = 80  # characters of an answer that a complaint quotes
BIGGEST = 1e6  # no unit of any canvas makes larger numbers
KEYS = ("boxes", "front_to_back", "photos")

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_JSON_START = re.compile(r'\{\s*["}]')  # not {name}
_BRACKET_OR_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|[][{}]')
_ARTICLE = re.compile(r"^(a|an|the) ")


def load_layout(path: str | Path, names: Sequence[str] | None = None) -> Layout:
    """Read a layout file; see the top of this module for its form.

    Args:
        names: the subjects' names, in whose order the boxes are wanted; None keeps the file's.

    Raises:
        LayoutError: the file can't be read, or what `parse_layout` finds, after the path.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return parse_layout(text, names)
    except (OSError, UnicodeDecodeError) as error:
        raise LayoutError(f"{path}: cannot be read ({error})") from error
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error


def layout_prompt(prompt: str, names: Sequence[str], size: tuple[int, int] = (1024, 1024)) -> str:
    """Return the text that makes any chat model answer with a layout for `parse_layout`.

    Args:
        prompt: of the picture to be made.
        names: of the subjects, as in metadata.jsonl.
        size: (width, height) of the canvas (px), which tells the model its shape.
    """
    count = len(names)
    example = {
        "boxes": {
            name: [round((i + 0.1) / count, 2), 0.4, round((i + 0.9) / count, 2), 0.9]
            for i, name in enumerate(names)
        },
        "front_to_back": list(names),
    }
    listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
    return (
        f"Plan where the subjects of a picture stand. The picture: {prompt}\n"
        f"Its {count} subject(s): {listed}. The canvas is {size[0] / size[1]:.2f} times as "
        "wide as it is high.\n"
        "Give every subject one box [left, top, right, bottom] in fractions of the canvas, from 0 "
        "to 1, (0, 0) being the top left corner. A box holds the whole subject. Let the boxes' "
        "sizes agree with the subjects' sizes in reality and with the picture's description, use "
        "the canvas well, let the boxes overlap little or not at all, and put subjects that stand "
        "on the ground on the ground. Under front_to_back list all subjects, the nearest to the "
        "viewer first.\n"
        "Answer with JSON of exactly this form and nothing else, the subjects spelt as here; the "
        "numbers are an example:\n"
        f"{json.dumps(example, ensure_ascii=False)}"
    )


def parse_layout(answer: str, names: Sequence[str] | None) -> Layout:
    """Read the layout out of a chat model's raw answer; see the top of this module for its form.

    What stands round the JSON is passed over, and the last layout counts.

    Args:
        names: the subjects' names; case, blanks and a leading article do not matter. None takes
            the answer's own, in its order.

    Raises:
        LayoutError: one line that says what is wrong, fit to be shown to the model.
    """
    fields = _find_layout(answer)
    if unknown := [key for key in fields if key not in KEYS]:
        raise LayoutError(f"unknown entries {_listed(unknown)}; there are {_listed(KEYS)}")
    given = fields["boxes"]
    if not given or not isinstance(given, dict | list):
        raise LayoutError(f'"boxes" must hold a box for every subject, not {_excerpt(given)}')
    labels = list(given) if isinstance(given, dict) else None
    if names is None:
        names = labels or [f"box {number}" for number in range(1, len(given) + 1)]
    order = list(range(len(given))) if labels is None else _order(labels, names)
    if len(order) != len(names):
        raise LayoutError(f"{len(order)} boxes for {len(names)} subjects: {_listed(names)}")
    values = dict(zip(order, given.values() if isinstance(given, dict) else given, strict=True))
    boxes = tuple(_box(name, values[i]) for i, name in enumerate(names))
    problems = [
        p for name, box in zip(names, boxes, strict=True) for p in box_problems(f'"{name}"', box)
    ]
    if problems:
        raise LayoutError("; ".join(problems))
    photos = _photos(fields.get("photos") or [None] * len(names), names)
    return Layout(boxes, _depth(fields.get("front_to_back"), names, order), photos)


def _find_layout(answer: str) -> dict[str, Any]:
    """Return the last object of an answer that has "boxes"."""
    values = list(_json_values(_THOUGHTS.sub("", answer)))
    found = [value for value in values if "boxes" in value]
    if found:
        return found[-1]
    what = 'JSON without "boxes"' if values else "no JSON"
    raise LayoutError(f"{what} in {_excerpt(answer)}")


def _json_values(text: str) -> Iterator[dict[str, Any]]:
    """Yield every outermost object of JSON."""
    position = 0
    while match := _JSON_START.search(text, position):
        end = _closing(text, match.start())
        if end is None:
            raise LayoutError(f"the JSON is not closed: it ends in {text[-EXCERPT:]!r}")
        yield _read(text[match.start() : end])
        position = end


def _closing(text: str, start: int) -> int | None:
    """Return where the bracket that opens at `start` is closed (exclusive)."""
    depth = 0
    for match in _BRACKET_OR_TEXT.finditer(text, start):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    return None


def _read(text: str) -> dict[str, Any]:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except LayoutError:
        raise
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"broken JSON ({error}): {_excerpt(text)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise LayoutError(f'"{name}" stands twice in the JSON; keep one')
    return dict(pairs)


def _order(labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the subject of each label, every one once."""
    found = [_index(label, names) for label in labels]
    problems = [
        f'unknown subject "{label}"'
        for label, index in zip(labels, found, strict=True)
        if index is None
    ]
    problems += [f'no box for "{name}"' for i, name in enumerate(names) if i not in found]
    problems += [f'two boxes for "{name}"' for i, name in enumerate(names) if found.count(i) > 1]
    if problems:
        raise LayoutError(f"{'; '.join(problems)}; the subjects are {_listed(names)}")
    return [index for index in found if index is not None]


def _index(name: Any, names: Sequence[str]) -> int | None:
    wanted = _plain(name)
    return next((i for i, other in enumerate(names) if _plain(other) == wanted), None)


def _plain(name: Any) -> str:
    return _ARTICLE.sub("", folded(str(name)).casefold())


def _box(name: str, values: Any) -> UnitBox:
    if not isinstance(values, list) or len(values) != 4:
        raise LayoutError(f'"{name}": a box is [left, top, right, bottom], not {_excerpt(values)}')
    if not all(type(value) in (int, float) and abs(value) < BIGGEST for value in values):
        raise LayoutError(f'"{name}": the box has to be four numbers, not {_excerpt(values)}')
    return UnitBox(*map(float, values))


def _depth(value: Any, names: Sequence[str], default: list[int]) -> tuple[int, ...]:
    if value is None:
        return tuple(default)
    items = value if isinstance(value, list) else []
    count = len(default)
    order = [
        (default[item] if 0 <= item < count else None)  # numbers count the answer's boxes
        if isinstance(item, int)
        else _index(item, names)
        for item in items
    ]
    if set(order) != set(range(len(names))) or len(order) != len(names):
        listed = _listed(names)
        raise LayoutError(f"front_to_back must list each of {listed} once, not {_excerpt(value)}")
    return tuple(index for index in order if index is not None)


def _photos(value: Any, names: Sequence[str]) -> tuple[str | None, ...]:
    photos = value
    if isinstance(value, dict):
        chosen = {_index(name, names): photo for name, photo in value.items()}
        if None in chosen:
            raise LayoutError(f"photos names an unknown subject; they are {_listed(names)}")
        photos = [chosen.get(i) for i in range(len(names))]
    if not isinstance(photos, list) or not all(
        photo is None or isinstance(photo, str) for photo in photos
    ):
        raise LayoutError(f"photos must be file names, not {_excerpt(value)}")
    return tuple(photos) if any(photos) else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
