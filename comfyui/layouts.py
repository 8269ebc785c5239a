"""Where each subject stands: the record of it, and layouts drawn at random."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .basics import SetupError

SHRINK = 0.75  # smallest random size, as a fraction of the largest (as in SDXL's Seg-Mix)
FILL = 0.9  # of the canvas that the largest boxes take; the rest is room to move
GROUND = 0.15  # of a row's height, counted from below, in which the subjects' feet stand
MAX_OVERLAP = 0.15  # of the smaller box
MIN_COLUMN_ASPECT = 0.3  # width/height; narrower columns hold small figures only


class LayoutError(SetupError):
    """A layout can't be used; the message is one line that says what is wrong and where."""


class UnitBox(NamedTuple):
    """A rectangle in fractions of the canvas, (0, 0) its top left corner."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Places of the subjects, in the subjects' order.

    Attributes:
        boxes: one a subject, inside the canvas and not empty.
        front_to_back: indices of the subjects; the first hides the others.
        photos: the file name of the photo that a subject is to be cut from; None or no entries:
            the caller chooses.

    Raises:
        LayoutError: the values contradict this.
    """

    boxes: tuple[UnitBox, ...]
    front_to_back: tuple[int, ...]
    photos: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            problem
            for number, box in enumerate(self.boxes, 1)
            for problem in box_problems(f"box {number}", box)
        ]
        if sorted(self.front_to_back) != list(range(len(self.boxes))):
            problems.append(f"front_to_back: not every box once: {list(self.front_to_back)}")
        if self.photos and len(self.photos) != len(self.boxes):
            problems.append(f"{len(self.photos)} photos for {len(self.boxes)} boxes")
        if problems:
            raise LayoutError("; ".join(problems))


def box_problems(label: str, box: UnitBox) -> Iterator[str]:
    """Say what is wrong with a box whose coordinates are numbers."""
    place = f"{label} {[round(value, 4) for value in box]}"
    if not all(0 <= value <= 1 for value in box):
        yield f"{place} reaches outside the canvas, 0 to 1 each way (no pixels, no per cent)"
    elif box.right <= box.left or box.bottom <= box.top:
        yield f"{place} is empty: right must exceed left, and bottom exceed top"


def random_layout(
    num_subjects: int,
    rng: random.Random,
    scales: Sequence[float] | None = None,
    aspect: float = 1.0,
) -> Layout:
    """Draw boxes in one row, or in several where columns would get too narrow.

    Within a row neighbours share at most MAX_OVERLAP of the smaller box, rows share nothing. The
    subjects stand in random order with their feet near the row's lower edge; who stands lower is
    in front.

    Args:
        num_subjects: 1 or more.
        rng: source of every random choice.
        scales: size of each subject's box as a fraction of the largest that fits, in (0, 1]; the
            boxes' widths and heights have these ratios. None draws each from [SHRINK, 1].
        aspect: width/height of the canvas.

    Raises:
        ValueError: no subject, scales of another number or outside (0, 1], no positive aspect.
    """
    if num_subjects < 1 or not aspect > 0:
        raise ValueError(f"no layout for {num_subjects} subjects on a canvas of aspect {aspect}")
    if scales is None:
        scales = [rng.uniform(SHRINK, 1.0) for _ in range(num_subjects)]
    if len(scales) != num_subjects or not all(0 < scale <= 1 for scale in scales):
        raise ValueError(f"scales must be {num_subjects} numbers in (0, 1], got {list(scales)}")
    rows = _split(rng.sample(range(num_subjects), num_subjects), aspect)
    row_height = 1 / len(rows)
    widest_row = max(sum(scales[i] for i in row) for row in rows)
    unit_width = FILL * max(scales) / widest_row  # of a subject of scale 1
    boxes: dict[int, UnitBox] = {}
    for number, row in enumerate(rows):
        widths = [scales[i] * unit_width for i in row]
        for i, left, width in zip(row, _draw_lefts(widths, rng), widths, strict=True):
            height = FILL * scales[i] * row_height
            room = min(row_height - height, GROUND * row_height)
            bottom = (number + 1) / len(rows) - rng.uniform(0, room)
            boxes[i] = UnitBox(left, max(bottom - height, 0.0), min(left + width, 1.0), bottom)
    return Layout(
        boxes=tuple(boxes[i] for i in range(num_subjects)),
        front_to_back=tuple(sorted(boxes, key=lambda i: -boxes[i].bottom)),
    )


def _split(order: list[int], aspect: float) -> list[list[int]]:
    """Deal the subjects to as few rows as give columns of MIN_COLUMN_ASPECT, upper row first."""
    rows = 1
    while rows < len(order) and aspect * rows / math.ceil(len(order) / rows) < MIN_COLUMN_ASPECT:
        rows += 1
    return [order[number::rows] for number in range(rows)]


def _draw_lefts(widths: list[float], rng: random.Random) -> list[float]:
    """Draw the left edges of a row's boxes, from left to right, inside [0, 1]."""
    allowed = [MAX_OVERLAP * min(pair) for pair in pairwise(widths)]
    room = 1 - sum(widths) + sum(allowed)
    cuts = sorted(rng.uniform(0, room) for _ in widths)
    steps = [width - overlap for width, overlap in zip(widths, [*allowed, 0.0], strict=True)]
    return [cut + sum(steps[:i]) for i, cut in enumerate(cuts)]
