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


def nested_bootstrap(
    groups: Sequence[Sequence[Sequence[float]]], resamples: int = RESAMPLES // 5, seed: int = 0
) -> Interval:
    """Return the mean over pairs of subjects with its 95 % interval.

    groups[pair][training] are a training's pictures. Resampled are pairs, then a pair's trainings,
    then a training's pictures, as pictures of one LoRA are not independent; each pair and each
    training weighs the same. Of differences by picture it is a paired interval.

    Raises:
        ValueError: a pair or a training is empty, or there is none.
    """
    if not groups or not all(group and all(map(len, group)) for group in groups):
        raise ValueError("no values, so no mean")
    trainings = np.array([len(group) for group in groups])
    pictures = np.ones((len(groups), trainings.max()), dtype=np.int64)
    most = max(len(found) for group in groups for found in group)
    values = np.zeros((len(groups), trainings.max(), most))
    for pair, group in enumerate(groups):
        for training, found in enumerate(group):
            pictures[pair, training] = len(found)
            values[pair, training, : len(found)] = found

    rng = np.random.default_rng(seed)

    def draw(counts: np.ndarray) -> np.ndarray:
        return (rng.random(counts.shape) * counts).astype(np.int64)

    chosen = rng.integers(0, len(groups), (resamples, len(groups)))
    pairs = np.repeat(chosen[..., None], trainings.max(), axis=2)
    loras = draw(trainings[pairs])
    counts = np.repeat(pictures[pairs, loras][..., None], most, axis=3)
    drawn = values[pairs[..., None], loras[..., None], draw(counts)]
    means = _mean_of_first(drawn, counts[..., 0])  # of each training that was drawn
    totals = _mean_of_first(means, trainings[chosen]).mean(1)

    own = np.array([np.mean([np.mean(found) for found in group]) for group in groups])
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(totals, (tail, 1 - tail))
    return Interval(float(own.mean()), float(low), float(high))


def _mean_of_first(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean of the first counts (...) of values (..., n) along the last axis."""
    taken = np.arange(values.shape[-1]) < counts[..., None]
    return (values * taken).sum(-1) / counts
