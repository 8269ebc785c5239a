"""Does the metric rank pictures as a person would? Tried on pictures whose truth is known.

    python -m experiments.check_metric --output output/check_metric

Draws pictures of the miniature's pairs, right ones and wrong ones of several kinds, scores them by
Detect-and-Compare and writes metric_check.csv: D&C and success by kind, and how surely a right
picture scores above a wrong one of that kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data_sets import find_data_sets, write_miniatures
from experiments.plan import DataSet
from experiments.rows import Record, Row, rows_of
from experiments.scoring import (
    MetricArgs,
    embedder_labels,
    metric_complaints,
    score,
)
from experiments.stats import bootstrap, ranked_rightly
from mini.art import Thing
from mini.backgrounds import random_name
from mini.subjects import PAIRS, SETS, subjects_of
from mini.world import arrange, random_thing
from mudi.ground.errors import program, refuse
from mudi.ground.files import write_image, write_records, write_table
from mudi.ground.flags import flag, parse
from mudi.ground.sheets import contact_sheet
from mudi.ground.work import join_processes
from mudi.images import load_rgb

TABLE, SHEET = "metric_check.csv", "sheet.png"
RIGHT = "both"
DIGITS = 4
SHOWN = 4  # pictures a kind on the sheet

Contents = Callable[[Thing, Thing, np.random.Generator], list[Thing]]
# What pictures of subjects a and b show; a person calls the first kind right and no other
KINDS: dict[str, Contents] = {
    RIGHT: lambda a, b, rng: [a, b],
    "colours exchanged": lambda a, b, rng: [replace(a, paint=b.paint), replace(b, paint=a.paint)],
    "one in the other's colours": lambda a, b, rng: [a, replace(b, paint=a.paint)],
    "strangers of their classes": lambda a, b, rng: [
        random_thing(a.noun, rng),
        random_thing(b.noun, rng),
    ],
    "one twice, the other missing": lambda a, b, rng: [a, a],
    "one missing": lambda a, b, rng: [a],
    "one doubled": lambda a, b, rng: [a, b, a],
}


@dataclass
class CheckArgs(MetricArgs):
    """pictures"""

    output: Path = flag(Path(), "folder for pictures, scores and the table", required=True)
    num_images: int = flag(8, "pictures a pair and kind", at_least=1)
    pairs: list[str] = flag(list(PAIRS), "of mini/subjects.py", nargs="+", choices=SETS)
    seed: int = flag(1, "of the pictures")


def parse_args(argv: list[str] | None = None) -> CheckArgs:
    return parse(CheckArgs, __doc__, argv, prog="python -m experiments.check_metric")


@program
def main(args: CheckArgs) -> None:
    problems = metric_complaints(args)
    refuse(problems)
    state = join_processes()
    with state.main_process_first():
        folder = args.output / "data"
        if state.is_main_process:
            write_miniatures(folder)
    rows: list[Row] = []
    for number, data_set in enumerate(find_data_sets(folder, args.pairs, problems)):
        path, output = args.output / f"{data_set.name}.jsonl", args.output / "dnc" / data_set.name
        if state.is_main_process:
            rng = np.random.default_rng([args.seed, number])
            write_records(path, draw_pictures(data_set, args.num_images, rng, args.output))
        state.wait_for_everyone()
        for line in score(path, data_set.folder, output, args):
            rows += rows_of(line, data_set, embedder_labels(args))
    if state.is_main_process:
        table = tabulate(rows)
        write_table(args.output / TABLE, table)
        write_image(args.output / SHEET, sheet(rows, args.output))
        for record in table:
            print(", ".join(f"{key} {value}" for key, value in record.items()))


def draw_pictures(
    data_set: DataSet, count: int, rng: np.random.Generator, folder: Path
) -> list[dict[str, Any]]:
    """Write pictures of every kind below folder; return their lines for the metric."""
    first, second = (subject.thing for subject in subjects_of(data_set.name))
    records = []
    for kind, contents in KINDS.items():
        for k in range(count):
            a, b = (first, second) if k % 2 == 0 else (second, first)
            pixels, _ = arrange(contents(a, b, rng), random_name(rng), rng)
            image = f"pictures/{data_set.name}/{kind.replace(' ', '_')}_{k:02}.png"
            write_image(folder / image, Image.fromarray(pixels))
            told = {"variant": kind, "prompt": kind, "seed": k}
            records.append({"image": image, "data_set": data_set.name, **told})
    return records


def tabulate(rows: Sequence[Row]) -> list[Record]:
    """Return, by embedder, kind of pair and kind of picture, what the pictures come to.

    `above` is the share of pairs of a right picture and one of that kind, of the same subjects, in
    which the right one has the higher D&C.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.embedder, row.kind, row.variant), []).append(row)
    table: list[Record] = []
    for (embedder, pair, kind), members in groups.items():
        right = groups[embedder, pair, RIGHT]
        interval = bootstrap([row.score or 0.0 for row in members])
        table.append(
            {
                "embedder": embedder,
                "pair": pair,
                "kind": kind,
                "pictures": len(members),
                "boxes": round(sum(row.boxes for row in members) / len(members), DIGITS),
                "score": round(interval.mean, DIGITS),
                "score_low": round(interval.low, DIGITS),
                "score_high": round(interval.high, DIGITS),
                "success": round(sum(row.success for row in members) / len(members), DIGITS),
                "above": None if kind == RIGHT else round(_above(right, members), DIGITS),
            }
        )
    return table


def _above(right: Sequence[Row], wrong: Sequence[Row]) -> float:
    """Return `ranked_rightly` within each data set, averaged over them."""
    shares = [
        ranked_rightly(
            [row.score or 0.0 for row in right if row.data_set == name],
            [row.score or 0.0 for row in wrong if row.data_set == name],
        )
        for name in dict.fromkeys(row.data_set for row in wrong)
    ]
    return sum(shares) / len(shares)


def sheet(rows: Sequence[Row], folder: Path) -> Image.Image:
    """Lay out some pictures of every kind, a row a kind, with the main embedder's verdicts."""
    main_embedder = rows[0].embedder
    images, captions = [], []
    for kind in KINDS:
        members = [row for row in rows if (row.variant, row.embedder) == (kind, main_embedder)]
        for row in members[:: max(1, len(members) // SHOWN)][:SHOWN]:
            images.append(load_rgb(folder / row.image))
            captions.append(f"{kind}: D&C {row.score:.2f}, {row.verdict}")
    return contact_sheet(images, captions, columns=len(images) // len(KINDS), tile=160)


if __name__ == "__main__":
    main(parse_args())
