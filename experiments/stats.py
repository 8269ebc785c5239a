"""Intervals, rankings and agreement; pure functions."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
COVERAGE = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean with its 95 % percentile bootstrap interval.

    What is resampled are the values, pictures here; the pairs and LoRAs that they come from are
    taken as given.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("no values, so no mean")
    numbers = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(numbers), (resamples, len(numbers)))
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(numbers[drawn].mean(1), (tail, 1 - tail))
    return Interval(float(numbers.mean()), float(low), float(high))


def ranked_rightly(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return the share of pairs of a good and a bad one in which the good one scores higher.

    Ties count half; 1 is a perfect ranking, 0.5 a blind one.
    """
    above = np.asarray(good)[:, None] - np.asarray(bad)[None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def agreement(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> float:
    """Return the share of items that two judges give the same answer to."""
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def cohens_kappa(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> float | None:
    """Return (p - e) / (1 - e): agreement p beyond e, that of judges who answer independently.

    None where both give one and the same answer throughout (e = 1).
    """
    expected = (
        sum(ours.count(answer) * theirs.count(answer) for answer in set(ours)) / len(ours) ** 2
    )
    return None if expected == 1 else (agreement(ours, theirs) - expected) / (1 - expected)
