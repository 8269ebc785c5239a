"""Records as lines of JSON, and what many of them come to."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from detect_and_compare.measure import Record
from detect_and_compare.score import Likeness, Verdict
from mudi.ground.files import write_table
from mudi.texts import printable

DIGITS = 6  # of the numbers in scores.jsonl and summary.csv

Line = dict[str, Any]


def to_line(
    stamp: Mapping[str, Any], records: Mapping[str, Record], text_fidelity: float | None = None
) -> Line:
    """Return a picture's line of scores.jsonl.

    Its keys: `image`; those of the JSONL; `bytes` and `modified` of the file; `size` (W, H);
    `boxes` (left, top, right, bottom; px); `confidences`; `answers`, for each box the index of the
    text that it answers; `scores`, which holds for each embedder `score`, `verdict`, `matrix`
    (S_DC), `similarity` (crops x subjects), `likenesses`, for each box the fields of a `Likeness`,
    and `subjects`, each with the fields of a `Verdict`; and `text_fidelity`, where asked for. Of a
    picture that can't be read: `problem` and nothing of what comes from its pixels.

    Args:
        stamp: what the line begins with; see `Picture.stamp`.
        records: the picture's by embedder.
    """
    first = next(iter(records.values()))
    if first.size is None:
        return {**stamp, "problem": first.problem}
    line = {
        **stamp,
        "size": first.size,
        "boxes": first.boxes,
        "confidences": [round(detection.score, DIGITS) for detection in first.detections],
        "answers": [detection.query for detection in first.detections],
        "scores": {name: _scores(record) for name, record in records.items()},
    }
    if text_fidelity is not None:
        line["text_fidelity"] = round(text_fidelity, DIGITS)
    return line


def _scores(record: Record) -> Line:
    return {
        "score": None if record.score is None else round(record.score, DIGITS),
        "verdict": record.verdict,
        "matrix": _numbers(record.matrix),
        "similarity": _numbers(record.similarity),
        "likenesses": [_rounded(likeness) for likeness in record.likenesses],
        "subjects": {subject: _rounded(verdict) for subject, verdict in record.verdicts.items()},
    }


def _rounded(found: Verdict | Likeness) -> Line:
    fields = asdict(found)
    if found.separation is not None:
        fields["separation"] = round(found.separation, DIGITS)
    return fields


def _numbers(matrix: np.ndarray | None) -> list[list[float]] | None:
    return None if matrix is None else matrix.round(DIGITS).tolist()


@dataclass(frozen=True)
class Summary:
    """What a group of pictures comes to by one measure.

    Attributes:
        group: the pictures' common value of the --group_by key; "" where all count together.
        measure: an embedder's name, or that of the text-fidelity model.
        pictures: how many have a score; the rest of the row is about them.
        standard_error: of the mean, in the score's units; None for fewer than two pictures.
        success_rate: share with the right number of boxes and every subject present.
        missing, extra, mixed: pictures of which this is (part of) the verdict.
        unreadable: pictures that could not be read; in no other number.
    """

    group: str
    measure: str
    pictures: int
    mean: float | None
    standard_error: float | None
    success_rate: float | None = None
    missing: int | None = None
    extra: int | None = None
    mixed: int | None = None
    unreadable: int = 0

    def told(self) -> str:
        """Return the row as a line of text."""
        where = printable(f"{self.group}: {self.measure}" if self.group else self.measure)
        if self.mean is None:
            return f"{where}: no picture has a score; {self.unreadable} unreadable"
        error = "" if self.standard_error is None else f" ± {self.standard_error:.3f}"
        text = f"{where}: {self.mean:.3f}{error} over {self.pictures} pictures"
        if self.success_rate is None:
            return text
        return (
            f"{text}; success {self.success_rate:.0%}, {self.missing} missing, {self.extra} extra, "
            f"{self.mixed} mixed, {self.unreadable} unreadable"
        )


def summarise(
    lines: Sequence[Line],
    embedders: Sequence[str],
    text_model: str | None = None,
    group_by: str | None = None,
) -> list[Summary]:
    """Return a summary for each measure and group, in the order of the groups' first pictures."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(str(line[group_by]) if group_by else "", []).append(line)
    rows = [
        _by_embedder(group, name, members)
        for name in embedders
        for group, members in groups.items()
    ]
    if text_model is not None:
        for group, members in groups.items():
            values = [line["text_fidelity"] for line in members if "text_fidelity" in line]
            rows.append(Summary(group, text_model, len(values), *_mean_and_error(values)))
    return rows


def _by_embedder(group: str, name: str, lines: Sequence[Line]) -> Summary:
    scores = [line["scores"][name] for line in lines if "scores" in line]
    verdicts = [score["verdict"].split(" + ") for score in scores]

    def count(word: str) -> int:
        return sum(word in verdict for verdict in verdicts)

    return Summary(
        group,
        name,
        len(scores),
        *_mean_and_error([score["score"] for score in scores]),
        success_rate=round(count("good") / len(scores), DIGITS) if scores else None,
        missing=count("missing"),
        extra=count("extra"),
        mixed=count("mixed"),
        unreadable=len(lines) - len(scores),
    )


def _mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return (
        round(mean(values), DIGITS) if values else None,
        None if error is None else round(error, DIGITS),
    )


def write_summary(path: Path, rows: Sequence[Summary], group_by: str | None) -> None:
    """Write summary.csv; its first column is named after the --group_by key, if there is one."""
    tables = [asdict(row) for row in rows]
    columns = {key: group_by if key == "group" else key for key in tables[0]}
    named = {key: name for key, name in columns.items() if name}
    write_table(path, [{name: table[key] for key, name in named.items()} for table in tables])
