"""Scores of pictures -> rows -> what the cases come to, as CSV. Pure but for the files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detect_and_compare.results import Line
from experiments.plan import Case, DataSet, covers
from experiments.stats import Interval, bootstrap
from mudi.ground.files import write_table

GOOD = "good"
DIGITS = 4
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What one picture comes to by one embedder.

    Attributes:
        variant: name of the variant that made it.
        boxes: subjects that were found.
        score: D&C.
        verdict: "good" or what is wrong; see `detect_and_compare.measure.Record`.
        size_ratio: longer side of the second subject's box to that of the first's; None where the
            number of boxes is not two.
    """

    image: str
    data_set: str
    kind: str
    variant: str
    prompt: str
    seed: int
    embedder: str
    boxes: int
    score: float
    verdict: str
    size_ratio: float | None

    @property
    def success(self) -> bool:
        return self.verdict == GOOD


def rows_of(line: Line, data_set: DataSet, embedders: Sequence[str]) -> list[Row]:
    """Return the rows of a line of scores.jsonl; embedders name its scores, in their order."""
    return [
        Row(
            line["image"],
            data_set.name,
            data_set.kind,
            line["variant"],
            line["prompt"],
            line["seed"],
            embedder,
            len(line["boxes"]),
            scores["score"],
            scores["verdict"],
            _size_ratio(line["boxes"], scores["subjects"]),
        )
        for embedder, scores in zip(embedders, line["scores"].values(), strict=True)
    ]


def _size_ratio(
    boxes: Sequence[Sequence[float]], subjects: Mapping[str, Mapping[str, Any]]
) -> float | None:
    if not len(boxes) == len(subjects) == 2:
        return None
    first, second = (_longer_side(boxes[s["detection"]]) for s in subjects.values())
    return round(second / first, DIGITS)


def _longer_side(box: Sequence[float]) -> float:
    left, top, right, bottom = box
    return max(right - left, bottom - top)


@dataclass(frozen=True)
class Summary:
    """What a case comes to on one kind of data set, by one embedder; means with 95 % intervals.

    Attributes:
        value: see `Case`.
        counted: share of the pictures with the right number of boxes.
        size_ratio: geometric mean; None where no picture has two boxes.
    """

    experiment: str
    label: str
    value: float | None
    variant: str
    kind: str
    num_subjects: int
    embedder: str
    pictures: int
    counted: float
    score: Interval
    success: Interval
    size_ratio: Interval | None


def summarise(
    rows: Iterable[Row], cases: Iterable[Case], data_sets: Sequence[DataSet]
) -> list[Summary]:
    """Return a summary for each case, kind and embedder that has pictures."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.variant, row.kind, row.embedder), []).append(row)
    embedders = dict.fromkeys(embedder for *_, embedder in groups)
    found = []
    for case in cases:
        kinds = {d.kind: len(d.names) for d in data_sets if covers(case, d)}
        for kind, num_subjects in kinds.items():
            for embedder in embedders:
                members = groups.get((case.variant.name, kind, embedder))
                if members:
                    found.append(_summary(case, kind, num_subjects, embedder, members))
    return found


def _summary(
    case: Case, kind: str, num_subjects: int, embedder: str, rows: Sequence[Row]
) -> Summary:
    ratios = [math.log(row.size_ratio) for row in rows if row.size_ratio is not None]
    return Summary(
        case.experiment,
        case.label,
        case.value,
        case.variant.name,
        kind,
        num_subjects,
        embedder,
        len(rows),
        sum(row.boxes == num_subjects for row in rows) / len(rows),
        bootstrap([row.score for row in rows]),
        bootstrap([float(row.success) for row in rows]),
        Interval(*map(math.exp, bootstrap(ratios))) if ratios else None,
    )


def flat(summary: Summary) -> dict[str, Any]:
    """Return a summary as columns: an interval `x` becomes x, x_low and x_high."""
    columns: dict[str, Any] = {}
    for key in summary.__dataclass_fields__:
        value = getattr(summary, key)
        if key in ("score", "success", "size_ratio"):
            ends = value or (None,) * 3
            columns |= dict(zip((key, f"{key}_low", f"{key}_high"), ends, strict=True))
        else:
            columns[key] = value
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in columns.items()}


def markdown(summaries: Sequence[Summary]) -> str:
    """Return tables to read, one an embedder and experiment."""
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(f"## {summary.experiment}, by {summary.embedder}", []).append(summary)
    head = ["| | pairs | pictures | right count | D&C | success | relative size |"]
    head.append("|---" * 7 + "|")
    tables = [[title, "", *head, *map(_markdown_row, group)] for title, group in groups.items()]
    return "\n\n".join("\n".join(table) for table in tables) + "\n"


def _markdown_row(summary: Summary) -> str:
    place = "" if summary.value is None else f" ({summary.value:g})"
    cells = [f"{summary.label}{place}", summary.kind, summary.pictures, f"{summary.counted:.0%}"]
    cells += [told(summary.score, ".3f"), told(summary.success, ".0%")]
    cells.append("" if summary.size_ratio is None else told(summary.size_ratio, ".2f"))
    return f"| {' | '.join(map(str, cells))} |"


def told(interval: Interval, form: str) -> str:
    """Return "mean [low, high]", each number in the given format."""
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv: a row a picture and embedder."""
    write_table(path, [asdict(row) for row in rows])
