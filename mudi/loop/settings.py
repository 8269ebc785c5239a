"""loop.toml -> what a loop is to do; all that is wrong with it is told at once.

    output_dir = "output/loop"
    instance_data_dir = "dataset/category/robot_and_teddy"
    pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"
    backbone = "sdxl"               # or flux, klein, zimage; script = "..." for one of your own
    prompts = "prompts.txt"         # a line each; their pictures are learned from
    held_out = "held_out.txt"       # these are not, and say when to stop
    rounds = 2                      # after round 0, at most
    real_share = 0.5                # of the draws from round 1 on
    seed = 0
    launch = "--num_processes 1"    # flags of accelerate launch

    [train]                         # flags of the training script
    max_train_steps = 2010
    rank = 32
    [again]                         # those that differ from round 1 on
    max_train_steps = 500
    [pictures]                      # flags of inference.py
    num_images = 8
    [judge]                         # flags of detect_and_compare
    embedder = ["dreamsim", "dinov2"]   # all but the last pick, the last judges what is held out
    [pick]
    min_score = 0.5
    per_prompt = 2
    [cut]                           # segmenter, sam_checkpoint, sam_type of generate_masks.py
    [stop]
    measure = "score"               # or success

Paths are relative to the file's folder; those among flags, to where the command is given.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mudi.backbones.table import BACKBONES
from mudi.ground.errors import SetupError
from mudi.ground.flags import flag, range_complaints

ROOT = Path(__file__).parents[2]  # of the checkout, where the scripts lie
MAX_DENOMINATOR = 1000  # of real_share: draws in which it comes to a whole number
MEASURES = ("score", "success")


@dataclass(frozen=True)
class Pick:
    """Which pictures are learned from."""

    min_score: float = flag(0.5, "least D&C, by every embedder that picks", at_most=1)
    per_prompt: int = flag(2, "most pictures a prompt", at_least=1)
    likeness: float = flag(
        0.95, "two whose thumbnails correlate by more are one", above=0, at_most=1
    )
    by_hand: bool = flag(False, "only those kept on the studio's page (kept.jsonl)")


@dataclass(frozen=True)
class Cut:
    """How subjects are cut out of picked pictures."""

    segmenter: str = flag("sam", "sam, or foreground for plain backgrounds")
    sam_checkpoint: str = flag("sam_vit_h_4b8939.pth", ".pth file")
    sam_type: str = flag("vit_h", "SAM's size")


@dataclass(frozen=True)
class Stop:
    """When the loop ends before its last round."""

    measure: str = flag("score", "of the held-out pictures: mean score, or share of successes")
    min_gain: float = flag(0.0, "what a round must add to the best one before", at_least=0)
    patience: int = flag(1, "rounds without that gain that end it", at_least=1)


@dataclass(frozen=True)
class Settings:
    """A loop.toml; paths are absolute."""

    output_dir: Path = flag(Path(), "where everything is written")
    instance_data_dir: Path = flag(Path(), "the photos")
    pretrained_model_name_or_path: str = flag("", "folder or hub id")
    prompts: Path = flag(Path(), "text file")
    held_out: Path = flag(Path(), "text file")
    backbone: str = flag("sdxl", "of mudi.backbones.table")
    script: str = flag("", "training script of your own for that backbone; unset: ours")
    rounds: int = flag(2, "after round 0", at_least=1)
    real_share: float = flag(0.5, "of the photos in the draws", above=0, below=1)
    seed: int = flag(0, "of all", at_least=0)
    launch: str = flag("--num_processes 1", "flags of accelerate launch")
    train: dict[str, Any] = flag({}, "flags")
    again: dict[str, Any] = flag({}, "flags")
    pictures: dict[str, Any] = flag({}, "flags")
    judge: dict[str, Any] = flag({}, "flags")
    pick: Pick = Pick()
    cut: Cut = Cut()
    stop: Stop = Stop()

    @property
    def shares(self) -> tuple[int, int]:
        """Draws of photos, and of pictures made, in as few as make real_share exact."""
        share = Fraction(str(self.real_share))
        return share.numerator, share.denominator - share.numerator

    @property
    def training_script(self) -> Path:
        return Path(self.script) if self.script else ROOT / BACKBONES[self.backbone].script

    @property
    def caption_column(self) -> str:
        return self.train.get("caption_column", "text")

    def flags_of(self, number: int) -> dict[str, Any]:
        """Return the training's flags in a round."""
        return self.train | self.again if number else self.train

    @property
    def origin(self) -> dict[str, Any]:
        """All that a loop's results follow from, as JSON has it; not when and how it ends."""
        told = asdict(self)
        for free in ("output_dir", "rounds", "launch", "stop"):
            del told[free]
        told |= {key: str(value) for key, value in told.items() if isinstance(value, Path)}
        files = {"prompts": self.prompts, "held_out": self.held_out}
        return told | {f"{k}_text": path.read_text("utf-8-sig") for k, path in files.items()}


BASE = "pretrained_model_name_or_path"
NEEDED = ["output_dir", "instance_data_dir", BASE, "prompts", "held_out"]
PATHS = "output_dir instance_data_dir prompts held_out script".split()


def read_settings(path: Path) -> Settings:
    """Read a loop.toml.

    Raises:
        SetupError: lists all that is wrong with its keys and values.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path}: no TOML ({error})") from error
    problems: list[str] = []
    found = _read(Settings, table, "", path.absolute().parent, problems)
    problems += [f'no "{key}"' for key in NEEDED if key not in table]
    if not problems:
        problems = _value_problems(found)
    if problems:
        raise SetupError("\n".join(f"{path}: {problem}" for problem in problems))
    return found


def _read(
    record: Any, table: Mapping[str, Any], place: str, folder: Path, problems: list[str]
) -> Any:
    """Fill a record from a table; add what does not fit to problems."""
    kinds = get_type_hints(record)
    values = {}
    for key, value in table.items():
        kind = kinds.get(key)
        if kind is None:
            problems.append(f'"{place}{key}" is no key; there are {", ".join(kinds)}')
        elif hasattr(kind, "__dataclass_fields__"):
            if isinstance(value, dict):
                values[key] = _read(kind, value, f"{key}.", folder, problems)
            else:
                problems.append(f"{key} must be a table: [{key}]")
        elif not _fits(value, kind):
            problems.append(f"{place}{key} = {value!r}: must be a {_called(kind)}")
        elif key in PATHS or key == "sam_checkpoint":
            values[key] = kind(folder / Path(value).expanduser())
        elif key == BASE and (folder / value).is_dir():
            values[key] = str(folder / value)
        else:
            values[key] = value
    made = record(**values)
    problems += [text.replace("--", place, 1) for text in range_complaints(made)]
    return made


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    plain = get_origin(kind) or (str if kind is Path else kind)
    return type(value) is plain


def _called(kind: Any) -> str:
    names = {Path: "path", str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, "table of flags" if get_args(kind) else str(kind))


def _value_problems(found: Settings) -> list[str]:
    problems = []
    if found.backbone not in BACKBONES:
        problems.append(f"backbone {found.backbone}: there are {', '.join(BACKBONES)}")
    elif not found.training_script.is_file():
        problems.append(f"script {found.training_script}: no such file")
    if found.stop.measure not in MEASURES:
        problems.append(f"stop.measure {found.stop.measure}: {' or '.join(MEASURES)}")
    if sum(found.shares) > MAX_DENOMINATOR:
        problems.append(
            f"real_share {found.real_share}: no whole numbers of draws in {MAX_DENOMINATOR} make it"
        )
    return problems


def describe() -> str:
    """Return the keys of all tables with their meaning and default, a line each."""
    lines = []
    for title, record in (("", Settings), ("pick", Pick), ("cut", Cut), ("stop", Stop)):
        for declared in fields(record):
            if "words" in declared.metadata:
                words = declared.metadata["words"]
                told = "" if isinstance(words["default"], Path | dict) else f" ({words['default']})"
                key = f"{title}.{declared.name}" if title else declared.name
                lines.append(f"  {key:<30} {words['help']}{told}")
    return "\n".join(lines)
