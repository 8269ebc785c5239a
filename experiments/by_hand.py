"""How well does the metric agree with a person who looked at the pictures?

    python -m experiments.by_hand sample --results output/compare/results.csv --output hand
    python -m experiments.by_hand compare --results output/compare/results.csv \
        --verdicts hand/verdicts.jsonl

`sample` draws pictures of all subjects at random, whatever made them, onto numbered sheets that do
not tell the method, and writes rules.txt for who judges and verdicts.jsonl to fill in: `count`, how
many subjects there are, and `verdict`, "good" or what is wrong. `compare` gives each embedder's
agreement with it, what each way of making pictures comes to by hand, and of several files, a judge
each, how far they agree.

`--variants` keeps to some ways of making pictures: `sample` then draws prompts and seeds and shows
what all of these made of each, and `compare` tells the first one's lead, picture by picture.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from experiments.results import grouped, lead, mean_of, shot_of, told, training_of
from experiments.rows import GOOD, Row, read_rows
from experiments.stats import agreement, cohens_kappa
from mudi.ground.errors import program, refuse
from mudi.ground.files import write_image, write_records, write_text
from mudi.ground.flags import flag, parse, range_complaints
from mudi.ground.sheets import contact_sheet
from mudi.images import load_rgb
from mudi.metadata import MetadataError, read_records

VERDICTS = "verdicts.jsonl"
RULES_FILE = "rules.txt"
RULES = f"""\
Know the subjects from their photos: of which class they are, which colours are where, what they
wear.
Then judge each picture by itself; do not guess what made it.

count: how many things there are, apart or touching; one that is made of parts of both counts once.
verdict:
  {GOOD}     all subjects that the prompt names are there, once each, and each is itself: of its
           class's shape as far as such small pictures allow, its own colours in about the right
           places, not another's. Missing or vague accessories, blur, ragged edges and a wrong
           background are forgiven; wrong colours, and what belongs to another, are not.
  mixed    something is not itself: a blend (of which a single one is mixed, not missing), in
           another's colours, or like none of them.
  missing  what is there is itself, but one is not there.
  extra    all are there, each itself, but something too many times.
"""
Verdicts = dict[str, dict[str, Any]]  # a judge's filled-in lines by picture
SHEET_COLUMNS, SHEET_ROWS = 5, 4
TILE = 256  # px


@dataclass
class HandArgs:
    """by hand"""

    command: str = flag("", "which", positional=True, choices=("sample", "compare"))
    results: Path = flag(Path(), "results.csv, in its own folder", required=True)
    output: Path = flag(Path("hand"), "sample: folder to write")
    count: int = flag(100, "sample: pictures", at_least=1)
    variants: list[str] = flag([], "as results.csv names them; unset: all", nargs="+")
    seed: int = flag(0, "sample: of the choice")
    verdicts: list[Path] = flag(
        [], "compare: filled-in files, a judge each; sample: whose pictures are left out", nargs="+"
    )


def parse_args(argv: list[str] | None = None) -> HandArgs:
    return parse(HandArgs, __doc__, argv, prog="python -m experiments.by_hand")


@program
def main(args: HandArgs) -> None:
    refuse(range_complaints(args))
    if not args.results.is_file():
        refuse([f"--results {args.results}: no such file"])
    rows = [row for row in read_rows(args.results) if not row.alone]
    if args.variants:
        rows = of_variants(rows, args.variants)
    judges = {str(path): read_verdicts(path) for path in args.verdicts}
    if args.command == "sample":
        sample([row for row in rows if not any(row.image in own for own in judges.values())], args)
        return
    if not judges:
        refuse(["compare needs --verdicts, the filled-in file"])
    for name, verdicts in judges.items():
        if len(judges) > 1:
            print(name)
        print(*compare(rows, verdicts), *by_variant(rows, verdicts, args.variants), sep="\n")
    for one, other in combinations(judges, 2):
        print(between((one, other), judges[one], judges[other]))


def of_variants(rows: list[Row], variants: Sequence[str]) -> list[Row]:
    """Return the rows of some ways of making pictures.

    Raises:
        SetupError: there is no such one.
    """
    known = sorted({row.variant for row in rows})
    refuse([f"--variants {v}: there are {', '.join(known)}" for v in variants if v not in known])
    return [row for row in rows if row.variant in variants]


def choose(rows: list[Row], args: HandArgs) -> list[str]:
    """Draw pictures; with --variants each of what they all made of some prompts and seeds."""
    rng, shown = random.Random(args.seed), sorted({row.image for row in rows})
    if not args.variants:
        return rng.sample(shown, min(args.count, len(shown)))
    shots: dict[tuple[str, int, str], dict[str, str]] = {}
    for row in rows:
        shots.setdefault((*training_of(row), shot_of(row)), {})[row.variant] = row.image
    whole = sorted(shot for shot, made in shots.items() if len(made) == len(set(args.variants)))
    drawn = rng.sample(whole, min(args.count // len(set(args.variants)), len(whole)))
    chosen = sorted({image for shot in drawn for image in shots[shot].values()})
    return rng.sample(chosen, len(chosen))


def sample(rows: list[Row], args: HandArgs) -> None:
    """Write numbered sheets and the file to fill in."""
    shown = {row.image: row for row in rows}
    chosen = choose(rows, args)
    a_sheet = SHEET_COLUMNS * SHEET_ROWS
    for start in range(0, len(chosen), a_sheet):
        names = chosen[start : start + a_sheet]
        images = [load_rgb(args.results.parent / name) for name in names]
        captions = [f"{start + i}: {shown[name].prompt}" for i, name in enumerate(names)]
        sheet = contact_sheet(images, captions, SHEET_COLUMNS, TILE)
        write_image(args.output / f"sheet_{start // a_sheet:02}.png", sheet)
    blank = {"count": None, "verdict": None}
    lines = [{"number": i, "image": name, **blank} for i, name in enumerate(chosen)]
    write_records(args.output / VERDICTS, lines)
    write_text(args.output / RULES_FILE, RULES)
    print(
        f"look at the sheets in {args.output} and fill in {args.output / VERDICTS} "
        f"by {args.output / RULES_FILE}"
    )


def read_verdicts(path: Path) -> Verdicts:
    """Return the filled-in lines by picture; those without a verdict are left out.

    Raises:
        SetupError: the file can't be read, or a line is not as it should be.
    """
    try:
        records = read_records(path)
    except MetadataError as error:
        refuse(error.problems)
    problems = []
    filled = [record for record in records if record.get("verdict") is not None]
    for number, record in enumerate(filled, 1):
        if not isinstance(record.get("image"), str) or not isinstance(record["verdict"], str):
            problems.append(f'{path}: verdict {number}: "image" and "verdict" must be texts')
        elif not isinstance(record.get("count"), int):
            problems.append(f'{path}: "{record["image"]}": "count" must be a whole number')
    refuse(problems or [f"{path}: no line has a verdict"] * (not filled))
    return {record["image"]: record for record in filled}


def compare(rows: list[Row], verdicts: Verdicts) -> list[str]:
    """Return, for each embedder, how often the metric says what the person said."""
    lines = []
    for embedder in dict.fromkeys(row.embedder for row in rows):
        own = {row.image: row for row in rows if row.embedder == embedder}
        judged = [(row, verdicts[image]) for image, row in own.items() if image in verdicts]
        if not judged:
            refuse([f"none of the {len(verdicts)} judged pictures is in the results"])
        counts = agreement(
            [row.boxes for row, _ in judged], [record["count"] for _, record in judged]
        )
        ours = [row.success for row, _ in judged]
        theirs = [record["verdict"] == GOOD for _, record in judged]
        lines.append(
            f"{embedder}: {len(judged)} pictures; the same count in {counts:.0%}, the same success "
            f"in {_agreeing(ours, theirs)}; good by hand "
            f"{sum(theirs) / len(theirs):.0%}, by the metric {sum(ours) / len(ours):.0%}"
        )
    return lines


def between(names: tuple[str, str], ours: Verdicts, theirs: Verdicts) -> str:
    """Return how far two judges agree about the pictures that both have judged."""
    both = [(own, theirs[image]) for image, own in ours.items() if image in theirs]
    judges = " and ".join(names)
    if not both:
        return f"{judges}: no picture in common"
    counts = agreement(*zip(*[(a["count"], b["count"]) for a, b in both], strict=True))
    good = [(a["verdict"] == GOOD, b["verdict"] == GOOD) for a, b in both]
    one, other = zip(*good, strict=True)
    return (
        f"{judges}: {len(both)} pictures; the same count in {counts:.0%}, the same success in "
        f"{_agreeing(one, other)}; good {sum(one)} and {sum(other)}, by both "
        f"{sum(a and b for a, b in good)}"
    )


def _agreeing(ours: Sequence[bool], theirs: Sequence[bool]) -> str:
    kappa = cohens_kappa(ours, theirs)
    beyond = "not defined" if kappa is None else f"{kappa:.2f}"
    return f"{agreement(ours, theirs):.0%} (kappa {beyond})"


def by_variant(rows: list[Row], verdicts: Verdicts, compared: Sequence[str] = ()) -> list[str]:
    """Return what each variant comes to by hand, with its interval over pairs and pictures.

    Args:
        compared: the first of these is compared with the others, picture by picture.
    """
    judged = {(row.image, row.variant): row for row in rows if row.image in verdicts}.values()
    lines, good = [], {}
    for variant in sorted({row.variant for row in judged}):
        own = [row for row in judged if row.variant == variant]
        good[variant] = grouped(own, lambda row: float(verdicts[row.image]["verdict"] == GOOD))
        found = told(mean_of(good[variant]), ".0%")
        lines.append(f"{variant}: by hand {found} of {len(own)} pictures are good")
    for other in compared[1:]:
        gains = lead(good.get(compared[0], {}), good.get(other, {}))
        if gains:
            ahead = told(mean_of(gains), "+.0%")
            lines.append(f"{compared[0]} is ahead of {other} by {ahead}")
    return lines


if __name__ == "__main__":
    main(parse_args())
