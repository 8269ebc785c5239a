"""What arms of the loop's experiment come to: rows, paired gains, tables to read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.backgrounds import BackgroundJudge, asked_colour
from experiments.results import told
from experiments.stats import Interval, nested_bootstrap
from mudi.ground.files import write_table, write_text
from mudi.images import load_rgb
from mudi.loop.picking import PICKED, embedders_of
from mudi.loop.rounds import bleeds, scores_of
from mudi.loop.stages import Round
from mudi.metadata import read_records

TOGETHER, TOUCHING, ALONE = "together", "contact", "alone"
COMPOSED = "composed of photos"  # no model's: right pictures, what the metric says of them
MEASURES = ("success", "background", "solo_success", "solo_bleed", "solo_count")
JUDGED = "judge held out"  # a round's last stage that pictures of an arm need


@dataclass(frozen=True)
class Unit:
    """One pair and one training of it."""

    pair: str
    training: int
    folder: Path

    data = property(lambda self: self.folder / "data")
    loop = property(lambda self: self.folder / "loop")


def rows_of(unit: Unit, arm: str, made: Round, see: BackgroundJudge) -> Iterator[dict[str, Any]]:
    """Yield a row for each judged picture of an arm; a measure that it has no say in is empty."""
    for where in (made, touching(made)):
        for line in read_records(where.held_out_scores):
            if "scores" not in line:
                continue
            alone = len(line["named"]) == 1
            kind = ALONE if alone else TOGETHER if where is made else TOUCHING
            image = load_rgb(where.held_out / line["image"])
            wanted = asked_colour(line["prompt"])
            scores = scores_of(line)
            one = len(line["boxes"]) == 1
            yield {
                "pair": unit.pair,
                "training": unit.training,
                "arm": arm,
                "kind": kind,
                "image": line["image"],
                "prompt": line["prompt"],
                "embedder": Path(embedders_of(line)[1].split("@")[0]).name,
                "score": scores["score"],
                "success": "" if alone else int(scores["verdict"] == "good"),
                "background": int(see(image, line["boxes"]) == wanted),
                "solo_success": int(one and not bleeds(line)) if alone else "",
                "solo_bleed": int(bleeds(line)) if alone and line["boxes"] else "",
                "solo_count": int(not one) if alone else "",
            }


def touching(made: Round) -> Round:
    """Return where an arm's pictures in contact are."""
    return Round(0, made.folder / "contact", made.lora)


def is_judged(made: Round) -> bool:
    return all(JUDGED in where.seconds() for where in (made, touching(made)))


def report(output: Path, arms: Mapping[Unit, Mapping[str, Round]], loop_arm: str) -> None:
    """Draw up the units whose arms are all judged; name the others."""
    see = BackgroundJudge()
    rows: list[dict[str, Any]] = []
    picks, hours = [], 0.0
    for unit, own in arms.items():
        lacking = [arm for arm, made in own.items() if not is_judged(made)]
        if lacking:
            print(f"{unit.pair}, training {unit.training}: left out, no {', '.join(lacking)} yet")
            continue
        for arm, made in own.items():
            rows += rows_of(unit, arm, made, see)
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
    write_table(output / "results.csv", rows)
    summary = summarise(rows, loop_arm)
    write_table(output / "summary.csv", summary)
    write_text(output / "hours.json", json.dumps({"hours of one process": round(hours, 2)}) + "\n")
    write_text(output / "tables.md", markdown(summary, picks, hours))
    print((output / "tables.md").read_text(encoding="utf-8"))


Rows = Sequence[Mapping[str, Any]]


def summarise(rows: Rows, loop_arm: str) -> list[dict[str, Any]]:
    """Return each arm's measures with intervals, and the loop's paired gain over it."""
    summary = []
    arms = dict.fromkeys(row["arm"] for row in rows)
    for kind in (TOGETHER, TOUCHING, ALONE):
        for measure in MEASURES:
            chosen = [row for row in rows if row["kind"] == kind and row[measure] != ""]
            for arm in arms if chosen else ():
                own = {_key(row): float(row[measure]) for row in chosen if row["arm"] == arm}
                loops = {_key(row): float(row[measure]) for row in chosen if row["arm"] == loop_arm}
                gains = {key: loops[key] - own[key] for key in own.keys() & loops.keys()}
                summary.append(
                    {"kind": kind, "measure": measure, "arm": arm, "pictures": len(own)}
                    | _columns("", own)
                    | _columns("loop_gain", {} if arm in (loop_arm, COMPOSED) else gains)
                )
    return summary


def _key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["pair"], row["training"], f"{row['prompt']} {row['image']}"


def _columns(name: str, values: Mapping[tuple[str, int, str], float]) -> dict[str, Any]:
    """Return the mean of values by pair, training and picture, with the interval's ends."""
    groups: dict[str, dict[int, list[float]]] = {}
    for (pair, training, _), value in sorted(values.items()):
        groups.setdefault(pair, {}).setdefault(training, []).append(value)
    ends: Sequence[float | str] = ("", "", "")
    if groups:
        found = nested_bootstrap([list(trainings.values()) for trainings in groups.values()])
        ends = [round(end, 4) for end in found]
    titles = (name or "mean", f"{name}_low".strip("_"), f"{name}_high".strip("_"))
    return dict(zip(titles, ends, strict=True))


def markdown(summary: Rows, picks: Sequence[str], hours: float) -> str:
    """Return tables to read, one a kind of picture and measure."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary:
        groups.setdefault(f"{row['kind']}: {row['measure'].replace('_', ' ')}", []).append(row)
    tables = []
    for title, rows in groups.items():
        lines = [f"## {title}", "", "| | pictures | share | the loop's gain over it, paired |"]
        lines.append("|---" * 4 + "|")
        for row in rows:
            own = told(Interval(row["mean"], row["low"], row["high"]), ".0%")
            ends = (row["loop_gain"], row["loop_gain_low"], row["loop_gain_high"])
            gain = "" if ends[0] == "" else told(Interval(*ends), "+.0%")
            lines.append(f"| {row['arm']} | {row['pictures']} | {own} | {gain} |")
        tables.append("\n".join(lines))
    spent = f"{hours:.1f} hours of one process, stopped stages not counted."
    listed = "\n".join(f"- {line}" for line in picks)
    return "\n\n".join([*tables, spent, listed]) + "\n"
