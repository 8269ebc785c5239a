"""Boxes drawn into pictures, in the colours that stand for the subjects everywhere here."""

from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from detect_and_compare.measure import Record
from mudi.ground.sheets import COLOURS

EXTRA_COLOUR = "#8a929e"
BADGE = 1 / 13  # of a picture's longest side: the square with the number in a box's corner


def colour_of(subject: int) -> str:
    """Return the colour of the subject of that index."""
    return COLOURS[subject % len(COLOURS)]


def annotated(image: Image.Image, record: Record) -> Image.Image:
    """Return a copy with the record's boxes; see `boxed`."""
    matched = [verdict.detection for verdict in record.verdicts.values()]
    return boxed(image, record.boxes, matched)


def boxed(
    image: Image.Image, boxes: Sequence[Sequence[float]], matched: Iterable[int | None]
) -> Image.Image:
    """Return a copy with boxes, numbered from 1 by subject; + is an extra one.

    Args:
        boxes: left, top, right, bottom (px).
        matched: the box of each subject's `Verdict`.
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    side = BADGE * max(image.size)
    font = ImageFont.load_default(size=0.8 * side)
    subjects = subjects_of_boxes(matched, len(boxes))
    for (left, top, right, bottom), subject in zip(boxes, subjects, strict=True):
        colour = EXTRA_COLOUR if subject is None else colour_of(subject)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)
        pen.rectangle((left, top, left + side, top + side), fill=colour)
        middle = (left + side / 2, top + side / 2)
        label = "+" if subject is None else str(subject + 1)
        pen.text(middle, label, fill="white", font=font, anchor="mm")
    return drawn


def subjects_of_boxes(matched: Iterable[int | None], num_boxes: int) -> list[int | None]:
    """Return the index of each box's subject, or None.

    Args:
        matched: the box of each subject's `Verdict`.
    """
    subjects = {box: subject for subject, box in enumerate(matched)}
    return [subjects.get(box) for box in range(num_boxes)]
