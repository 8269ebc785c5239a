"""What is wrong with a loop, found before its first hour: flags, prompts, photos, checkpoints."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from detect_and_compare.judge import checkpoint_complaints, read_basis
from mudi.backbones.table import BACKBONES
from mudi.best_of.args import BestArgs
from mudi.best_of.asked import complaints_of, read_asked
from mudi.ground.errors import RefusedError
from mudi.ground.files import unwritable
from mudi.ground.flags import parse, range_complaints
from mudi.loop.cut import CutArgs
from mudi.loop.judge import LoopJudgeArgs
from mudi.loop.settings import ROOT, Settings
from mudi.loop.stages import cut_words, flag_words, judge_words, picture_flags, round_of
from mudi.masks.folder import masking_complaints
from mudi.metadata import MetadataError, Subjects, load_subjects
from mudi.pictures.args import PictureArgs
from mudi.pictures.shot_args import named_subjects, number_complaints, read_prompts
from mudi.training import checks as training
from mudi.training.args import TrainingArgs

Record = TypeVar("Record")

OWN = {  # flags that the loop gives itself
    "train": "pretrained_model_name_or_path instance_data_dir output_dir seed resume_lora "
    "resume_from_checkpoint overwrite_output_dir dry_run",
    "pictures": "lora lora_scale instance_data_dir prompt prompt_file seed output_dir overwrite "
    "export_noise",
    "judge": "images instance_data_dir output",
}
OWN["again"] = OWN["train"]
TO_COME = "loop/lora"  # in the place of LoRAs that are not trained yet; as a hub's, not looked for


def check(settings: Settings) -> None:
    """Raise what is wrong, all of it.

    Raises:
        RefusedError: lists it.
    """
    problems: list[str] = []
    subjects = _read_photos(settings, problems)
    prompts = _read_prompts(settings, subjects, problems)
    scripts = {"train": settings.training_script, "pictures": ROOT / "inference.py"}
    known = {table: known_flags(script) for table, script in scripts.items()}
    known["again"] = known["train"]
    known["judge"] = {declared.name for declared in fields(LoopJudgeArgs)}
    for table, flags in known.items():
        problems += _flag_problems(table, getattr(settings, table), flags)
    problems += _training_problems(settings)
    problems += _picture_problems(settings, subjects, prompts)
    problems += _judge_problems(settings)
    if why := unwritable(settings.output_dir):
        problems.append(f"output_dir {settings.output_dir}: {why}")
    if problems:
        listed = "\n".join(dict.fromkeys(problems))
        raise RefusedError(f"The loop can't begin:\n{listed}")


def known_flags(script: Path) -> set[str]:
    """Return the flags that a script's --help lists."""
    told = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=False
    )
    return set(re.findall(r"--([a-z]\w*)", told.stdout))


def _flag_problems(table: str, flags: Mapping[str, Any], known: set[str]) -> list[str]:
    own = OWN[table].split()
    problems = [f"{table}.{key}: the loop sets it; leave it out" for key in flags if key in own]
    return problems + [
        f"{table}.{key}: no such flag" for key in flags if key not in known and key not in own
    ]


def _read_photos(settings: Settings, problems: list[str]) -> Subjects | None:
    try:
        subjects = load_subjects(settings.instance_data_dir, caption_key=settings.caption_column)
    except MetadataError as error:
        problems += error.problems
        return None
    if subjects.shares:
        problems.append(
            f"{settings.instance_data_dir}: its first line has shares; the loop gives its own"
        )
    return subjects


def _read_prompts(settings: Settings, subjects: Subjects | None, problems: list[str]) -> list[str]:
    """Return the prompts of both files that name a subject."""
    found: list[str] = []
    seen: dict[str, Path] = {}
    for path in (settings.prompts, settings.held_out):
        for prompt in read_prompts(PictureArgs(prompt_file=path), found):
            if prompt in seen:
                again = "stands twice" if seen[prompt] == path else f"stands in {seen[prompt]} too"
                found.append(f'{path}: "{prompt}" {again}; keep one')
            seen[prompt] = path
            if subjects and not named_subjects(prompt, subjects.names):
                names = ", ".join(f'"{name}"' for name in subjects.names.values())
                found.append(f'{path}: "{prompt}" names no subject; there are {names}')
    problems += [problem.removeprefix("--prompt_file ") for problem in found]
    return [prompt for prompt in seen if subjects and named_subjects(prompt, subjects.names)]


def _training_problems(settings: Settings) -> list[str]:
    backbone = BACKBONES[settings.backbone]
    problems: list[str] = []
    for table, number in (("train", 0), ("again", 1)):
        flags = settings.flags_of(number) | {
            "pretrained_model_name_or_path": settings.pretrained_model_name_or_path,
            "instance_data_dir": settings.instance_data_dir,
            "output_dir": round_of(settings, number).lora,
            "resume_from_checkpoint": "latest",
        }
        args = _parsed(TrainingArgs, flags, table, problems)
        if args is not None:
            problems += [f"{table}: {text}" for text in training.check_args(args, backbone)]
            if number and args.segmix_pool:
                problems.append(f"{table}.segmix_pool: does not go with shares of photos")
    return problems


def _picture_problems(
    settings: Settings, subjects: Subjects | None, prompts: list[str]
) -> list[str]:
    """Return what `inference.py` would refuse once there is a LoRA.

    Args:
        prompts: that name a subject; what is wrong with others is told by `_read_prompts`.
    """
    problems: list[str] = []
    flags = picture_flags(settings, round_of(settings, 0), held_out=False) | {"lora": TO_COME}
    del flags["prompt_file"]
    if prompts:
        flags["prompt"] = prompts[0]
    args = _parsed(BestArgs, flags, "pictures", problems)
    if args is None:
        return problems
    found: list[str] = []
    if subjects is None or not prompts:
        found += number_complaints(args)
    else:
        asked = replace(read_asked(args, found), prompts=prompts)
        found += complaints_of(args, asked, BACKBONES[settings.backbone])
    return [f"pictures: {text}" for text in found]


def _judge_problems(settings: Settings) -> list[str]:
    problems: list[str] = []
    made = round_of(settings, 0)
    words = judge_words(settings, made, held_out=False)[2:]
    args = _parsed(LoopJudgeArgs, words, "judge", problems)
    if args is not None:
        found = range_complaints(args) + checkpoint_complaints(args.detector, args.embedder)
        if (settings.instance_data_dir / "metadata.jsonl").is_file():
            try:
                read_basis(args, settings.instance_data_dir, "instance_data_dir", found)
            except MetadataError:
                pass
        problems += [f"judge: {text}" for text in found]
    cut = _parsed(CutArgs, cut_words(settings, made)[2:], "cut", problems)
    return problems + ([] if cut is None else [f"cut: {text}" for text in masking_complaints(cut)])


def _parsed(
    record: type[Record],
    flags: Mapping[str, Any] | Sequence[str],
    table: str,
    problems: list[str],
) -> Record | None:
    """Read flags as their script will, those that it shares with others; add what is wrong."""
    if isinstance(flags, Mapping):
        known = {declared.name for declared in fields(record)}  # type: ignore[arg-type]
        flags = flag_words({key: value for key, value in flags.items() if key in known})
    told = StringIO()
    try:
        with redirect_stderr(told):
            return parse(record, None, list(flags), table)
    except SystemExit:
        problems.append(told.getvalue().strip().splitlines()[-1].replace(": error:", ":"))
        return None
