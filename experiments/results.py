"""Rows -> what the cases come to. Pure."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect_and_compare.failures import FAILURES, SWAP
from experiments.plan import (
    DIFFERENT_CLASSES,
    EXPERIMENTS,
    SAME_CLASS,
    Case,
    DataSet,
    covers,
)
from experiments.rows import BLEED, DIGITS, Row
from experiments.stats import Interval, nested_bootstrap

RECOGNISABLE = 0.5  # least cosine of a subject's best crop; below it the subject has collapsed
ALL_PAIRS = "all pairs"
UNTOLD = (SAME_CLASS, *(f"{traits} traits" for traits in range(1, 5)))  # whose box is whose


Measure = Callable[[Row], float | None]  # None: it has no say in this picture


def _of_all(measure: Measure) -> Measure:
    return lambda row: None if row.alone else measure(row)


def _of_one(measure: Measure) -> Measure:
    return lambda row: measure(row) if row.alone else None


def _unmixed(row: Row) -> float | None:
    recognisable = row.boxes == len(row.cosines) and min(row.cosines) >= RECOGNISABLE
    return float(row.success) if recognisable else None


def _collapsed(row: Row) -> float:
    return sum(cosine < RECOGNISABLE for cosine in row.cosines) / len(row.cosines)


def _fails(word: str) -> Measure:
    return lambda row: float(word in row.failures)


# Shares of pictures but for D&C and the relative size, whose logarithm is averaged.
MEASURES: dict[str, Measure] = {
    "counted": _of_all(lambda row: float(row.boxes == len(row.cosines))),
    "score": _of_all(lambda row: row.score),
    "success": _of_all(lambda row: float(row.success)),
    "unmixed": _of_all(_unmixed),
    "collapsed": _of_all(_collapsed),
    SWAP: _of_all(lambda row: None if row.kind in UNTOLD else float(SWAP in row.failures)),
    **{word: _of_all(_fails(word)) for word in FAILURES if word != SWAP},
    "background": _of_all(lambda row: None if row.background is None else float(row.background)),
    "size_ratio": _of_all(lambda row: None if row.size_ratio is None else math.log(row.size_ratio)),
    "solo_success": _of_one(lambda row: float(row.success)),
    "solo_bleed": _of_one(lambda row: float(BLEED in row.failures) if row.boxes else None),
    "solo_count": _of_one(lambda row: float(row.boxes != 1)),
}
TITLES = {
    "counted": "right count",
    "score": "D&C",
    "success": "success",
    "unmixed": "unmixed, if both recognisable",
    "collapsed": f"SCR@{RECOGNISABLE:g}",
    "background": "background right",
    "size_ratio": "relative size",
    "solo_success": "alone: success",
    "solo_bleed": "alone: bleed",
    "solo_count": "alone: wrong count",
}
HEADLINE = ("score", "success")  # of which differences are told
FORMS = {"score": ".3f", "size_ratio": ".2f"}  # others are shares


@dataclass(frozen=True)
class Summary:
    """What a case comes to on one kind of data set, by one embedder.

    Attributes:
        value: see `Case`.
        pictures: of all subjects together, and trainings and data sets that they are of.
        found: means with 95 % intervals over data sets, trainings and pictures, by the names of
            MEASURES; one that has no say in any picture is left out. A size ratio is a geometric
            mean.
        behind: by how much the experiment's reference is ahead, picture by picture, by the names of
            HEADLINE.
    """

    experiment: str
    label: str
    value: float | None
    variant: str
    kind: str
    num_subjects: int
    embedder: str
    data_sets: int
    trainings: int
    pictures: int
    found: dict[str, Interval]
    behind: dict[str, Interval]


Groups = dict[str, dict[int, dict[str, float]]]  # values by data set, training and picture


def summarise(
    rows: Iterable[Row], cases: Iterable[Case], data_sets: Sequence[DataSet]
) -> list[Summary]:
    """Return a summary for each case, kind and embedder that has pictures.

    An experiment counts the trainings that all its cases have. Pairs of both kinds are also counted
    together.
    """
    cases, rows = list(cases), list(rows)
    by_case: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_case.setdefault((row.variant, row.embedder), []).append(row)
    shown = {row.data_set for row in rows}
    counted = common_trainings(rows, cases)
    summaries = []
    for case in cases:
        best = best_of(case, cases)
        covered = [one for one in data_sets if one.name in shown and covers(case, one)]
        for kind, members in _kinds(covered).items():
            names = {data_set.name for data_set in members}
            for embedder in dict.fromkeys(row.embedder for row in rows):
                own, theirs = (
                    [
                        row
                        for row in by_case.get(key, ())
                        if row.data_set in names and training_of(row) in counted[case.experiment]
                    ]
                    for key in ((one.variant.name, embedder) for one in (case, best or case))
                )
                if own:
                    others = theirs if best else []
                    count = len(members[0].names)
                    summaries.append(_summary(case, kind, count, embedder, own, others))
    return summaries


def training_of(row: Row) -> tuple[str, int]:
    """Return the data set and the seed of the LoRA that made a row's picture."""
    return row.data_set, row.training


def common_trainings(
    rows: Iterable[Row], cases: Sequence[Case]
) -> dict[str, frozenset[tuple[str, int]]]:
    """Return the trainings of which all of an experiment's cases have pictures, by experiment.

    Cases are compared on the same pairs and seeds; one that has no picture at all is left out.
    """
    trainings: dict[str, set[tuple[str, int]]] = {}
    for row in rows:
        trainings.setdefault(row.variant, set()).add(training_of(row))
    found = {}
    for name in dict.fromkeys(case.experiment for case in cases):
        variants = {case.variant.name for case in cases if case.experiment == name}
        sets = [trainings[variant] for variant in variants if variant in trainings]
        found[name] = frozenset(set.intersection(*sets)) if sets else frozenset()
    return found


def best_of(case: Case, cases: Iterable[Case]) -> Case | None:
    """Return what a case is behind: its experiment's reference, if it has one and is another."""
    label = EXPERIMENTS[case.experiment].reference
    found = (one for one in cases if (one.experiment, one.label) == (case.experiment, label))
    best = next(found, None)
    return None if best == case else best


def _kinds(data_sets: Sequence[DataSet]) -> dict[str, list[DataSet]]:
    kinds: dict[str, list[DataSet]] = {}
    for data_set in data_sets:
        kinds.setdefault(data_set.kind, []).append(data_set)
    if kinds.keys() == {SAME_CLASS, DIFFERENT_CLASSES}:
        kinds[ALL_PAIRS] = list(data_sets)
    return kinds


def _summary(
    case: Case,
    kind: str,
    num_subjects: int,
    embedder: str,
    rows: Sequence[Row],
    best: Sequence[Row],
) -> Summary:
    pictures = [row for row in rows if not row.alone]
    return Summary(
        case.experiment,
        case.label,
        case.value,
        case.variant.name,
        kind,
        num_subjects,
        embedder,
        len({row.data_set for row in pictures}),
        len({row.training for row in pictures}),
        len(pictures),
        _means(rows),
        _differences(rows, best),
    )


def grouped(rows: Iterable[Row], measure: Measure) -> Groups:
    """Return a measure's values by data set, training and shot, where it has a say."""
    groups: Groups = {}
    for row in rows:
        value = measure(row)
        if value is not None:
            groups.setdefault(row.data_set, {}).setdefault(row.training, {})[shot_of(row)] = value
    return groups


def shot_of(row: Row) -> str:
    """Return what a picture is known by among those of its training, and of all variants.

    Prompt and file name: the seed of a kept candidate is its own.
    """
    return f"{row.prompt} {Path(row.image).name}"


def mean_of(groups: Groups) -> Interval:
    """Return the mean with its interval over data sets, trainings and pictures."""
    return nested_bootstrap(
        [[list(values.values()) for values in trainings.values()] for trainings in groups.values()]
    )


def _means(rows: Sequence[Row]) -> dict[str, Interval]:
    found = {}
    for name, measure in MEASURES.items():
        groups = grouped(rows, measure)
        if groups:
            found[name] = mean_of(groups)
    if "size_ratio" in found:
        found["size_ratio"] = Interval(*map(math.exp, found["size_ratio"]))
    return found


def _differences(rows: Sequence[Row], best: Sequence[Row]) -> dict[str, Interval]:
    """Return by how much the best case is ahead, over pictures of the same prompt and seeds."""
    found = {}
    for name in HEADLINE:
        gains = lead(grouped(best, MEASURES[name]), grouped(rows, MEASURES[name]))
        if gains:
            found[name] = mean_of(gains)
    return found


def lead(ours: Groups, theirs: Groups) -> Groups:
    """Return ours less theirs, over pictures that both have."""
    gains: Groups = {}
    for data_set, trainings in theirs.items():
        for training, values in trainings.items():
            own = ours.get(data_set, {}).get(training, {})
            both = {key: own[key] - values[key] for key in values if key in own}
            if both:
                gains.setdefault(data_set, {})[training] = both
    return gains


def flat(summary: Summary) -> dict[str, Any]:
    """Return a summary as columns: an interval `x` becomes x, x_low and x_high."""
    columns = {
        key: value for key, value in summary.__dict__.items() if key not in ("found", "behind")
    }
    intervals = {name: summary.found.get(name) for name in MEASURES}
    intervals |= {f"behind_{name}": summary.behind.get(name) for name in HEADLINE}
    for key, interval in intervals.items():
        columns |= ends_of(key, interval)
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in columns.items()}


def ends_of(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Return an interval as columns: x, x_low and x_high."""
    ends = interval or (None,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def markdown(summaries: Sequence[Summary]) -> str:
    """Return tables to read, one an embedder, experiment and kind of data set."""
    groups: dict[str, list[Summary]] = {}
    for one in summaries:
        groups.setdefault(f"## {one.experiment}, {one.kind}, by {one.embedder}", []).append(one)
    return "\n\n".join(f"{title}\n\n{_table(group)}" for title, group in groups.items()) + "\n"


def _table(summaries: Sequence[Summary]) -> str:
    names = [name for name in MEASURES if any(name in summary.found for summary in summaries)]
    ahead = [name for name in HEADLINE if any(name in summary.behind for summary in summaries)]
    head = ["", "data sets x trainings", "pictures", *(TITLES.get(n, n) for n in names)]
    reference = EXPERIMENTS[summaries[0].experiment].reference
    head += [f"{reference} ahead: {TITLES[name]}" for name in ahead]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in summaries:
        place = "" if one.value is None else f" ({one.value:g})"
        cells = [f"{one.label}{place}", f"{one.data_sets} x {one.trainings}", str(one.pictures)]
        cells += [cell(one.found.get(name), FORMS.get(name, ".0%")) for name in names]
        cells += [cell(one.behind.get(name), "+" + FORMS.get(name, ".0%")) for name in ahead]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(interval: Interval | None, form: str) -> str:
    """Return what a table tells of a mean; nothing for None."""
    return "" if interval is None else told(interval, form)


def told(interval: Interval, form: str) -> str:
    """Return "mean [low, high]", each number in the given format."""
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
