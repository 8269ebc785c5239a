"""Loops on random models: stages inside the test's process, and pictures as a trained one's."""

import importlib
import json
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers import COLOURS, DataFolder, noise
from PIL import Image
from training import reset_accelerate

from mudi.ground import files
from mudi.ground.work import Journal
from mudi.loop import __main__ as loop
from mudi.pictures.shot_args import named_subjects

NAMES = {"a": "olis square", "b": "hta square"}
COLOUR = {"a": COLOURS[0], "b": COLOURS[2]}
SIDE = 64
PROMPTS = ("a photo of a olis square and a hta square", "a hta square hugs a olis square")
HELD_OUT = ("a olis square beside a hta square", "a photo of a olis square")
TOML = """
output_dir = "out"
instance_data_dir = "data"
pretrained_model_name_or_path = "{base}"
backbone = "{backbone}"
prompts = "prompts.txt"
held_out = "held_out.txt"
rounds = {rounds}
real_share = 0.5
seed = 3
[train]
resolution = 64
max_train_steps = 4
checkpointing_steps = 2
train_batch_size = 1
rank = 2
learning_rate = 1e-3
lr_warmup_steps = 0
segmix_prob = 0.5
save_precision = "float32"
[again]
max_train_steps = 3
[pictures]
num_images = 3
steps = 1
gamma = 0
resolution = 64
[judge]
detector = "foreground"
embedder = ["colours"]
crop_references = true
[cut]
segmenter = "foreground"
[pick]
{pick}
[stop]
patience = 5
"""


def write_loop(
    folder: Path,
    base: Path,
    rounds: int = 1,
    pick: str = "min_score = 0.5",
    backbone: str = "sdxl",
) -> Path:
    """Write a loop.toml with photos of a red and a blue square, and prompts."""
    data = DataFolder(folder / "data", NAMES)
    for line in data.lines[1:]:
        photo = Image.new("RGB", (SIDE, SIDE), "white")
        mask = Image.new("L", (SIDE, SIDE))
        rng = random.Random(line["file_name"])
        left, top, side = rng.randrange(4, 20), rng.randrange(4, 20), rng.randrange(20, 36)
        where = (left, top, left + side, top + side)
        photo.paste(COLOUR[line["id"]], where)
        photo.putpixel((0, 0), (len(line["text"]), 250, 250))
        photo.save(data.path / line["file_name"], quality=95)
        mask.paste(255, where)
        mask.save(data.path / line["mask_path"])
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "held_out.txt").write_text("\n".join(HELD_OUT) + "\n")
    path = folder / "loop.toml"
    path.write_text(TOML.format(base=base, rounds=rounds, pick=pick, backbone=backbone))
    return path


def good_picture(prompt: str, seed: int) -> Image.Image:
    """What a trained model might draw: the squares that a prompt names, on white."""
    ids = named_subjects(prompt, NAMES)
    rng = random.Random(f"{prompt} {seed}")
    image = Image.new("RGB", (SIDE, SIDE), "white")
    for subject, left in zip(rng.sample(ids, len(ids)), (2, 36), strict=False):
        top, side = rng.randrange(2, 30), rng.randrange(16, 26)
        image.paste(COLOUR[subject], (left, top, left + side, top + side))
    return image


def bad_picture(prompt: str, seed: int) -> Image.Image:
    return noise(SIDE, SIDE, seed)


def stages(draw: Callable[[str, int], Image.Image] = good_picture) -> loop.Launch:
    """Return what runs stages in this process.

    A random model draws noise, in which there is nothing to pick; so once inference.py is done,
    its pictures are painted over by `draw`.
    """

    def launch(words: Sequence[str]) -> None:
        reset_accelerate()
        module, flags = Path(words[0]).stem, list(words[1:])
        if words[0] == "-m":
            module, flags = words[1], list(words[2:])
        script = importlib.import_module(module)
        script.main(script.parse_args(flags))
        if module == "inference":
            paint(script.parse_args(flags).output_dir, draw)

    return launch


def paint(folder: Path, draw: Callable[[str, int], Image.Image]) -> None:
    for text in (folder / "pictures.jsonl").read_text().splitlines():
        line = json.loads(text)
        path = folder / line["image"]
        draw(line["prompt"], line["seed"]).save(path)
        os.utime(path, (1, 1))  # so that painting it again changes nothing


def run(path: Path, launch: loop.Launch) -> None:
    loop.main(loop.parse_args([str(path)]), launch)


def run_until_killed(path: Path, after: int, made: Path) -> None:
    """Run a loop in this process, which dies by SIGKILL at the n-th write to the disk.

    Args:
        made: file that takes the name of each picture that is made, drawn or judged.
    """
    plain, budget, add = files._sync, iter(range(after)), Journal.add

    def sync(place: Path) -> None:
        plain(place)
        if next(budget, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def noting(self: Journal, record: dict) -> None:
        add(self, record)
        with made.open("a") as file:
            file.write(f"{self.path} {record['image']}\n")
        if next(budget, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    files._sync = sync
    Journal.add = noting  # type: ignore[method-assign]
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    run(path, stages())
