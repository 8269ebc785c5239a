"""What a run writes: resumable states, LoRA files, its arguments; complete or not at all."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from mudi import lora
from mudi.ground.errors import SetupError
from mudi.ground.files import TEMPORARY, finish_folder, remove_folder, temporary_folder, write_text
from mudi.ground.flags import differences
from mudi.training.checkpoints import STATE_NAME, checkpoints, read_state, step_of

ARGUMENTS_NAME = "run_arguments.json"
SECRETS = ("hub_token",)  # arguments that are never written or logged

logger = get_logger("mudi")


def restore(accelerator: Accelerator, checkpoint: Path, settings: dict[str, Any]) -> int:
    """Load a checkpoint into everything prepared; return the number of steps it had done.

    Raises:
        SetupError: its weights do not fit the models.
    """
    for change in differences(read_state(checkpoint)["settings"], settings):
        logger.warning(f"{checkpoint.name}: {change}; the run does not continue exactly")
    try:
        accelerator.load_state(str(checkpoint))
    except ValueError as error:  # of another base model, say
        raise SetupError(f"{checkpoint} cannot be continued: {error}") from error
    step = step_of(checkpoint)
    logger.info(f"continuing from {checkpoint} after step {step}")
    return step


def keep_lora_in_checkpoints(
    accelerator: Accelerator, pipeline_class: Any, models: Mapping[str, Any]
) -> None:
    """Let accelerate's states hold the LoRA in place of the whole model."""

    def save(_models: list, weights: list, folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            lora.save_lora(Path(folder), pipeline_class, models)

    def load(loaded: list, folder: str) -> None:
        loaded.clear()
        lora.load_lora(Path(folder) / lora.WEIGHTS_NAME, models)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    settings: dict[str, Any],
    limit: int | None = None,
) -> None:
    """Write checkpoint-<step>, complete or not at all, then drop the oldest beyond limit."""
    folder = output_dir / f"checkpoint-{step}"
    if accelerator.is_main_process:
        temporary_folder(folder)
    accelerator.wait_for_everyone()
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = json.dumps({"step": step, "settings": settings}, indent=2)
        (temporary / STATE_NAME).write_text(state, encoding="utf-8")
        finish_folder(folder)
        for old in checkpoints(output_dir)[: -limit if limit else 0]:
            remove_folder(old)
    accelerator.wait_for_everyone()


def save_if_due(
    accelerator: Accelerator,
    args: argparse.Namespace,
    settings: dict[str, Any],
    pipeline_class: Any,
    models: Mapping[str, Any],
    step: int,
) -> None:
    """Write save-<step> and checkpoint-<step> at the steps that the flags name."""
    output_dir = Path(args.output_dir)
    if step % args.save_steps == 0 and accelerator.is_main_process:
        folder = output_dir / f"save-{step}"
        save_results(temporary_folder(folder), args, pipeline_class, models)
        finish_folder(folder)
    if step % args.checkpointing_steps == 0:
        save_checkpoint(accelerator, output_dir, step, settings, args.checkpoints_total_limit)


def save_results(
    folder: Path,
    args: argparse.Namespace,
    pipeline_class: Any,
    models: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the LoRA, its kohya twin if asked for, and the run's arguments into folder.

    Args:
        dtype: precision of the LoRA's file.
    """
    lora.save_lora(folder, pipeline_class, models, dtype)
    if args.output_kohya_format:
        lora.save_kohya(folder, models)
    arguments = json.dumps(public_arguments(args), indent=2, ensure_ascii=False)
    write_text(folder / ARGUMENTS_NAME, arguments + "\n")


def public_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the run's arguments without secrets and bookkeeping."""
    hidden = (*SECRETS, "refused")
    return {key: value for key, value in vars(args).items() if key not in hidden}
