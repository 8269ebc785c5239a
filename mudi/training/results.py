"""The LoRA files of a run: one for diffusers, one for all other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger

from mudi import dora, lora
from mudi.backbones.table import backbone_of
from mudi.ground.lora_families import family_of
from mudi.lora_files import About, write_kohya
from mudi.training.args import SAVE_PRECISIONS, TrainingArgs

logger = get_logger("mudi")


def save_dtype(args: TrainingArgs, pipeline_class: Any) -> torch.dtype:
    """Return the LoRA files' precision, which the flags name, or else the base model's kind."""
    word = args.save_precision or backbone_of(pipeline_class.__name__).precision
    return getattr(torch, SAVE_PRECISIONS[word])


def write_loras(
    folder: Path,
    args: TrainingArgs,
    pipeline_class: Any,
    models: Mapping[str, Any],
    names: Mapping[str, str],
    is_end: bool = True,
) -> None:
    """Write the LoRA for diffusers and, unless the flags leave it out, for other programs.

    Args:
        names: of the subjects, by id.
        is_end: of the run; only then is a DoRA made a plain LoRA for the other programs.

    Raises:
        ValueError: a weight is not finite, or too large for the precision.
    """
    about = About(Path(args.output_dir).resolve().name, tuple(names.values()), args.resolution)
    dtype = save_dtype(args, pipeline_class)
    lora.save_lora(folder, pipeline_class, models, dtype, about)
    if not args.output_kohya_format:
        return
    if not args.use_dora:
        lora.save_kohya(folder, models, dtype, about)
    elif is_end:
        _write_plain(folder, args, models, dtype, about)


def _write_plain(
    folder: Path,
    args: TrainingArgs,
    models: Mapping[str, Any],
    dtype: torch.dtype,
    about: About,
) -> None:
    """Write the plain LoRA that comes near a DoRA, or say why there is none."""
    file = folder / lora.KOHYA_WEIGHTS_NAME
    hub = {key: getattr(args, key) for key in ("revision", "variant", "cache_dir")}
    base = dora.BaseWeights(args.base, **hub)
    device = next(iter(models.values())).device
    try:
        plain = dora.as_plain(lora.adapter_weights(models), base, args.dora_as_lora_rank, device)
    except dora.DoraError as error:
        logger.warning(f"no {file.name}: {error}")
        return
    if plain.error > args.dora_as_lora_error:
        file.unlink(missing_ok=True)  # an earlier run's would be taken for this one's
        logger.warning(
            f"no {file.name}: {plain.told()}, more than --dora_as_lora_error "
            f"{args.dora_as_lora_error:g}; python -m mudi.merge_lora tries other ranks"
        )
        return
    write_kohya(
        file,
        plain.states,
        about,
        dtype,
        lora.has_original_names(models),
        {"mudi_dora": plain.told()},
        family_of(denoiser=type(next(iter(models.values()))).__name__),
    )
    logger.info(f"{file}: {plain.told()}")
