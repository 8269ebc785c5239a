"""Which of a round's pictures are learned from, and why the others are not. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from detect_and_compare.results import Line
from mudi.loop.settings import Pick

THUMBNAIL = 16  # px, a side
PICKED = "picked"
BELOW, REJECTED, LIKE, ENOUGH = "below the bar", "not kept by hand", "like a better one", "enough"


@dataclass(frozen=True)
class Candidate:
    """A judged picture.

    Attributes:
        thumbnail: (3 · THUMBNAIL²,) float, each channel centred, of length 1; 0 of a plain picture.
        kept: by hand; None: nobody said.
    """

    line: Line
    thumbnail: np.ndarray
    kept: bool | None = None


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return what two pictures' likeness is told by: the dot product is their correlation."""
    small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float64)
    values = (values - values.mean(axis=(0, 1))).ravel()
    length = np.linalg.norm(values)
    return values / length if length else values


def embedders_of(line: Line) -> tuple[list[str], str]:
    """Return the embedders that pick, and the one that judges what is held out: the last."""
    names = list(line["scores"])
    return names[:-1] or names, names[-1]


def score_of(line: Line) -> float:
    """Return a picture's least score by those that pick; -inf where it can't be read."""
    if "scores" not in line:
        return -np.inf
    return min(line["scores"][name]["score"] for name in embedders_of(line)[0])


def boxes_of(line: Line) -> dict[str, list[int]]:
    """Return the box of each subject's crop (left, top, right, bottom; px), by the first embedder.

    Subjects without a crop are left out.
    """
    if "scores" not in line:
        return {}
    subjects = next(iter(line["scores"].values()))["subjects"]
    crops = {subject: verdict["detection"] for subject, verdict in subjects.items()}
    return {subject: line["boxes"][crop] for subject, crop in crops.items() if crop is not None}


def fault_of(line: Line) -> str | None:
    """Say what is wrong with a picture, or return None: all that it names are there, as such."""
    if "scores" not in line:
        return "unreadable"
    found = []
    for name in embedders_of(line)[0]:
        scores = line["scores"][name]
        if scores["verdict"] != "good":
            return str(scores["verdict"])
        found.append({s: verdict["detection"] for s, verdict in scores["subjects"].items()})
        if any(line["nearest"][name][crop] != subject for subject, crop in found[-1].items()):
            return "mixed"
    return None if all(crops == found[0] for crops in found) else "mixed"


def choose(candidates: Sequence[Candidate], rules: Pick) -> list[str]:
    """Return what becomes of each candidate: PICKED, or why not; the best are looked at first."""
    fates = [""] * len(candidates)
    taken: Counter[str] = Counter()
    picked: list[Candidate] = []
    for i in sorted(range(len(candidates)), key=lambda i: -score_of(candidates[i].line)):
        candidate = candidates[i]
        fates[i] = _fate(candidate, picked, taken, rules)
        if fates[i] == PICKED:
            picked.append(candidate)
            taken[candidate.line["prompt"]] += 1
    return fates


def _fate(
    candidate: Candidate, picked: Sequence[Candidate], taken: Mapping[str, int], rules: Pick
) -> str:
    line = candidate.line
    fault = fault_of(line)
    if fault is not None:
        return fault
    if score_of(line) < rules.min_score:
        return BELOW
    if candidate.kept is False or (rules.by_hand and not candidate.kept):
        return REJECTED
    if any(candidate.thumbnail @ other.thumbnail > rules.likeness for other in picked):
        return LIKE
    return PICKED if taken[line["prompt"]] < rules.per_prompt else ENOUGH


def why_none(picks: Sequence[Mapping[str, Any]]) -> str:
    """Say what became of pictures of which none was picked."""
    counts = Counter(pick["fate"] for pick in picks)
    told = ", ".join(f"{count} {fate}" for fate, count in counts.most_common())
    best = max((pick["score"] for pick in picks if pick["score"] is not None), default=None)
    text = f"none of {len(picks)} pictures was picked: {told}"
    return text if best is None else f"{text}; the best score is {best:.3f}"


def how_many(picks: Sequence[Mapping[str, Any]], photos: int, shares: tuple[int, int]) -> str:
    """Say how many pictures were picked, and how much more often each is drawn than a photo.

    Args:
        photos: how many there are.
        shares: draws of photos, and of picked pictures.
    """
    picked = sum(pick["fate"] == PICKED for pick in picks)
    often = (shares[1] / picked) / (shares[0] / photos)
    told = f"{picked} of {len(picks)} pictures are picked; each is drawn {often:.2g} times as often"
    return f"{told} as one of the {photos} photos"


def only_subject(picks: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the one subject that all picked pictures show alone, if it is so."""
    shown = {subject for pick in picks if pick["fate"] == PICKED for subject in pick["named"]}
    return shown.pop() if len(shown) == 1 else None
