"""Train in rounds on the photos and on the model's own unmixed pictures, as loop.toml says.

    python -m mudi.loop loop.toml

Stopped at any moment, it goes on with the same command: what is done is not done again. index.html
in output_dir shows the rounds side by side, and which round's LoRA to take. The loop ends after
`rounds`, where the held-out measure falls or stays, where no picture can be picked, and, with
pick.by_hand, to wait for kept.jsonl, which the studio's page writes beside the pictures.
"""

import argparse
from pathlib import Path

from mudi.loop import settings as toml
from mudi.loop.settings import Settings, read_settings


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m mudi.loop",
        description=__doc__,
        epilog=f"{toml.__doc__}\nAll keys:\n{toml.describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", type=Path, metavar="loop.toml")
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from typing import Any

from mudi.ground.errors import SetupError, program
from mudi.ground.files import write_records, write_text
from mudi.ground.flags import differences
from mudi.ground.locks import hold
from mudi.images import ImageError, load_rgb
from mudi.loop.checks import check
from mudi.loop.page import PAGE, Shown, write_page
from mudi.loop.picking import (
    PICKED,
    Candidate,
    boxes_of,
    choose,
    how_many,
    only_subject,
    score_of,
    thumbnail,
    why_none,
)
from mudi.loop.rounds import best_round, ended, figures_of
from mudi.loop.stages import (
    Launch,
    Round,
    cut_words,
    forget,
    judge_words,
    launcher,
    picture_words,
    round_of,
    stage,
    train_words,
)
from mudi.metadata import load_subjects, read_records
from mudi.texts import printable

KEPT = "kept.jsonl"  # of the studio's page, in the pictures' folder
# What may change as long as nothing was learned from a round's pictures
FREE = ("prompts", "prompts_text", "pick", "cut", "real_share")
SETTINGS, FIGURES, OUTCOME = "loop.json", "figures.json", "outcome.json"

logger = logging.getLogger("mudi")


@program
def main(args: argparse.Namespace, launch: Launch | None = None) -> None:
    """Check and run the loop.

    Args:
        launch: runs a stage; None: `accelerate launch`.
    """
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    settings = read_settings(args.settings)
    check(settings)
    hold(settings.output_dir)
    begin(settings)
    run(settings, launch or launcher(settings.launch))


def begin(settings: Settings) -> None:
    """Note what the loop's results follow from; refuse to mix them with another loop's.

    What says which pictures the next round learns from (FREE) may change: it holds from the first
    round on whose pictures nothing was learned from.

    Raises:
        SetupError: the folder holds a loop of other settings.
    """
    path = settings.output_dir / SETTINGS
    now = json.loads(json.dumps(settings.origin, default=str))
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    bound = {key: value for key, value in now.items() if key not in FREE}
    if told := differences(earlier, bound):
        raise SetupError(f"{path}: begun otherwise ({'; '.join(told)}); take another output_dir")
    if told := differences(earlier, now):
        made = open_round(settings)
        logger.info("from round %d's pictures on, %s", made.number, "; ".join(told))
        if earlier["prompts_text"] != now["prompts_text"]:
            put_aside(made)
    write_text(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")


def open_round(settings: Settings) -> Round:
    """Return the first round whose pictures nothing was learned from."""
    rounds = (round_of(settings, number) for number in count())
    return next(made for made in rounds if "cut" not in made.seconds())


def put_aside(made: Round) -> None:
    """Move a round's pictures to a folder of their own, out of the way of other prompts' ones."""
    there = [path for path in (made.pictures, made.scores, made.picks) if path.exists()]
    if not there:
        return
    forget(made, "pictures", "judge pictures")
    folders = (made.folder / f"other_prompts_{number}" for number in count())
    aside = next(folder for folder in folders if not folder.exists())
    aside.mkdir()
    for path in there:
        path.rename(aside / path.name)
    logger.info("its pictures of the earlier prompts are in %s", aside)


def run(settings: Settings, launch: Launch) -> None:
    """Do what is not done yet of all rounds; tell how it ended."""
    (settings.output_dir / OUTCOME).unlink(missing_ok=True)  # of an earlier, shorter run
    for number in range(settings.rounds + 1):
        made = round_of(settings, number)
        made.folder.mkdir(exist_ok=True)
        logger.info("round %d: train", number)
        do(made, "train", train_words(settings, made), launch)
        for name, words in (("held out", picture_words), ("judge held out", judge_words)):
            logger.info("round %d: %s", number, name)
            do(made, name, words(settings, made, held_out=True), launch)
        tell(settings, f"round {number} is trained and judged")
        why = ended(measures(settings, number), settings.stop)
        if why is None and number == settings.rounds:
            why = f"all {settings.rounds} rounds are done"
        why = why or next_data(settings, made, launch)
        if why is not None:
            return finish(settings, why)


def next_data(settings: Settings, made: Round, launch: Launch) -> str | None:
    """Make, judge, pick and cut the pictures that the next round learns from.

    Returns why the loop ends here, or None.
    """
    for name, words in (("pictures", picture_words), ("judge pictures", judge_words)):
        logger.info("round %d: %s", made.number, name)
        do(made, name, words(settings, made, held_out=False), launch)
    if settings.pick.by_hand and not (made.pictures / KEPT).is_file():
        return (
            f"it waits for you: say on the studio's page, or in {made.pictures / KEPT}, which "
            "pictures to keep, then give the same command again"
        )
    if "cut" not in made.seconds():
        write_records(made.picks, pick(settings, made))
    picks = read_records(made.picks)
    if all(record["fate"] != PICKED for record in picks):
        return (
            f"round {made.number}: {why_none(picks)}. Better or more prompts or a lower "
            "pick.min_score may help: change them and give the same command again"
        )
    subjects = load_subjects(settings.instance_data_dir, caption_key=None)
    if (subject := only_subject(picks)) is not None:
        return (
            f"round {made.number}: all picks show {subjects.names[subject]} alone, which teaches "
            "nothing of keeping subjects apart; let more prompts name several and give the same "
            "command again"
        )
    told = how_many(picks, len(subjects.photos) + len(subjects.scenes), settings.shares)
    logger.info("round %d: cut; %s", made.number, told)
    do(made, "cut", cut_words(settings, made), launch)
    tell(settings, f"round {made.number} is done: {told}")
    return None


def do(made: Round, name: str, words: Sequence[str], launch: Launch) -> None:
    """Run a stage's program, unless that is done."""
    with stage(made, name) as todo:
        if todo:
            launch(words)


def pick(settings: Settings, made: Round) -> list[dict[str, Any]]:
    """Return a line for each of a round's pictures: what becomes of it, and its boxes."""
    lines = read_records(made.scores)
    kept = {record["image"]: record.get("keep") for record in read_records(made.pictures / KEPT)}
    candidates = []
    for line in lines:
        try:
            seen = thumbnail(load_rgb(made.pictures / line["image"]))
        except ImageError as error:
            raise SetupError(f"{made.pictures / line['image']}: {error}") from error
        candidates.append(Candidate(line, seen, kept.get(line["image"])))
    told = []
    for candidate, fate in zip(candidates, choose(candidates, settings.pick), strict=True):
        line = candidate.line
        record = {key: line[key] for key in ("image", "prompt", "seed", "named")}
        score = score_of(line) if "scores" in line else None
        told.append({**record, "fate": fate, "score": score, "boxes": boxes_of(line)})
    return told


def measures(settings: Settings, last: int) -> list[float]:
    """Return the held-out measure of each round up to the last."""
    rounds = [round_of(settings, number) for number in range(last + 1)]
    found = [figures_of(read_records(made.held_out_scores)) for made in rounds]
    return [figures.measure(settings.stop.measure) for figures in found]


def finish(settings: Settings, why: str) -> None:
    """Tell how the loop ended and which LoRA to take; on the page and in outcome.json too."""
    done = finished_rounds(settings)
    best = best_round(measures(settings, len(done) - 1), settings.stop.min_gain)
    outcome = {"ended": why, "best_round": best, "lora": str(done[best].lora)}
    write_text(settings.output_dir / OUTCOME, json.dumps(outcome, ensure_ascii=False) + "\n")
    told = f"The loop ended: {why}. Take the LoRA of round {best}: {done[best].lora}"
    tell(settings, told, best)
    print(printable(told))
    print(f"look at {settings.output_dir / PAGE}")


def finished_rounds(settings: Settings) -> list[Round]:
    """Return the rounds whose held-out pictures are judged."""
    rounds = [round_of(settings, number) for number in range(settings.rounds + 1)]
    return [made for made in rounds if "judge held out" in made.seconds()]


def tell(settings: Settings, told: str, best: int | None = None) -> None:
    """Bring the page up to date."""
    shown = []
    for made in finished_rounds(settings):
        lines = read_records(made.held_out_scores)
        figures = figures_of(lines)
        write_text(made.folder / FIGURES, json.dumps(asdict(figures), indent=2) + "\n")
        shown.append(Shown(made, figures, lines, read_records(made.picks), made.seconds()))
    write_page(settings.output_dir, shown, told, best)


if __name__ == "__main__":
    main(ARGS)
