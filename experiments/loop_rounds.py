"""Does the loop pay? Rounds of it beside best-of-8 alone and beside as many more steps.

    python -m experiments.loop_rounds --output output/loop_rounds

For each pair of subjects and each training: the method's LoRA (round 0), --rounds of the loop from
it, the same number of steps from it without the loop (more 1, more 2, ...), and the best of
--best_of pictures of round 0, chosen by the first embedder. All are judged by the last on the same
prompts and seeds: the two together, in contact (a layout whose boxes overlap, counted apart), and
each alone; the loop learns from pictures of other seeds. Right pictures that are composed of photos
say how much of the truth the metric sees. A loop that ends early goes on counting with its last
LoRA; the list of picks tells. Units that are not finished are left out and named.

Writes results.csv (a row a picture), summary.csv, tables.md and hours.json. A stopped run goes on
with the same command; several may share the work by --pairs or --trainings into one --output, and
a last one without these draws up all.
"""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.composed import write_composed
from experiments.loop_report import COMPOSED, JUDGED, Unit, report, touching
from experiments.scoring import DETECTOR, EMBEDDERS
from experiments.training import run_stage, training_process
from mini import recipe
from mini.subjects import SETS, subjects_of, write_pair
from mudi.ground.devices import accelerate_device
from mudi.ground.errors import SetupError, program
from mudi.ground.files import write_text
from mudi.ground.flags import flag, parse
from mudi.ground.locks import InUseError, locked
from mudi.init_noise import load_layout
from mudi.loop import __main__ as loop
from mudi.loop.settings import Cut, Pick, Settings, Stop
from mudi.loop.stages import (
    Launch,
    Round,
    judge_words,
    picture_words,
    round_of,
    stage,
    train_words,
)
from mudi.masks.folder import METADATA
from mudi.metadata import load_subjects
from mudi.segmix import listed

BASE = "mini/weights/sdxl"
PAIRS = [
    "fox_and_car",
    "robot_and_teddy_bear",
    "two_robots",
]  # the evaluated pairs that succeed most
LEARNED = ("white", "grey", "blue", "yellow")  # of the loop's own pictures: cut out without weights
HELD_OUT = ("orange", "green striped", "pink")  # of the judged ones
CONTACT = ("purple", "turquoise")
# Boxes that overlap in a sixth of each, and less than the detector takes for one thing twice
LAYOUT = ((0.08, 0.20, 0.56, 0.95), (0.48, 0.15, 0.96, 0.95))
# As the miniature's, but for boxes that overlap: of pilots' composed contact scenes 75 to 92 % are
# right to the metric with an nms of 0.1, 83 to 100 with 0.2, 75 to 100 with 0.3
METRIC = "--threshold 0.2 --nms 0.2"


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
    metric_flags: str = flag(METRIC, "more flags of the metric")


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
    found = sorted(args.output.glob("*/training_*"))
    all_units = [Unit(f.parent.name, int(f.name.split("_")[1]), f) for f in found]
    arms = {unit: arms_of(unit, args) for unit in all_units}
    report(args.output, arms, f"round {args.rounds}")


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


def _table(words: str) -> dict[str, Any]:
    """Read "--key value --key=value --key" into a table of flags; several values become a list."""
    table: dict[str, Any] = {}
    key = ""
    for part in shlex.split(words):
        if part.startswith("--"):
            key, equals, value = part.removeprefix("--").partition("=")
            table[key] = [value] if equals else []
        elif key:
            table[key].append(part)
        else:
            raise SetupError(f"{words}: {part} is no flag")
    return {k: v[0] if len(v) == 1 else v or True for k, v in table.items()}


def arms_of(unit: Unit, args: RoundsArgs) -> dict[str, Round]:
    """Return what is compared, by name: where each one's LoRA and pictures are.

    A round that never came, as the loop ended before, counts as the one before.
    """
    arms: dict[str, Round] = {}
    ended = (unit.loop / loop.OUTCOME).is_file()
    for number in range(args.rounds + 1):
        made = Round(number, unit.loop / f"round_{number}")
        if number and ended and not made.seconds():
            made = arms[f"round {number - 1}"]
        arms[f"round {number}"] = made
    best = f"best of {args.best_of}"
    arms[best] = Round(0, unit.folder / best.replace(" ", "_"), arms["round 0"].lora)
    for number in range(1, args.rounds + 1):
        arms[f"more {number}"] = Round(0, unit.folder / f"more_{number}")
    return arms | {COMPOSED: Round(0, unit.folder / "composed")}


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
        if name == COMPOSED:
            compose(asked, where)
        else:
            loop.do(where, "held out", picture_words(asked, where, held_out=True), launch)
        loop.do(where, JUDGED, judge_words(asked, where, held_out=True), launch)


def compose(asked: Settings, where: Round) -> None:
    """Write right pictures of the prompts and seeds that the arms' pictures have."""
    subjects = load_subjects(asked.instance_data_dir)
    prompts = asked.held_out.read_text(encoding="utf-8").splitlines()
    seeds = range(asked.seed, asked.seed + asked.pictures["num_images"])
    path = asked.pictures.get("layout")
    layout = load_layout(path, list(subjects.names.values())) if path else None
    with stage(where, "held out") as todo:
        if todo:
            write_composed(where.held_out, prompts, seeds, subjects, layout)


if __name__ == "__main__":
    main(parse_args())
