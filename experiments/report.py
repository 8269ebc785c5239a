"""What a run leaves to read: a row a picture, summaries, tables and figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.plan import Case, DataSet
from experiments.plots import write_figures
from experiments.results import (
    common_trainings,
    flat,
    markdown,
    summarise,
    told,
    training_of,
)
from experiments.rows import RESULTS, Row, write_rows
from mudi.ground.files import write_table, write_text

RUN, METRIC = "run.json", "metric.json"  # what pictures depend on, and what their scores do
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
