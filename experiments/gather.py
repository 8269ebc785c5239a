"""Draw up several runs of compare_methods as one.

    python -m experiments.gather output/monday output/tuesday --output output/both

Work that takes more than a day, or machines of which none keeps its files, is done in parts
(compare_methods' --data_sets and --trainings); of each, run.json, metric.json and results.csv are
enough. Base, recipe and metric must be the same, to the weights.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data_sets import find_data_sets, write_miniatures
from experiments.making import read_settings
from experiments.plan import EXPERIMENTS, Case, plan_cases
from experiments.report import METRIC, RUN, write_report
from experiments.rows import RESULTS, Row, read_rows
from mini import recipe
from mudi.ground.errors import program, refuse
from mudi.ground.files import write_text
from mudi.ground.flags import differences, flag, parse


@dataclass
class GatherArgs:
    """runs"""

    runs: list[Path] = flag([], "folders that compare_methods wrote", positional=True, nargs="+")
    output: Path = flag(Path(), "folder for tables and figures", required=True)
    data_dir: Path | None = flag(None, "folder of data folders; unset: the miniature's subjects")
    experiments: list[str] = flag(["methods"], "which", nargs="+", choices=EXPERIMENTS)
    gamma: float = flag(recipe.GAMMA, "of MuDI's mean shift")


def parse_args(argv: list[str] | None = None) -> GatherArgs:
    return parse(GatherArgs, __doc__, argv, prog="python -m experiments.gather")


@program
def main(args: GatherArgs) -> None:
    refuse(complaints(args.runs))
    rows = [row for run in args.runs for row in read_rows(run / RESULTS)]
    refuse(doubled(rows))
    problems: list[str] = []
    data_dir = args.data_dir or write_miniatures(args.output / "data")
    shown = list(dict.fromkeys(row.data_set for row in rows))
    data_sets = find_data_sets(data_dir, shown, problems)
    refuse(problems)
    cases = plan_cases(args.experiments, args.gamma)
    print(*left_out(rows, cases), sep="\n", end="")
    for name in (RUN, METRIC):
        write_text(args.output / name, (args.runs[0] / name).read_text(encoding="utf-8"))
    write_report(args.output, rows, cases, data_sets)


def complaints(runs: Sequence[Path]) -> list[str]:
    """Complain about files that are not there, and runs made or scored otherwise than the first."""
    paths = [run / name for run in runs for name in (RUN, METRIC, RESULTS)]
    lacking = [f"{path}: no such file" for path in paths if not path.is_file()]
    if lacking:
        return lacking
    found = []
    for name, done, read in ((RUN, "made", read_settings), (METRIC, "scored", _read)):
        first, *others = [read(run / name) for run in runs]
        for run, settings in zip(runs[1:], others, strict=True):
            told = "; ".join(differences(first, settings))
            found += [f"{run / name}: {done} otherwise than {runs[0]} ({told})"] * bool(told)
    return found


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def doubled(rows: Sequence[Row]) -> list[str]:
    """Complain about pictures that two runs count."""
    counts = Counter((row.image, row.embedder) for row in rows)
    twice = [image for (image, _), count in counts.items() if count > 1]
    return [f"{twice[0]}: in two of the runs, as {len(twice)} rows are"] if twice else []


def left_out(rows: Sequence[Row], cases: Sequence[Case]) -> list[str]:
    """Tell of pictures that no table counts."""
    counted = {case.variant.name for case in cases}
    others = sorted({row.variant for row in rows} - counted)
    return [f"in no table of these --experiments and --gamma: {', '.join(others)}\n"] * bool(others)


if __name__ == "__main__":
    main(parse_args())
