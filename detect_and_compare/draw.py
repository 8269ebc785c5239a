"""Boxes drawn into pictures, in the colours that stand for the subjects everywhere here."""

from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

from detect_and_compare.measure import Record
from mudi.ground.sheets import COLOURS

EXTRA_COLOUR = "#8a929e"
BADGE = 1 / 13  # of a picture's longest side: the square with the number in a box's corner


def colour_of(subject: int) -> str:
    """Return the colour of the subject of that index."""
    return COLOURS[subject % len(COLOURS)]


def annotated(image: Image.Image, record: Record) -> Image.Image:
    """Return a copy with the record's boxes, numbered from 1 by subject; + is an extra one."""
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    side = BADGE * max(image.size)
    font = ImageFont.load_default(size=0.8 * side)
    matched = [verdict.detection for verdict in record.verdicts.values()]
    subjects = subjects_of_boxes(matched, len(record.boxes))
    for box, subject in zip(record.boxes, subjects, strict=True):
        colour = EXTRA_COLOUR if subject is None else colour_of(subject)
        corner = (box.left, box.top, box.left + side, box.top + side)
        pen.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), outline=colour, width=2)
        pen.rectangle(corner, fill=colour)
        middle = (box.left + side / 2, box.top + side / 2)
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
