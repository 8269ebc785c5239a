"""What a run leaves to read: a row a picture, summaries, tables and figures."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from experiments.plan import Case, DataSet
from experiments.plots import write_figures
from experiments.results import (
    Row,
    common_trainings,
    flat,
    markdown,
    summarise,
    told,
    training_of,
)
from mudi.ground.files import write_table, write_text

RUN, METRIC = "run.json", "metric.json"  # what pictures depend on, and what their scores do
RESULTS = "results.csv"  # a row a picture and embedder
SUMMARY, TABLES, PLOTS = "summary.csv", "tables.md", "plots"


def write_report(
    output: Path, rows: Sequence[Row], cases: Iterable[Case], data_sets: Sequence[DataSet]
) -> None:
    """Write all but the sheet of pictures, and tell what the methods come to."""
    cases = list(cases)
    summaries = summarise(rows, cases, data_sets)
    write_rows(output / RESULTS, rows)
    write_table(output / SUMMARY, [flat(summary) for summary in summaries])
    write_text(output / TABLES, markdown(summaries))
    figures = write_figures(output / PLOTS, summaries)
    for summary in summaries:
        if summary.experiment == "methods":
            print(
                f"{summary.label} ({summary.kind}, {summary.embedder}): "
                f"D&C {told(summary.found['score'], '.3f')}, "
                f"success {told(summary.found['success'], '.0%')}"
            )
    for name, kept in common_trainings(rows, cases).items():
        own = {case.variant.name for case in cases if case.experiment == name}
        there = {training_of(row) for row in rows if row.variant in own}
        if kept < there:
            print(
                f"{name}: {len(kept)} trainings count, which all its variants have; "
                f"{len(there - kept)} do not"
            )
    print(f"{len(rows)} rows in {output / RESULTS}, {len(figures)} plots beside it")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv: a row a picture and embedder."""
    records = [asdict(row) for row in rows]
    for record in records:
        record["failures"] = " ".join(record["failures"])
        record["cosines"] = " ".join(f"{cosine:g}" for cosine in record["cosines"])
    write_table(path, records)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row_of(record) for record in csv.DictReader(file)]


def _row_of(record: dict[str, str]) -> Row:
    kinds = get_type_hints(Row)
    plain: dict[str, Any] = {
        name: kinds[name](text) for name, text in record.items() if kinds[name] in (str, int)
    }
    score, size_ratio = (float(record[n]) if record[n] else None for n in ("score", "size_ratio"))
    background = {"": None, "True": True, "False": False}[record["background"]]
    return Row(
        **plain,
        score=score,
        failures=tuple(record["failures"].split()),
        cosines=tuple(float(cosine) for cosine in record["cosines"].split()),
        background=background,
        size_ratio=size_ratio,
    )
