"""LoRA adapters: attach, switch off, save, load."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from mudi.ground.errors import SetupError
from mudi.ground.lora_families import SDXL_RESNETS, UNET, family_of
from mudi.ground.lora_outline import WEIGHTS_NAME, outline, read_header
from mudi.learned_words import LearnedWords
from mudi.lora_files import About, read_lora, write_diffusers, write_kohya

__all__ = ["WEIGHTS_NAME", "read_header", "read_lora"]  # they live below; here they are known

logger = logging.getLogger("mudi")

KOHYA_WEIGHTS_NAME = "pytorch_lora_weights_kohya.safetensors"
ADAPTER = "default"  # the name under which diffusers' trainers save and load

ATTENTION_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
NEAR_NAMES = 4  # that a wrong target's complaint suggests
TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def add_lora(model: Any, rank: int, targets: list[str], use_dora: bool = False) -> None:
    """Attach a LoRA (alpha = rank, gaussian init) to a frozen diffusers or transformers model.

    Only the adapter trains afterwards, in float32 whatever the base's precision.

    Args:
        targets: see `adapted_layers`.

    Raises:
        SetupError: one stands for no linear layer.
    """
    model.requires_grad_(False)
    layers, named = adapted_layers(model, targets), [name for name, _ in model.named_modules()]
    if len(layers) < sum(any(_is_meant(target, name) for target in targets) for name in named):
        targets = layers  # a target is also the name of something else, which PEFT would refuse
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=targets,
        use_dora=use_dora,
    )
    model.add_adapter(config, adapter_name=ADAPTER)
    cast_training_params(model, dtype=torch.float32)


def adapted_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that targets stand for.

    Args:
        targets: whole names of layers, or ends of names after a dot.

    Raises:
        SetupError: one stands for no linear layer; the message names near ones.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(_is_meant(target, name) for name in linear):
            ends = {name[i:] for name in linear for i, c in enumerate(f".{name}") if c == "."}
            near = get_close_matches(target, sorted(ends | {*linear}), NEAR_NAMES, cutoff=0.5)
            known = ", ".join(near or sorted({name.split(".")[-1] for name in linear}))
            raise SetupError(f"{target}: no linear layer has that name; there are {known}")
    return [name for name in linear if any(_is_meant(target, name) for target in targets)]


def _is_meant(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


@contextmanager
def adapters_off(*models: nn.Module) -> Iterator[None]:
    """Give the base model inside, the adapted one outside; works for LoRA, DoRA, learned words.

    Unlike a LoRA scale of 0 this also bypasses DoRA's trained magnitudes. Which parameters want
    gradients, and which adapters were off before, stays as it is. PEFT's own `enable_adapters` also
    marks every weight, which took most of 35 ms a pass on SDXL's 560 layers.

    Raises:
        ValueError: no model has an adapter.
    """
    kinds = (BaseTunerLayer, LearnedWords)
    layers: list[Any] = [m for model in models for m in model.modules() if isinstance(m, kinds)]
    if not layers:
        raise ValueError("the model has no adapters to switch off")
    switched = [layer for layer in layers if not layer.disable_adapters]
    for layer in switched:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in switched:
            layer._disable_adapters = False


def save_lora(
    folder: Path,
    pipeline_class: Any,
    models: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    about: About | None = None,
) -> Path:
    """Write WEIGHTS_NAME into folder, complete or not at all.

    Args:
        folder: made if need be.
        pipeline_class: that is to load the file, e.g. StableDiffusionXLPipeline.
        models: adapted models by the pipeline's part names ("unet", "text_encoder", …), the
            denoiser first.
        dtype: precision of A and B in the file.
        about: what its header is to tell people.

    Returns:
        The file. Its header carries each adapter's rank, alpha and targets.

    Raises:
        ValueError: a weight is infinite or not a number, or the pipeline has no such part; nothing
            is written.
    """
    family = family_of(pipeline=pipeline_class.__name__)
    if foreign := sorted(models.keys() - set(family.parts)):
        raise ValueError(f"{family.pipeline} loads no LoRA for its {', '.join(foreign)}")
    configs = {name: model.peft_config[ADAPTER] for name, model in models.items()}
    states = adapter_weights(models)
    return write_diffusers(folder / WEIGHTS_NAME, states, configs, about, dtype, family)


def save_kohya(
    folder: Path,
    models: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    about: About | None = None,
) -> Path:
    """Write KOHYA_WEIGHTS_NAME: the LoRA as everything but diffusers loads it.

    Raises:
        ValueError: as `save_lora`; or it is a DoRA.
    """
    family = family_of(denoiser=type(next(iter(models.values()))).__name__)
    names = has_original_names(models)
    file, states = folder / KOHYA_WEIGHTS_NAME, adapter_weights(models)
    return write_kohya(file, states, about, dtype, names, family=family)


def has_original_names(models: Mapping[str, Any]) -> bool:
    """Say whether the layers can be numbered as SDXL's original code does; else a miniature's."""
    unet = models.get(UNET)
    return unet is None or unet.config.layers_per_block == SDXL_RESNETS


def adapter_weights(models: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the adapters' weights by part, as `add_lora` made them: their alpha is their rank.

    Raises:
        ValueError: one is infinite or not a number.
    """
    states = {name: _peft_state(model) for name, model in models.items()}
    for name, state in states.items():
        bad = [key for key, value in state.items() if not value.isfinite().all()]
        if bad:
            raise ValueError(f"the {name} adapter is broken, {bad[0]} is not finite; not saved")
    return states


def copy_lora(source: Any, target: Any) -> None:
    """Give a model that `add_lora` adapted alike another one's adapter."""
    set_peft_model_state_dict(target, _peft_state(source), adapter_name=ADAPTER)


def load_lora(file: Path, models: Mapping[str, Any]) -> None:
    """Load a LoRA file's effect into models that `add_lora` gave adapters of the same shape.

    Raises:
        ValueError: the file's weights are not, name by name and shape by shape, the models'.
    """
    parts = read_lora(file)
    for name, model in models.items():
        state = parts.get(name, {})
        own = {key: value.shape for key, value in _peft_state(model).items()}
        if own != {key: value.shape for key, value in state.items()}:
            raise ValueError(
                f"{file}: its {name} weights do not fit this run's adapter"
                f"{_first_difference(state, own)}; "
                "same --rank, --use_dora, --lora_targets, --train_text_encoder and base as then?"
            )
        set_peft_model_state_dict(model, state, adapter_name=ADAPTER)


def _first_difference(state: Mapping[str, Tensor], own: Mapping[str, torch.Size]) -> str:
    """Say which layers only one side has, if so."""
    for names, whose in ((state.keys() - own.keys(), "file"), (own.keys() - state.keys(), "run")):
        if names:
            return f" (only the {whose} has {min(names)}, and {len(names) - 1} more)"
    return ""


def resume_lora(path: str | None, models: Mapping[str, Any]) -> None:
    """Give fresh adapters the start that --resume_lora names; None leaves them as they are.

    Raises:
        SetupError: the LoRA does not fit the models.
    """
    if path is None:
        return
    try:
        told = outline(Path(path))
        load_lora(told.file, models)
    except ValueError as error:
        raise SetupError(f"--resume_lora {error}") from error
    for note in told.notes:
        logger.warning(note)
    if rounded := ", ".join(sorted({*told.precisions} - {"F32", "F64"})):
        logger.warning(
            f"--resume_lora {told.file}: its weights were rounded to {rounded}, so the run does "
            "not start from exactly what was trained; --save_precision float32 keeps it"
        )


def _peft_state(model: Any) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, adapter_name=ADAPTER)
