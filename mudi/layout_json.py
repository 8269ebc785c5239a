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

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mudi.layouts import Layout, LayoutError, UnitBox, box_problems
from mudi.texts import folded

PIXELS_ABOVE = 2.0  # a larger coordinate can't be meant as a fraction
CANVAS_SIDES = (100, 512, 768, 1024, 1536, 2048, 4096)  # px; 100 stands for per cent
EXCERPT = 80  # characters of an answer that a complaint quotes
BIGGEST = 1e6  # px; no canvas is so wide

_BOXES_KEYS = ("boxes", "subjects", "objects", "layout")
_CANVAS_KEYS = ("canvas", "canvas_size", "image_size", "size")
_OTHER_KEYS = {*_CANVAS_KEYS, "width", "height", "front_to_back", "photos"}
_NAME_KEYS = ("name", "subject", "label", "id")
_BOX_KEYS = ("box", "bbox", "bounding_box")
_CORNER_KEYS = (
    ("left", "top", "right", "bottom"),
    ("x1", "y1", "x2", "y2"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("xmin", "ymin", "xmax", "ymax"),
)
_SIZE_KEYS = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
)

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_COMMENT = re.compile(r"(?<![:\w])//[^\n]*|/\*.*?\*/", re.DOTALL)
_JSON_START = re.compile(r"""\{\s*(["'}]|\w+\s*:)|\[\s*[\[{]""")  # not [0, 1] or {name}
_BRACKET_OR_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|[][{}]')
_TRAILING_COMMA = re.compile(r",(?=\s*[]}])")
_ARTICLE = re.compile(r"^(a|an|the) ")


@dataclass(frozen=True)
class _Entry:
    """A box as the answer has it: nothing is checked yet."""

    name: Any
    box: Any
    photo: Any = None


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
        f"Its {count} subject(s): {listed}. The canvas is {size[0]} wide and {size[1]} high.\n"
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


def parse_layout(
    answer: str, names: Sequence[str] | None, size: tuple[int, int] | None = None
) -> Layout:
    """Read the layout out of a chat model's raw answer.

    Passed over: whatever stands round the JSON (the last one counts), comments, trailing commas,
    single quotes. Understood: boxes by name or in the subjects' order, entries that are objects
    with a name and a box, corners or x/y/width/height where the keys say so, pixels instead of
    fractions. Pixels are those of the canvas that the answer names, else of `size`, else of the
    smallest usual square that holds all boxes.

    Args:
        names: the subjects' names; case, blanks and a leading article do not matter. None takes
            the answer's own, in its order.
        size: (width, height) of the canvas (px).

    Raises:
        LayoutError: one line that says what is wrong, fit to be shown to the model.
    """
    fields = _find_layout(answer)
    entries = _entries(fields["boxes"])
    if names is None:
        names = [str(entry.name or f"box {number}") for number, entry in enumerate(entries, 1)]
    order = _order(entries, names)
    entry_of = dict(zip(order, entries, strict=True))
    corners = [_corners(name, entry_of[i].box) for i, name in enumerate(names)]
    width, height = _canvas(fields, size, max(map(max, corners)))
    boxes = tuple(
        UnitBox(x1 / width, y1 / height, x2 / width, y2 / height) for x1, y1, x2, y2 in corners
    )
    problems = [
        p for name, box in zip(names, boxes, strict=True) for p in box_problems(f'"{name}"', box)
    ]
    if problems:
        raise LayoutError("; ".join(problems))
    photos = fields.get("photos") or [entry_of[i].photo for i in range(len(names))]
    return Layout(boxes, _depth(fields.get("front_to_back"), names, order), _photos(photos, names))


def _find_layout(answer: str) -> dict[str, Any]:
    """Return the last layout of an answer as an object with "boxes"."""
    text = _COMMENT.sub("", _THOUGHTS.sub("", answer))
    values = list(_json_values(text))
    found = [fields for value in values if (fields := _as_fields(value)) is not None]
    if found:
        return found[-1]
    what = 'JSON without "boxes"' if values else "no JSON"
    raise LayoutError(f"{what} in {_excerpt(answer)}")


def _json_values(text: str) -> Iterator[Any]:
    """Yield every outermost piece of JSON."""
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


def _read(text: str) -> Any:
    try:
        return json.loads(_TRAILING_COMMA.sub("", text), object_pairs_hook=_unique)
    except LayoutError:
        raise
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)  # Python's single quotes
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise LayoutError(f"broken JSON ({error}): {_excerpt(text)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise LayoutError(f'"{name}" stands twice in the JSON; keep one')
    return dict(pairs)


def _as_fields(value: Any) -> dict[str, Any] | None:
    """Bring the forms that an answer takes to an object with "boxes"; None: it is no layout."""
    if isinstance(value, dict):
        if isinstance(value.get("layout"), dict):
            inner = value.pop("layout")
            value = value | inner
        for key in _BOXES_KEYS:
            if key in value:
                return value | {"boxes": value[key]}
        boxes = {name: box for name, box in value.items() if name not in _OTHER_KEYS}
        return value | {"boxes": boxes} if _all_boxes(list(boxes.values())) else None
    return {"boxes": value} if isinstance(value, list) and _all_boxes(value) else None


def _all_boxes(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict | list | tuple) for value in values)


def _entries(boxes: Any) -> list[_Entry]:
    if not boxes or not isinstance(boxes, dict | list | tuple):
        raise LayoutError(f'"boxes" must hold a box for every subject, not {_excerpt(boxes)}')
    if isinstance(boxes, dict):
        return [replace(_entry(box), name=name) for name, box in boxes.items()]
    return [_entry(box) for box in boxes]


def _entry(value: Any) -> _Entry:
    if not isinstance(value, dict):
        return _Entry(None, value)
    return _Entry(_first(value, _NAME_KEYS), _first(value, _BOX_KEYS, value), value.get("photo"))


def _first(fields: dict[str, Any], keys: Sequence[str], default: Any = None) -> Any:
    return next((fields[key] for key in keys if key in fields), default)


def _order(entries: list[_Entry], names: Sequence[str]) -> list[int]:
    """Return the subject of each entry, every one once."""
    if all(entry.name is None for entry in entries):
        if len(entries) != len(names):
            raise LayoutError(f"{len(entries)} boxes for {len(names)} subjects: {_listed(names)}")
        return list(range(len(names)))
    found = [_index(entry.name, names) for entry in entries]
    problems = [
        f'unknown subject "{entry.name}"'
        for entry, index in zip(entries, found, strict=True)
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


def _corners(name: str, box: Any) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom in the answer's own unit."""
    values = box
    if isinstance(box, dict):
        if keys := _keys_of(box, _CORNER_KEYS):
            values = [box[key] for key in keys]
        elif keys := _keys_of(box, _SIZE_KEYS):
            x, y, w, h = _numbers(name, [box[key] for key in keys])
            values = [x, y, x + w, y + h]
    return _numbers(name, values)


def _keys_of(box: dict[str, Any], choices: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    return next((keys for keys in choices if all(key in box for key in keys)), None)


def _numbers(name: str, values: Any) -> tuple[float, float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise LayoutError(f'"{name}": a box is [left, top, right, bottom], not {_excerpt(values)}')
    if not all(_is_number(value) for value in values):
        raise LayoutError(f'"{name}": the box has to be four numbers, not {_excerpt(values)}')
    left, top, right, bottom = map(float, values)
    return left, top, right, bottom


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < BIGGEST


def _canvas(
    fields: dict[str, Any], size: tuple[int, int] | None, largest: float
) -> tuple[float, float]:
    """Return the (width, height) that coordinates up to `largest` are to be divided by."""
    if largest <= PIXELS_ABOVE:
        return 1.0, 1.0
    canvas = _first(fields, _CANVAS_KEYS, fields if "width" in fields else size)
    if isinstance(canvas, dict):
        canvas = [canvas.get("width"), canvas.get("height")]
    if canvas is None:
        side = next((side for side in CANVAS_SIDES if side >= largest), None)
        if side is None:
            raise LayoutError(
                f"coordinates up to {largest:g}; give fractions of the canvas, 0 to 1"
            )
        return side, side
    if isinstance(canvas, list | tuple) and len(canvas) == 2:
        if all(_is_number(side) and side > 0 for side in canvas):
            return canvas[0], canvas[1]
    raise LayoutError(f"the canvas must be [width, height], not {_excerpt(canvas)}")


def _depth(value: Any, names: Sequence[str], default: list[int]) -> tuple[int, ...]:
    if value is None:
        return tuple(default)
    items = value if isinstance(value, list | tuple) else []
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
    if not isinstance(photos, list | tuple) or not all(
        photo is None or isinstance(photo, str) for photo in photos
    ):
        raise LayoutError(f"photos must be file names, not {_excerpt(value)}")
    return tuple(photos) if any(photos) else ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
