"""A loop's stages: their folders, their command lines, whether they are done."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import killpg
from pathlib import Path
from typing import Any

from mudi.ground.errors import SetupError
from mudi.ground.files import write_text
from mudi.loop.settings import ROOT, Settings

Launch = Callable[[Sequence[str]], None]  # runs a script's path, or -m and a module, with its flags
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
GRACE = 30  # seconds that a stage has to end, when the loop is told to


@dataclass(frozen=True)
class Round:
    """Where a round's things are; round 0 is the training on photos alone.

    Attributes:
        trained: where its LoRA is, if not in the folder.
    """

    number: int
    folder: Path
    trained: Path | None = None

    lora = property(lambda self: self.trained or self.folder / "lora")
    held_out = property(lambda self: self.folder / "held_out")
    held_out_scores = property(lambda self: self.folder / "held_out.jsonl")
    pictures = property(lambda self: self.folder / "pictures")
    scores = property(lambda self: self.folder / "pictures.jsonl")
    picks = property(lambda self: self.folder / "picks.jsonl")
    data = property(lambda self: self.folder / "data")
    sheet = property(lambda self: self.folder / "data.png")
    times = property(lambda self: self.folder / "seconds.json")

    def seconds(self) -> dict[str, float]:
        """Return how long each finished stage took in the run that finished it."""
        if not self.times.is_file():
            return {}
        return json.loads(self.times.read_text(encoding="utf-8"))


def round_of(settings: Settings, number: int) -> Round:
    return Round(number, settings.output_dir / f"round_{number}")


@contextmanager
def stage(made: Round, name: str) -> Iterator[bool]:
    """Say whether a stage is still to be done; note it as done at the end of the block."""
    done = made.seconds()
    start = time.monotonic()
    yield name not in done
    if name not in done:
        spent = round(time.monotonic() - start, 1)
        write_text(made.times, json.dumps({**done, name: spent}, indent=2) + "\n")


def forget(made: Round, *names: str) -> None:
    """Let stages count as not done."""
    kept = {name: spent for name, spent in made.seconds().items() if name not in names}
    write_text(made.times, json.dumps(kept, indent=2) + "\n")


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Write a table of flags as a command line: a list's values side by side, {a = 1} as a=1."""
    words = []
    for key, value in flags.items():
        if value is True:
            words.append(f"--{key}")
        elif value is False:
            words.append(f"--no-{key}")
        elif isinstance(value, Mapping):
            words += [f"--{key}", *(f"{k}={v}" for k, v in value.items())]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [f"--{key}", *map(str, value)]
        else:
            words.append(f"--{key}={value}")
    return words


def train_words(settings: Settings, made: Round) -> list[str]:
    """Return the training of a round: on the photos, or from the last LoRA on its picks."""
    flags: dict[str, Any] = {
        "pretrained_model_name_or_path": settings.pretrained_model_name_or_path,
        "instance_data_dir": settings.instance_data_dir,
        "output_dir": made.lora,
        "seed": settings.seed + made.number,
        "resume_from_checkpoint": "latest",
    }
    if made.number:
        last = round_of(settings, made.number - 1)
        flags |= {"instance_data_dir": last.data, "resume_lora": last.lora}
    words = flag_words({"report_to": "none", **settings.flags_of(made.number), **flags})
    return [str(settings.training_script), *words]


def picture_flags(settings: Settings, made: Round, held_out: bool) -> dict[str, Any]:
    """Return what a round's pictures are made by.

    Held-out ones have the same seeds in each round; those to learn from have new ones in each,
    which no held-out picture or candidate has: an equal seed is equal noise, layout and collage.
    """
    usual: dict[str, Any] = {
        "pretrained_model_name_or_path": settings.pretrained_model_name_or_path,
        "num_images": 4,
    }
    asked = usual | settings.pictures
    used = int(asked["num_images"]) * int(asked.get("best_of", 1))
    new = 0 if held_out else (made.number + 1) * used
    return asked | {
        "lora": made.lora,
        "instance_data_dir": settings.instance_data_dir,
        "prompt_file": settings.held_out if held_out else settings.prompts,
        "seed": settings.seed + new,
        "output_dir": made.held_out if held_out else made.pictures,
    }


def picture_words(settings: Settings, made: Round, held_out: bool) -> list[str]:
    return [str(ROOT / "inference.py"), *flag_words(picture_flags(settings, made, held_out))]


def judge_words(settings: Settings, made: Round, held_out: bool) -> list[str]:
    flags = settings.judge | {
        "images": made.held_out if held_out else made.pictures,
        "instance_data_dir": settings.instance_data_dir,
        "output": made.held_out_scores if held_out else made.scores,
    }
    return ["-m", "mudi.loop.judge", *flag_words(flags)]


def cut_words(settings: Settings, made: Round) -> list[str]:
    photos, pictures = settings.shares
    flags = {
        **vars(settings.cut),
        "picks": made.picks,
        "images": made.pictures,
        "instance_data_dir": settings.instance_data_dir,
        "caption_column": settings.caption_column,
        "shares": [photos, pictures],
        "output_dir": made.data,
    }
    return ["-m", "mudi.loop.cut", *flag_words(flags)]


def launcher(flags: str) -> Launch:
    """Return what starts a stage by `accelerate launch` with these flags, and waits for it.

    Ctrl-C or a SIGTERM to the loop ends the stage as well.
    """

    def launch(words: Sequence[str]) -> None:
        command = [*LAUNCHER, *shlex.split(flags), *words]
        process = subprocess.Popen(command, start_new_session=True)
        earlier = signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, earlier)
            if process.poll() is None:
                _end(process)
        if code:
            told = shlex.join(["accelerate", "launch", *shlex.split(flags), *words])
            raise SetupError(
                f"the stage ended with code {code}, see above; mend what it says and give the same "
                f"command again. It was: {told}"
            )

    return launch


def _interrupt(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def _end(process: subprocess.Popen) -> None:
    """End a stage with all its processes."""
    killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        killpg(process.pid, signal.SIGKILL)
        process.wait()
