"""Does the loop pay? Rounds of it beside best-of-8 alone and beside as many more steps.

    python -m experiments.loop_rounds --output output/loop_rounds

For each pair of subjects and each training: the method's LoRA (round 0), --rounds of the loop from
it, the same number of steps from it without the loop (more 1, more 2, ...), and the best of
--best_of pictures of round 0, chosen by the first embedder. All are judged by the last on the same
prompts and seeds: the two together, in contact (a layout whose boxes overlap, counted apart), and
each alone. A loop that ends early goes on counting with its last LoRA; the list of picks tells.

Writes results.csv (a row a picture), summary.csv, tables.md and hours.json. A stopped run goes on
with the same command; several may share the work by --pairs or --trainings into one --output, and
a last one without these draws up all.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.backgrounds import BackgroundJudge, asked_colour
from experiments.results import told
from experiments.scoring import DETECTOR, EMBEDDERS, MINIATURE_METRIC
from experiments.stats import Interval, nested_bootstrap
from experiments.training import run_stage, training_process
from mini import recipe
from mini.subjects import SETS, subjects_of, write_pair
from mudi.ground.devices import accelerate_device
from mudi.ground.errors import program
from mudi.ground.files import write_table, write_text
from mudi.ground.flags import flag, parse
from mudi.ground.locks import InUseError, locked
from mudi.images import load_rgb
from mudi.loop import __main__ as loop
from mudi.loop.picking import PICKED, embedders_of
from mudi.loop.rounds import bleeds, scores_of
from mudi.loop.settings import Cut, Pick, Settings, Stop
from mudi.loop.stages import Launch, Round, judge_words, picture_words, round_of, train_words
from mudi.masks.folder import METADATA
from mudi.metadata import load_subjects, read_records
from mudi.segmix import listed

BASE = "mini/weights/sdxl"
PAIRS = [
    "fox_and_car",
    "robot_and_teddy_bear",
    "two_robots",
]  # the evaluated pairs that succeed most
LEARNED = ("white", "grey", "blue gradient", "yellow")  # backgrounds of the loop's own pictures
HELD_OUT = ("orange", "green striped", "pink")  # of the judged ones
CONTACT = ("purple", "turquoise")
# Boxes that overlap in a sixth of each, and less than the detector takes for one thing twice
LAYOUT = ((0.08, 0.20, 0.56, 0.95), (0.48, 0.15, 0.96, 0.95))
TOGETHER, TOUCHING, ALONE = "together", "contact", "alone"
MEASURES = ("success", "background", "solo_success", "solo_bleed", "solo_count")


@dataclass
class RoundsArgs:
    """loop"""

    output: Path = flag(Path(), "folder for everything", required=True)
    pairs: list[str] = flag(PAIRS, "sets of mini/subjects.py", nargs="+", choices=SETS)
    trainings: list[int] = flag([0, 1, 2], "seeds of the LoRAs", nargs="+")
    rounds: int = flag(2, "of the loop, and of more steps", at_least=1)
    num_images: int = flag(8, "pictures a prompt", at_least=1)
    best_of: int = flag(8, "pictures that the verifier alone chooses from", at_least=2)
    real_share: float = flag(0.5, "of photos in the loop's draws", above=0, below=1)
    min_score: float = flag(0.3, "least D&C of a pick")
    per_prompt: int = flag(4, "picks a prompt", at_least=1)
    base: str = flag(BASE, "SDXL folder or hub id")
    train_flags: str = flag(
        recipe.training_flags(),
        "of round 0, with an equals sign",
    )
    again_flags: str = flag(
        "--max_train_steps 100 --learning_rate 1e-3", "that differ in rounds and in more steps"
    )
    picture_flags: str = flag(
        f"--steps {recipe.STEPS} --guidance_scale {recipe.GUIDANCE_SCALE:g} "
        f"--gamma {recipe.GAMMA:g} --batch_size 8",
        "of inference.py",
    )
    detector: str = flag(DETECTOR, "of the metric")
    embedder: list[str] = flag(list(EMBEDDERS), "the first picks, the last judges", nargs="+")
    metric_flags: str = flag(MINIATURE_METRIC, "more flags of the metric")


@dataclass(frozen=True)
class Unit:
    """One pair and one training of it."""

    pair: str
    training: int
    folder: Path

    @property
    def data(self) -> Path:
        return self.folder.parent / "data"


def parse_args(argv: list[str] | None = None) -> RoundsArgs:
    return parse(RoundsArgs, __doc__, argv, prog="python -m experiments.loop_rounds")


@program
def main(args: RoundsArgs) -> None:
    units = [
        Unit(pair, seed, args.output / pair / f"training_{seed}")
        for pair in args.pairs
        for seed in args.trainings
    ]
    device: torch.device = accelerate_device()
    for unit in units:
        with training_process(device, unit.folder / "stages.log") as process:
            try:
                with locked(unit.folder):
                    print(f"{unit.pair}, training {unit.training}", flush=True)
                    work(unit, args, lambda words: process.submit(run_stage, words).result())
            except InUseError as error:
                print(f"passed over: {error}")
    report(args)


def work(unit: Unit, args: RoundsArgs, launch: Launch) -> None:
    """Do what is not done yet of a unit."""
    if not (unit.data / METADATA).is_file():
        write_pair(unit.data, subjects_of(unit.pair), np.random.default_rng(0))
    settings = settings_of(unit, args)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    loop.begin(settings)
    loop.run(settings, launch)
    for name, made in arms_of(unit, args).items():
        if name.startswith("more"):
            number = int(name.split()[1])
            loop.do(made, "train", more_words(settings, unit, number), launch)
        judge_arm(settings, made, name, args, launch)


def settings_of(unit: Unit, args: RoundsArgs) -> Settings:
    """Return the unit's loop; writes its prompts."""
    names = list(load_subjects(unit.data).names.values())
    both = listed(names)
    prompts = {
        "prompts": [f"a photo of {both} on a {b} background" for b in LEARNED],
        "held_out": [f"a photo of {both} on a {b} background" for b in HELD_OUT]
        + [f"a photo of a {name} on a {b} background" for name in names for b in HELD_OUT[:2]],
        "contact": [f"a photo of {both} on a {b} background" for b in CONTACT],
    }
    for key, lines in prompts.items():
        write_text(unit.folder / f"{key}.txt", "\n".join(lines) + "\n")
    boxes = dict(zip(names, LAYOUT, strict=True))
    write_text(unit.folder / "layout.json", json.dumps({"boxes": boxes, "front_to_back": names}))
    judge = {"detector": args.detector, **_table(args.metric_flags)}
    return Settings(
        output_dir=unit.folder / "loop",
        instance_data_dir=unit.data,
        pretrained_model_name_or_path=args.base,
        prompts=unit.folder / "prompts.txt",
        held_out=unit.folder / "held_out.txt",
        rounds=args.rounds,
        real_share=args.real_share,
        seed=1000 * unit.training,
        train=_table(args.train_flags) | {"output_kohya_format": False},
        again=_table(args.again_flags),
        pictures=_table(args.picture_flags) | {"num_images": args.num_images},
        judge=judge | {"embedder": args.embedder},
        pick=Pick(min_score=args.min_score, per_prompt=args.per_prompt),
        cut=Cut(segmenter="foreground"),
        stop=Stop(patience=args.rounds + 1),
    )


def _table(words: str) -> dict[str, str]:
    """Read "--key value --key value" into a table of flags."""
    parts = shlex.split(words)
    return {k.removeprefix("--"): v for k, v in zip(parts[::2], parts[1::2], strict=True)}


def arms_of(unit: Unit, args: RoundsArgs) -> dict[str, Round]:
    """Return what is compared, by name: where each one's LoRA and pictures are."""
    settings = settings_of(unit, args)
    rounds = [round_of(settings, number) for number in range(args.rounds + 1)]
    arms = {f"round {made.number}": made for made in rounds if made.lora.is_dir()}
    arms[f"best of {args.best_of}"] = Round(0, unit.folder / "best_of", rounds[0].lora)
    for number in range(1, args.rounds + 1):
        arms[f"more {number}"] = Round(0, unit.folder / f"more_{number}")
    return arms


def more_words(settings: Settings, unit: Unit, number: int) -> list[str]:
    """Return a training of as many steps as a round of the loop, on the photos alone."""
    made = Round(0, unit.folder / f"more_{number}")
    before = round_of(settings, 0) if number == 1 else Round(0, unit.folder / f"more_{number - 1}")
    flags = settings.train | settings.again | {"resume_lora": before.lora}
    alone = replace(settings, train=flags, seed=settings.seed + number)
    return train_words(alone, made)


def judge_arm(settings: Settings, made: Round, name: str, args: RoundsArgs, launch: Launch) -> None:
    """Make and judge an arm's pictures: together and alone, then in contact."""
    if name.startswith("best"):
        choice = settings.judge | {"best_of": args.best_of, "embedder": args.embedder[:1]}
        settings = replace(settings, pictures=settings.pictures | choice)
    folder = settings.output_dir.parent
    layout = settings.pictures | {"layout": folder / "layout.json"}
    contact = replace(settings, held_out=folder / "contact.txt", pictures=layout)
    for asked, where in ((settings, made), (contact, touching(made))):
        where.folder.mkdir(parents=True, exist_ok=True)
        loop.do(where, "held out", picture_words(asked, where, held_out=True), launch)
        loop.do(where, "judge held out", judge_words(asked, where, held_out=True), launch)


def touching(made: Round) -> Round:
    """Return where an arm's pictures in contact are."""
    return Round(0, made.folder / "contact", made.lora)


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


def report(args: RoundsArgs) -> None:
    """Draw up all units that there are."""
    output = args.output
    see = BackgroundJudge()
    rows: list[dict[str, Any]] = []
    picks, hours = [], 0.0
    for folder in sorted(output.glob("*/training_*")):
        unit = Unit(folder.parent.name, int(folder.name.split("_")[1]), folder)
        arms = arms_found(folder, args)
        for arm, made in arms.items():
            rows += rows_of(unit, arm, made, see)
        for made in {made.folder: made for made in arms.values()}.values():
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
    summary = summarise(rows, f"round {args.rounds}")
    write_table(output / "summary.csv", summary)
    write_text(output / "hours.json", json.dumps({"hours of one process": round(hours, 2)}) + "\n")
    write_text(output / "tables.md", markdown(summary, picks, hours))
    print((output / "tables.md").read_text(encoding="utf-8"))


def arms_found(folder: Path, args: RoundsArgs) -> dict[str, Round]:
    """Return a unit's arms that are judged; a round that never came counts as the one before."""
    arms: dict[str, Round] = {}
    for number in range(args.rounds + 1):
        made = Round(number, folder / "loop" / f"round_{number}")
        last = arms.get(f"round {number - 1}")
        found = made if "judge held out" in touching(made).seconds() else last
        if found is not None:
            arms[f"round {number}"] = found
    others = {f"best of {args.best_of}": "best_of"}
    others |= {f"more {n}": f"more_{n}" for n in range(1, args.rounds + 1)}
    for name, place in others.items():
        made = Round(0, folder / place)
        if "judge held out" in touching(made).seconds():
            arms[name] = made
    return arms


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
                    | _columns("loop_gain", {} if arm == loop_arm else gains)
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
    ending = f"{hours:.1f} hours of one process.\n\n" + "\n".join(f"- {line}" for line in picks)
    return "\n\n".join([*tables, ending]) + "\n"


if __name__ == "__main__":
    main(parse_args())
