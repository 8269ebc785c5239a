"""What a run leaves to read: a row a picture, summaries, tables and figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.plan import Case, DataSet
from experiments.plots import write_figures
from experiments.results import Row, flat, markdown, summarise, told, write_rows
from mudi.ground.files import write_table, write_text

RUN, RESULTS = "run.json", "results.csv"  # what pictures depend on; a row a picture and embedder
SUMMARY, TABLES, PLOTS = "summary.csv", "tables.md", "plots"


def write_report(
    output: Path, rows: Sequence[Row], cases: Iterable[Case], data_sets: Sequence[DataSet]
) -> None:
    """Write all but the sheet of pictures, and tell what the methods come to."""
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
    print(f"{len(rows)} rows in {output / RESULTS}, {len(figures)} plots beside it")
