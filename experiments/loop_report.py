"""What arms of the loop's experiment come to: rows, paired leads, tables to read."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect_and_compare.results import Line
from experiments.backgrounds import BackgroundJudge, asked_colour
from experiments.plan import DataSet
from experiments.results import (
    FORMS,
    MEASURES,
    TITLES,
    Groups,
    cell,
    ends_of,
    grouped,
    lead,
    mean_of,
)
from experiments.rows import BLEED, DIGITS, GOOD, RESULTS, Row, rows_of, write_rows
from experiments.stats import Interval
from mudi.ground.files import write_table, write_text
from mudi.images import load_rgb
from mudi.loop.picking import PICKED, embedders_of
from mudi.loop.rounds import bleeds
from mudi.loop.stages import Round
from mudi.metadata import load_subjects, read_records

COMPOSED = "composed of photos"  # no model's: right pictures, what the metric says of them
CONTACT = ", in contact"  # behind an arm's name, of its pictures whose boxes overlap
JUDGED = "judge held out"  # a round's last stage that pictures of an arm need
ALONE = ("solo_success", "solo_bleed", "solo_count")
BOTH = ("counted", "score", "success", "background")
KINDS = {"together": BOTH, "contact": BOTH, "alone": ALONE}
LEADS = ("score", "success", "solo_success", "solo_bleed")  # that tables tell; summary.csv has all


@dataclass(frozen=True)
class Unit:
    """One pair and one training of it."""

    pair: str
    training: int
    folder: Path

    data = property(lambda self: self.folder / "data")
    loop = property(lambda self: self.folder / "loop")


def unit_rows(unit: Unit, arms: Mapping[str, Round], see: BackgroundJudge) -> Iterator[Row]:
    """Yield a row for each judged picture of all arms, by the embedder that judges.

    Pictures are named from the folder that holds all units.
    """
    data_set = DataSet(unit.pair, unit.data, load_subjects(unit.data).names)
    for arm, made in arms.items():
        for where, variant in ((made, arm), (touching(made), arm + CONTACT)):
            for line in read_records(where.held_out_scores):
                if "scores" in line:
                    path = where.held_out / line["image"]
                    colour = see(load_rgb(path), line["boxes"])
                    origin = {
                        "image": path.relative_to(unit.folder.parents[1]).as_posix(),
                        "variant": variant,
                        "training": unit.training,
                    }
                    yield row_of(line | origin, data_set, colour == asked_colour(line["prompt"]))


def row_of(line: Line, data_set: DataSet, background: bool) -> Row:
    """Return what the embedder that judges says of a picture.

    As in the loop, a subject alone is right where one thing is found that is nearer to it than to
    the other.
    """
    judge = embedders_of(line)[1]
    embedder = Path(judge.split("@")[0]).name
    if len(line["named"]) > 1:
        own = line | {"scores": {judge: line["scores"][judge]}}
        return rows_of(own, data_set, [embedder], background)[0]
    boxes, bled = len(line["boxes"]), bleeds(line)
    verdict = "missing" if boxes == 0 else "extra" if boxes > 1 else "mixed" if bled else GOOD
    return Row(
        image=line["image"],
        data_set=data_set.name,
        kind=data_set.kind,
        variant=line["variant"],
        training=line["training"],
        alone=line["named"][0],
        prompt=line["prompt"],
        seed=line["seed"],
        embedder=embedder,
        boxes=boxes,
        score=None,
        verdict=verdict,
        failures=(BLEED,) * bled,
        cosines=(),
        background=background,
        size_ratio=None,
    )


def touching(made: Round) -> Round:
    """Return where an arm's pictures in contact are."""
    return Round(0, made.folder / "contact", made.lora)


def is_judged(made: Round) -> bool:
    return all(JUDGED in where.seconds() for where in (made, touching(made)))


def report(output: Path, arms: Mapping[Unit, Mapping[str, Round]], loop_arm: str) -> None:
    """Draw up the units whose arms are all judged; name the others."""
    see = BackgroundJudge()
    rows: list[Row] = []
    picks, hours = [], 0.0
    for unit, own in arms.items():
        lacking = [arm for arm, made in own.items() if not is_judged(made)]
        if lacking:
            print(f"{unit.pair}, training {unit.training}: left out, no {', '.join(lacking)} yet")
            continue
        rows += unit_rows(unit, own, see)
        for made in {made.folder: made for made in own.values()}.values():
            hours += sum(made.seconds().values()) / 3600
            hours += sum(touching(made).seconds().values()) / 3600
            chosen = [pick for pick in read_records(made.picks) if pick["fate"] == PICKED]
            if made.picks.is_file():
                picks.append(
                    f"{unit.pair}, training {unit.training}, {made.folder.name}: "
                    f"{len(chosen)} picks"
                )
    if not rows:
        print("nothing is judged yet")
        return
    write_rows(output / RESULTS, rows)
    summary = summarise(rows, loop_arm)
    write_table(output / "summary.csv", [flat(one) for one in summary])
    write_text(output / "hours.json", json.dumps({"hours of one process": round(hours, 2)}) + "\n")
    write_text(output / "tables.md", markdown(summary, loop_arm, picks, hours))
    print((output / "tables.md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ArmSummary:
    """What an arm comes to on one kind of picture.

    Attributes:
        pictures: how many.
        found: means with 95 % intervals over pairs, trainings and pictures, by measure.
        behind: by how much the loop is ahead, picture by picture.
    """

    kind: str
    arm: str
    pictures: int
    found: dict[str, Interval]
    behind: dict[str, Interval]


def kind_of(row: Row) -> str:
    return "alone" if row.alone else "contact" if row.variant.endswith(CONTACT) else "together"


def summarise(rows: Iterable[Row], loop_arm: str) -> list[ArmSummary]:
    """Return what each arm comes to on each kind of picture."""
    by_place: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_place.setdefault((kind_of(row), row.variant.removesuffix(CONTACT)), []).append(row)
    summaries = []
    for kind, measures in KINDS.items():
        loops = _values(by_place.get((kind, loop_arm), []), measures)
        for (where, arm), own in by_place.items():
            if where == kind:
                values = _values(own, measures)
                compared = {} if arm in (loop_arm, COMPOSED) else values
                gains = {name: lead(loops[name], ours) for name, ours in compared.items()}
                summaries.append(ArmSummary(kind, arm, len(own), _means(values), _means(gains)))
    return summaries


def _values(rows: Sequence[Row], measures: Sequence[str]) -> dict[str, Groups]:
    return {name: grouped(rows, MEASURES[name]) for name in measures}


def _means(groups: Mapping[str, Groups]) -> dict[str, Interval]:
    return {name: mean_of(values) for name, values in groups.items() if values}


def flat(summary: ArmSummary) -> dict[str, Any]:
    """Return a summary as columns, see `ends_of`."""
    columns: dict[str, Any] = {
        "kind": summary.kind,
        "arm": summary.arm,
        "pictures": summary.pictures,
    }
    for title, intervals in (("", summary.found), ("loop_ahead_", summary.behind)):
        for name in (*BOTH, *ALONE):
            columns |= ends_of(title + name, intervals.get(name))
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in columns.items()}


def markdown(
    summaries: Sequence[ArmSummary], loop_arm: str, picks: Sequence[str], hours: float
) -> str:
    """Return tables to read, one a kind of picture."""
    tables = []
    for kind, measures in KINDS.items():
        leads = [name for name in measures if name in LEADS]
        titles = [
            *(TITLES[n] for n in measures),
            *(f"{loop_arm} ahead: {TITLES[n]}" for n in leads),
        ]
        lines = [f"## {kind}", "", f"| | pictures | {' | '.join(titles)} |"]
        lines.append("|---" * (len(titles) + 2) + "|")
        for one in (one for one in summaries if one.kind == kind):
            cells = [cell(one.found.get(name), FORMS.get(name, ".0%")) for name in measures]
            cells += [cell(one.behind.get(name), "+" + FORMS.get(name, ".0%")) for name in leads]
            lines.append(f"| {one.arm} | {one.pictures} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    spent = f"{hours:.1f} hours of one process, stopped stages not counted."
    listed = "\n".join(f"- {line}" for line in picks)
    return "\n\n".join([*tables, spent, listed]) + "\n"
