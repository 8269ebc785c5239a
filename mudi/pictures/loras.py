"""LoRAs of all kinds of names, loaded into a pipeline; or why one cannot be."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from torch import Tensor

from mudi.backbones.table import Backbone, backbone_of
from mudi.ground.errors import first_line
from mudi.ground.flags import looks_local
from mudi.ground.lora_names import DOWN, UP, diffusers_key
from mudi.ground.lora_outline import (
    PICKLES,
    WEIGHTS_NAME,
    LoraFileError,
    LoraOutline,
    family_complaint,
    outline,
)
from mudi.learned_words import detach
from mudi.lora_files import States, layers_of, read_lora, split
from mudi.pictures.words import attach_words

SUFFIX = ".safetensors"
UNTOUCHED = "No LoRA keys associated to"  # diffusers, of each text encoder that a LoRA leaves alone


def find_lora(name: str, cache_dir: str | None = None) -> Path:
    """Return the file or folder that a path or a hub id stands for.

    Raises:
        LoraFileError: there is none, or it can't be had.
    """
    path = Path(name)
    if path.exists():
        return path
    if looks_local(name) or path.suffix in (SUFFIX, *PICKLES):
        raise LoraFileError(f"{name}: no such file or folder (nor a hub id, <owner>/<name>)")
    try:
        try:
            return Path(hf_hub_download(name, WEIGHTS_NAME, cache_dir=cache_dir))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return Path(hf_hub_download(name, _only_file(name), cache_dir=cache_dir))
    except LocalEntryNotFoundError as error:
        raise LoraFileError(
            f"{name}: no such folder here, nor a LoRA of that hub id in the cache, and the hub "
            "can't be reached"
        ) from error
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise LoraFileError(f"{name}: {first_line(error)}") from error


def _only_file(name: str) -> str:
    siblings = HfApi().model_info(name).siblings or []
    files = [item.rfilename for item in siblings if item.rfilename.endswith(SUFFIX)]
    if len(files) != 1:
        held = ", ".join(files) or "no safetensors file"
        raise LoraFileError(f"{name}: has {held}; fetch the one you want and give its path")
    return files[0]


def lora_outlines(
    names: Sequence[str], backbone: Backbone, problems: list[str], cache_dir: str | None = None
) -> list[LoraOutline]:
    """Read what LoRAs are, from their headers; add what is wrong with them to problems."""
    found = []
    for name in names:
        try:
            told = outline(find_lora(name, cache_dir))
        except LoraFileError as error:
            problems.append(f"--lora {error}")
            continue
        complaint = family_complaint(told, backbone.pipeline, backbone.title)
        if complaint:
            problems.append(f"--lora {complaint}")
        found.append(told)
    return found


def load_loras(
    pipeline: DiffusionPipeline,
    paths: Sequence[str],
    scales: Sequence[float],
    cache_dir: str | None = None,
) -> None:
    """Load LoRAs to work together, each with its scale; one of scale 0 is not loaded at all.

    The words that were learned with them come along.

    Args:
        paths: files of any naming that is known, folders of training runs or of PEFT, or hub ids.

    Raises:
        LoraFileError: one can't be loaded, or not into this pipeline.
        WordError: their learned words can't be, or can't be told apart.
    """
    backbone = backbone_of(type(pipeline).__name__)
    used = [(path, scale) for path, scale in zip(paths, scales, strict=True) if scale != 0]
    names = [f"lora_{i}" for i in range(len(used))]
    for name, (path, _) in zip(names, used, strict=True):
        told = outline(find_lora(path, cache_dir))
        complaint = family_complaint(told, backbone.pipeline, backbone.title)
        if complaint:
            raise LoraFileError(complaint)
        states = read_lora(told.file)
        _check_fit(pipeline, told.file, states)
        with _untouched_parts_untold():
            pipeline.load_lora_weights(_named(states), adapter_name=name)
    if used:
        pipeline.set_adapters(names, [scale for _, scale in used])
    attach_words(pipeline, [path for path, _ in used], cache_dir)


@contextmanager
def loras_in(
    pipeline: DiffusionPipeline,
    paths: Sequence[str],
    scales: Sequence[float],
    cache_dir: str | None = None,
) -> Iterator[None]:
    """Have LoRAs in a pipeline for a while; see `load_loras`."""
    load_loras(pipeline, paths, scales, cache_dir)
    try:
        yield
    finally:
        pipeline.unload_lora_weights()
        detach(pipeline)


@contextmanager
def _untouched_parts_untold() -> Iterator[None]:
    """Let diffusers not warn of a LoRA of the network alone; `_check_fit` says what misfits."""
    logger = logging.getLogger("diffusers.loaders.lora_base")

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(UNTOUCHED)

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _named(states: States) -> dict[str, Tensor]:
    return {
        diffusers_key(part, *split(key)): value
        for part, state in states.items()
        for key, value in state.items()
    }


def _check_fit(pipeline: DiffusionPipeline, file: Path, states: States) -> None:
    """Compare layers and sizes with the pipeline's; what it lacks, diffusers passes over."""
    for part, state in states.items():
        modules: dict[str, torch.nn.Module] = dict(getattr(pipeline, part).named_modules())
        for layer in layers_of(state):
            if layer not in modules:
                raise LoraFileError(f"{file}: adapts {part}.{layer}, which the base model has not")
            module: torch.nn.Module = getattr(modules[layer], "base_layer", modules[layer])
            ours = (state[f"{layer}.{UP}"].shape[0], state[f"{layer}.{DOWN}"].shape[1])
            theirs = _sizes(module)
            if theirs is not None and ours != theirs:
                raise LoraFileError(
                    f"{file}: {part}.{layer} is {ours[0]}x{ours[1]}, the base model's "
                    f"{theirs[0]}x{theirs[1]}; it was trained on another base model"
                )


def _sizes(module: torch.nn.Module) -> tuple[int, int] | None:
    """Return (outputs, inputs) of a linear layer or a convolution; None: unknown."""
    if isinstance(module, torch.nn.Conv2d):
        return module.out_channels, module.in_channels
    if isinstance(module, torch.nn.Linear):
        return module.out_features, module.in_features
    return None
