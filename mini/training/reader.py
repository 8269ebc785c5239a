"""Train a small ResNet to read a thing off its crop: class, colour, and who it is of the cast.

    python -m mini.training.reader --output output/mini/reader --minutes 30 --cool_minutes 8

`mini.training.gates` asks it whether a base draws what a prompt says. It learns on crops that are
cut from scenes of the world as Detect-and-Compare cuts them, most of them blurred and off in colour
as generated pictures are. One linear head answers all three questions; a thing without an answer
(two colours on one body, no character) is passed over. (A vision transformer of the embedder's size
read a quarter of the classes after 36,000 crops, and an embedder tells colours, not classes.)
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessor, ResNetConfig, ResNetForImageClassification

from detect_and_compare.detect import square_crop
from mini.art import COLOURS, KINDS, Thing
from mini.backgrounds import random_name
from mini.cast import CAST, NAMES
from mini.training.checkpoint import Learner
from mini.training.embedder import jittered, new_processor
from mini.training.instances import SMALLEST_SHRINK, soften
from mini.training.state import (
    STATE_DIR,
    LearnArgs,
    Run,
    learn,
    make_accelerator,
    prepare,
    save_in_half,
)
from mini.training.stream import HELD_OUT_SEED, numbered_loader
from mini.world import OVERLAP_SHARE, SIZE, arrange, random_things
from mudi.ground.errors import program
from mudi.ground.files import finish_folder, temporary_folder, write_text
from mudi.ground.flags import parse
from mudi.images import tight_box

QUESTIONS = {"class": tuple(KINDS), "colour": tuple(COLOURS), "name": tuple(CAST)}
NO_ANSWER = -100  # cross_entropy passes over it
WIDTHS = (64, 128, 256)  # of the stages, at a quarter, an eighth, a sixteenth of the picture
SOFT_SHARE = 0.7  # of the scenes, which look generated
NUM_CHECKED = 400  # held-out scenes, for the report

Answers = dict[str, int]  # question -> index of the answer, or NO_ANSWER


@dataclass(frozen=True)
class Crops:
    """pixels (B, 3, S, S) uint8, and for each question the answers (B,) int64."""

    pixels: Tensor
    answers: dict[str, Tensor]


def answers_of(thing: Thing) -> Answers:
    """Return what a thing is; a body of two colours, or of any colour, has no colour's name."""
    one_colour = thing.bands == 1 and thing.paint.name
    character = NAMES.get(thing)
    return {
        "class": QUESTIONS["class"].index(thing.noun),
        "colour": QUESTIONS["colour"].index(thing.paint.name) if one_colour else NO_ANSWER,
        "name": QUESTIONS["name"].index(character) if character else NO_ANSWER,
    }


def draw_crops(rng: np.random.Generator) -> tuple[np.ndarray, list[Answers]]:
    """Draw a scene; cut its things out: (n, S, S, 3) uint8, and their answers."""
    things, overlap = random_things(rng), bool(rng.random() < OVERLAP_SHARE)
    shrink = rng.uniform(SMALLEST_SHRINK, 1)
    pixels, masks = arrange(things, random_name(rng), rng, SIZE, overlap, shrink)
    scene = Image.fromarray(soften(pixels, rng, SOFT_SHARE))
    crops = [as_crop(square_crop(scene, jittered(tight_box(mask), rng))) for mask in masks]
    return np.stack(crops), [answers_of(thing) for thing in things]


def as_crop(image: Image.Image) -> np.ndarray:
    """Return (S, S, 3) uint8."""
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def collate(scenes: list[tuple[np.ndarray, list[Answers]]]) -> Crops:
    pixels = torch.from_numpy(np.concatenate([crops for crops, _ in scenes])).permute(0, 3, 1, 2)
    rows = [answers for _, all_of_scene in scenes for answers in all_of_scene]
    return Crops(pixels, {key: torch.tensor([row[key] for row in rows]) for key in QUESTIONS})


def new_reader() -> ResNetForImageClassification:
    """Build an untrained reader for SIZE-pixel crops; its labels are all answers, in order."""
    words = [f"{question}: {word}" for question, words in QUESTIONS.items() for word in words]
    config = ResNetConfig(
        embedding_size=WIDTHS[0],
        hidden_sizes=list(WIDTHS),
        depths=[1] * len(WIDTHS),
        layer_type="basic",
        id2label=dict(enumerate(words)),
        label2id={word: i for i, word in enumerate(words)},
    )
    return ResNetForImageClassification(config)


def read(
    model: ResNetForImageClassification, processor: BitImageProcessor, pixels: Tensor
) -> dict[str, Tensor]:
    """Return each question's logits (B, answers) for crops (B, 3, S, S) uint8."""
    inputs = processor(images=pixels, return_tensors="pt")["pixel_values"].to(model.device)
    logits = model(pixel_values=inputs).logits.float()
    sizes = [len(words) for words in QUESTIONS.values()]
    return dict(zip(QUESTIONS, logits.split(sizes, dim=1), strict=True))


def reading_loss(logits: dict[str, Tensor], answers: dict[str, Tensor]) -> Tensor:
    """Return the sum over the questions of the mean cross entropy of the things with an answer."""
    total = torch.zeros(())
    for question, rows in logits.items():
        right = answers[question].to(rows.device)
        summed = F.cross_entropy(rows, right, ignore_index=NO_ANSWER, reduction="sum")
        total = total + summed / (right != NO_ANSWER).sum().clamp(min=1)
    return total


def parse_args(argv: list[str] | None = None) -> LearnArgs:
    return parse(LearnArgs, __doc__, argv, state_dir=STATE_DIR / "reader", batch_size=16)


@program
def main(args: LearnArgs) -> None:
    accelerator = make_accelerator(args)
    if args.start_from:
        kind = ResNetForImageClassification
        model = kind.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        model = new_reader()
    learner = prepare(accelerator, model.train())

    with Run(accelerator, learner, args, f"a reader of widths {model.config.hidden_sizes}") as run:
        train(accelerator, learner, run, args)

    report = save(learner.model, run, args.output)
    print(f"{args.output}: {json.dumps(report)}")


def train(accelerator: Accelerator, learner: Learner, run: Run, args: LearnArgs) -> None:
    """Take a step a batch of scenes; --batch_size counts scenes, progress crops."""
    processor = new_processor()
    first = run.progress.step * args.batch_size
    loader = numbered_loader(
        draw_crops, collate, args.seed, first, args.batch_size, args.num_workers
    )
    for crops in loader:
        if run.finished:
            break
        with accelerator.autocast():
            logits = read(learner.model, processor, crops.pixels)
        loss = reading_loss(logits, crops.answers)
        learn(loss, learner, run)
        run.count(len(crops.pixels), loss.detach())


@torch.no_grad()
def save(model: ResNetForImageClassification, run: Run, output: Path) -> dict[str, float]:
    """Write the weights and how often they are right on held-out crops.

    As they are: running means of the parameters would not go with the batch norms' statistics.
    """
    result = copy.deepcopy(model).eval()
    rngs = (np.random.default_rng([HELD_OUT_SEED, number]) for number in range(NUM_CHECKED))
    crops = collate([draw_crops(rng) for rng in rngs])
    answered = read(result, new_processor(), crops.pixels)
    report = {
        "pictures": run.progress.pictures,
        "minutes": round(run.progress.seconds / 60, 1),
        **{key: right_share(answered[key], crops.answers[key]) for key in QUESTIONS},
    }
    folder = temporary_folder(output)
    save_in_half(result, folder)
    new_processor().save_pretrained(folder)
    write_text(folder / "report.json", json.dumps(report))
    finish_folder(output)
    return report


def right_share(logits: Tensor, answers: Tensor) -> float:
    """Return the share of the things with an answer (B,) whose largest logit (B, n) is right."""
    asked = answers != NO_ANSWER
    return float((logits.argmax(1)[asked] == answers[asked]).float().mean())


if __name__ == "__main__":
    main(parse_args())
