"""How pictures of several subjects fail, in the words that users have for it. Pure functions.

swap: two crops, each clearly the other subject than it was meant to be; merge: a crop near neither
or near both; drop: a subject without a crop; duplicate: two crops of one subject. Of a picture of
one subject, bleed: a crop that is nearer to another's references.

Users' rule of thumb: swaps come of training too long, merges of training too short.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from detect_and_compare.score import Likeness

SWAP, MERGE, DROP, DUPLICATE = FAILURES = ("swap", "merge", "drop", "duplicate")

Corners = Sequence[float]  # left, top, right, bottom


def failures(
    crops: Sequence[Likeness], num_subjects: int, meant: Sequence[int | None]
) -> list[str]:
    """Return which of FAILURES a picture shows; several may go together.

    Args:
        crops: whom each is most like.
        meant: whom each was meant to be; None: unknown, which never counts as a swap.
    """
    clear = [(crop.subject, m) for crop, m in zip(crops, meant, strict=True) if crop.is_clear]
    is_swapped = any(
        one != own and (one, own) == (m, other) for (one, own), (other, m) in combinations(clear, 2)
    )
    found = {
        SWAP: is_swapped,
        MERGE: len(clear) < len(crops),
        DROP: len(crops) < num_subjects,
        DUPLICATE: any(count > 1 for count in Counter(subject for subject, _ in clear).values()),
    }
    return [word for word, holds in found.items() if holds]


def bleeds(crops: Sequence[Likeness], subject: int) -> bool:
    """Say whether a picture that is to show one subject alone shows traits of another."""
    return any(crop.subject != subject for crop in crops)


def meant_by_noun(
    answers: Sequence[int], texts: Sequence[str], nouns: Sequence[str]
) -> list[int] | None:
    """Return whom each box was meant to be, by the noun that the detector found it under.

    Args:
        answers: of each box, the index of its text.
        texts: what the detector was asked for.
        nouns: the subjects', in order.

    Returns:
        None where nouns do not tell the subjects apart.
    """
    if len(set(nouns)) < len(nouns):
        return None
    return [nouns.index(texts[answer]) for answer in answers]


def meant_by_place(boxes: Sequence[Corners], places: Sequence[Corners]) -> list[int | None]:
    """Return whose place in the layout each box takes, so that the centres' distances are least.

    A box beyond the number of places has none.

    Args:
        boxes, places: in the same units; places are the subjects', in order.
    """
    from scipy.optimize import linear_sum_assignment

    meant: list[int | None] = [None] * len(boxes)
    if boxes:
        difference = _centres(boxes)[:, None] - _centres(places)[None]
        for box, place in zip(*linear_sum_assignment((difference**2).sum(-1)), strict=True):
            meant[box] = int(place)
    return meant


def _centres(boxes: Sequence[Corners]) -> np.ndarray:
    corners = np.asarray(boxes, dtype=np.float64)
    return (corners[:, :2] + corners[:, 2:]) / 2
