"""What rounds come to on held-out pictures, and when the loop ends. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from detect_and_compare.results import Line
from mudi.loop.picking import embedders_of
from mudi.loop.settings import Stop


@dataclass(frozen=True)
class Figures:
    """What pictures come to by the embedder that judges what is held out; shares of 0 to 1.

    Attributes:
        pictures: of prompts that name several subjects; those of one subject count as solo.
        success: all that are named are there, once and unmixed.
        score: mean D&C.
        missing, extra, mixed: pictures of which this is (part of) the verdict.
        solo_success: the one that is named is there, once, nearest to its own references.
        solo_bleed: of pictures with a crop, those with one that is nearer to another subject.
        solo_count: pictures that show another number than one.
    """

    pictures: int
    success: float | None
    score: float | None
    missing: float | None
    extra: float | None
    mixed: float | None
    solo_pictures: int
    solo_success: float | None
    solo_bleed: float | None
    solo_count: float | None

    def measure(self, name: str) -> float:
        """Return "score" or "success"; of solo pictures where there are no others."""
        found = self.score if name == "score" else self.success
        if found is None:
            found = self.solo_success
        return 0.0 if found is None else found


def figures_of(lines: Sequence[Line]) -> Figures:
    """Return what judged pictures come to; unreadable ones do not count."""
    lines = [line for line in lines if "scores" in line]
    together = [scores_of(line) for line in lines if len(line["named"]) > 1]
    alone = [line for line in lines if len(line["named"]) == 1]
    verdicts = [scores["verdict"].split(" + ") for scores in together]

    def part(word: str) -> float | None:
        return share([word in verdict for verdict in verdicts])

    return Figures(
        pictures=len(together),
        success=part("good"),
        score=mean(scores["score"] for scores in together) if together else None,
        missing=part("missing"),
        extra=part("extra"),
        mixed=part("mixed"),
        solo_pictures=len(alone),
        solo_success=share([len(line["boxes"]) == 1 and not bleeds(line) for line in alone]),
        solo_bleed=share([bleeds(line) for line in alone if line["boxes"]]),
        solo_count=share([len(line["boxes"]) != 1 for line in alone]),
    )


def scores_of(line: Line) -> Line:
    """Return a picture's scores by the embedder that judges what is held out."""
    return line["scores"][embedders_of(line)[1]]


def bleeds(line: Line) -> bool:
    """Say whether a picture that is to show one subject alone has a crop nearer to another."""
    [subject] = line["named"]
    return any(nearest != subject for nearest in line["nearest"][embedders_of(line)[1]])


def share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def best_round(measures: Sequence[float], min_gain: float) -> int:
    """Return the last round that added more than min_gain to the best one before it."""
    best = 0
    for number, value in enumerate(measures):
        if value > measures[best] + min_gain:
            best = number
    return best


def ended(measures: Sequence[float], rules: Stop) -> str | None:
    """Say why the loop ends after rounds of these held-out measures; None: it goes on."""
    best = best_round(measures, rules.min_gain)
    last = len(measures) - 1
    if last - best < rules.patience:
        return None
    told = "falls" if measures[last] < measures[best] else "stays"
    return (
        f"the held-out {rules.measure} {told}: {measures[best]:.3f} in round {best}, "
        f"{measures[last]:.3f} in round {last}"
    )
