"""What a run writes: resumable states, LoRA files, its arguments; complete or not at all."""

import json
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import load
from safetensors import SafetensorError

from mudi import lora
from mudi.ground.errors import SetupError, first_line
from mudi.ground.files import (
    TEMPORARY,
    finish_folder,
    new_folder,
    remove_folder,
    room_for,
    temporary_folder,
    write_text,
)
from mudi.ground.flags import differences
from mudi.learned_words import LearnedWords, load_words, write_results
from mudi.training.args import TrainingArgs
from mudi.training.checkpoints import (
    STATE_NAME,
    beyond_limit,
    overwritten,
    read_state,
    step_of,
    write_digests,
)
from mudi.training.results import write_loras
from mudi.words import FILE_NAME as WORDS_NAME

# Names within a checkpoint; accelerate's own three are pickles, read as numbers only
SCHEDULE_NAME = "schedule.json"
OPTIMIZER_NAME, SCALER_NAME, RANDOM_NAME = "optimizer.bin", "scaler.pt", "random_states_{}.pkl"
# What an optimizer's groups hold of the way that it has gone; all else in them are flags
PROGRESS = "d d_max d_numerator d_denom d_hat k".split()  # of prodigy
ARGUMENTS_NAME = "run_arguments.json"

logger = get_logger("mudi")


def restore(
    accelerator: Accelerator,
    checkpoint: Path,
    settings: dict[str, Any],
    models: Mapping[str, Any],
    optimizer: Any,
    lr_scheduler: Any,
    words: LearnedWords | None = None,
) -> int:
    """Load a checkpoint; return the number of steps it had done.

    What the flags say of rates, moments and decay goes before what the checkpoint says of them.

    Args:
        settings: this run's, to tell what differs from the checkpoint's.
        models: adapted models by the pipeline's part names.
        optimizer: as accelerate wrapped it.
        lr_scheduler: over that optimizer, at its first step.
        words: learned ones.

    Raises:
        SetupError: a file is missing or broken, or does not fit the models.
    """
    step = step_of(checkpoint)
    earlier = read_state(checkpoint)["settings"]
    for change in differences(earlier, settings, vars(TrainingArgs())):
        logger.warning(
            f"{checkpoint.name}: {change} from step {step + 1} on; "
            "the run does not continue exactly"
        )
    with _telling(checkpoint, lora.WEIGHTS_NAME):
        lora.load_lora(checkpoint / lora.WEIGHTS_NAME, models)
    if words is not None:
        with _telling(checkpoint, WORDS_NAME):
            _load_words(checkpoint / WORDS_NAME, words)
    with _telling(checkpoint, OPTIMIZER_NAME):
        _load_optimizer(optimizer, _read_numbers(checkpoint / OPTIMIZER_NAME))
    with _telling(checkpoint, SCHEDULE_NAME):
        path = checkpoint / SCHEDULE_NAME  # earlier versions wrote none
        done = json.loads(path.read_text(encoding="utf-8"))["steps"] if path.is_file() else step
        _forward(lr_scheduler, int(done))
    if accelerator.scaler is not None and (checkpoint / SCALER_NAME).is_file():
        with _telling(checkpoint, SCALER_NAME):
            accelerator.scaler.load_state_dict(_read_numbers(checkpoint / SCALER_NAME))
    name = RANDOM_NAME.format(accelerator.process_index)
    if (checkpoint / name).is_file():  # not where more processes go on than had begun
        with _telling(checkpoint, name):
            _load_random(_read_numbers(checkpoint / name))
    logger.info(f"continuing from {checkpoint} after step {step}")
    return step


@contextmanager
def _telling(checkpoint: Path, name: str) -> Iterator[None]:
    """Turn what a broken, foreign or malicious file raises into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:  # torch's own message advises to run the code
        raise SetupError(
            f"{checkpoint} cannot be continued: {name} is broken, or holds more than numbers"
        ) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:
        raise SetupError(
            f"{checkpoint} cannot be continued: {name}: {first_line(error)}"
        ) from error


def _load_words(file: Path, words: LearnedWords) -> None:
    found, rows = load_words(file)
    if {word.token for word in found} != {word.token for word in words.words}:
        raise ValueError(f"has the words {', '.join(word.name for word in found)}")
    words.take(found, rows)


def _read_numbers(path: Path) -> Any:
    """Read one of accelerate's pickles; code in it is not run."""
    return load(path, map_location="cpu", weights_only=True)


def _load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give the optimizer a checkpoint's moments; its settings stay those of this run's flags."""
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        kept = {key: group[key] for key in PROGRESS if key in group}
        group.update({key: value for key, value in own.items() if key != "params"} | kept)
    optimizer.load_state_dict(state)


def _forward(lr_scheduler: Any, steps: int) -> None:
    """Put a schedule, which is a function of the step, where it is after that many steps."""
    factors = [schedule(steps) for schedule in lr_scheduler.lr_lambdas]
    rates = [base * factor for base, factor in zip(lr_scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(lr_scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    lr_scheduler.last_epoch = steps
    lr_scheduler._last_lr = rates


def _load_random(states: dict[str, Any]) -> None:
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    on_gpus = states.get("torch_cuda_manual_seed", [])
    if len(on_gpus) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(on_gpus)


def keep_in_checkpoints(
    accelerator: Accelerator,
    pipeline_class: Any,
    models: Mapping[str, Any],
    lr_scheduler: Any,
    words: LearnedWords | None = None,
) -> None:
    """Let accelerate's states hold the LoRA and learned words, not whole models; and the rates."""

    def save(_models: list, weights: list, folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            lora.save_lora(Path(folder), pipeline_class, models)
            if words is not None:
                words.save(Path(folder))
            steps = json.dumps({"steps": lr_scheduler.last_epoch})
            (Path(folder) / SCHEDULE_NAME).write_text(steps, encoding="utf-8")

    accelerator.register_save_state_pre_hook(save)


def remove_overwritten(accelerator: Accelerator, output_dir: Path, resume: Path | None) -> None:
    """Delete the checkpoints and saves that --overwrite_output_dir gives up."""
    if accelerator.is_main_process:
        for folder in overwritten(output_dir, resume):
            logger.info(f"--overwrite_output_dir: removing {folder}")
            remove_folder(folder)
    accelerator.wait_for_everyone()


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    record: dict[str, Any],
    limit: int | None = None,
) -> None:
    """Write checkpoint-<step>, complete or not at all, then drop the run's oldest beyond limit.

    Args:
        record: what the checkpoint is to say of its run: its id and settings.
    """
    folder = output_dir / f"checkpoint-{step}"
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    with room_for(folder, temporary if accelerator.is_main_process else None):
        if accelerator.is_main_process:
            temporary_folder(folder)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state = json.dumps({"step": step, **record}, indent=2)
            (temporary / STATE_NAME).write_text(state, encoding="utf-8")
            write_digests(temporary)
            finish_folder(folder)
    if accelerator.is_main_process:
        for old in beyond_limit(output_dir, folder, limit):
            remove_folder(old)
    accelerator.wait_for_everyone()


def save_if_due(
    accelerator: Accelerator,
    args: TrainingArgs,
    record: dict[str, Any],
    pipeline_class: Any,
    models: Mapping[str, Any],
    step: int,
    words: LearnedWords | None = None,
) -> None:
    """Write save-<step> and checkpoint-<step> at the steps that the flags name."""
    output_dir = Path(args.output_dir)
    if step % args.save_steps == 0 and accelerator.is_main_process:
        with new_folder(output_dir / f"save-{step}") as folder:
            names = record["settings"]["names"]
            parts = (pipeline_class, models, names)
            save_results(folder, args, step, *parts, is_end=False, words=words)
    if step % args.checkpointing_steps == 0:
        save_checkpoint(accelerator, output_dir, step, record, args.checkpoints_total_limit)


def save_results(
    folder: Path,
    args: TrainingArgs,
    step: int,
    pipeline_class: Any,
    models: Mapping[str, Any],
    names: Mapping[str, str],
    is_end: bool = True,
    words: LearnedWords | None = None,
) -> None:
    """Write the LoRA's files and the run's arguments into folder; see `write_loras`.

    Args:
        step: of the run, after which this is.
        words: learned ones, which come in our container and in one file each.
    """
    write_results(folder, words)
    write_loras(folder, args, pipeline_class, models, names, is_end)
    told = {"step": step, **public_arguments(args)}
    arguments = json.dumps(told, indent=2, ensure_ascii=False)
    write_text(folder / ARGUMENTS_NAME, arguments + "\n")


def public_arguments(args: TrainingArgs) -> dict[str, Any]:
    """Return the run's arguments without bookkeeping; none of them is a secret."""
    return {key: value for key, value in vars(args).items() if key != "refused"}
