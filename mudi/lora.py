"""LoRA adapters: attach, switch off, save, load; in diffusers' key names and in kohya's."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mudi.ground.errors import SetupError
from mudi.ground.files import replace_file
from mudi.ground.lora_names import WEIGHTS_NAME, outline, read_header, split_key

KOHYA_WEIGHTS_NAME = "pytorch_lora_weights_kohya.safetensors"
ADAPTER = "default"  # the name under which diffusers' trainers save and load

ATTENTION_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]

# What kohya's file calls each part; the tools that read it tell the encoders apart by this.
_KOHYA_PREFIXES = {
    "unet": "lora_unet",
    "transformer": "lora_transformer",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
_KOHYA_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


def add_lora(model: Any, rank: int, targets: list[str], use_dora: bool = False) -> None:
    """Attach a LoRA (alpha = rank, gaussian init) to a frozen diffusers or transformers model.

    Only the adapter trains afterwards, in float32 whatever the base's precision.
    """
    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=targets,
        use_dora=use_dora,
    )
    model.add_adapter(config, adapter_name=ADAPTER)
    cast_training_params(model, dtype=torch.float32)


@contextmanager
def adapters_off(*models: nn.Module) -> Iterator[None]:
    """Give the base model inside, the adapted one outside; works for LoRA and for DoRA.

    Unlike a LoRA scale of 0 this also bypasses DoRA's trained magnitudes. Which parameters want
    gradients, and which adapters were off before, stays as it is. PEFT's own `enable_adapters` also
    marks every weight, which took most of 35 ms a pass on SDXL's 560 layers.

    Raises:
        ValueError: no model has an adapter.
    """
    layers = [m for model in models for m in model.modules() if isinstance(m, BaseTunerLayer)]
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
) -> Path:
    """Write WEIGHTS_NAME into folder, complete or not at all.

    Args:
        folder: made if need be.
        pipeline_class: knows the file's layout, e.g. StableDiffusionXLPipeline.
        models: adapted models by the pipeline's part names ("unet", "text_encoder", …).
        dtype: precision in the file.

    Returns:
        The file. Its header carries each adapter's rank, alpha and targets.

    Raises:
        ValueError: a weight is infinite or not a number; nothing is written.
    """
    for name, model in models.items():
        bad = [key for key, value in _peft_state(model).items() if not value.isfinite().all()]
        if bad:
            raise ValueError(f"the {name} adapter is broken, {bad[0]} is not finite; not saved")
    states = {
        name: {key: value.to(dtype) for key, value in _peft_state(model).items()}
        for name, model in models.items()
    }
    configs = {name: model.peft_config[ADAPTER] for name, model in models.items()}
    return write_lora(folder / WEIGHTS_NAME, pipeline_class, states, configs)


def write_lora(
    file: Path,
    pipeline_class: Any,
    states: Mapping[str, dict[str, Tensor]],
    configs: Mapping[str, LoraConfig],
) -> Path:
    """Write a LoRA file, complete or not at all.

    Args:
        pipeline_class: knows the file's layout.
        states: weights in PEFT's names, by part.
        configs: what the header is to say, by part.
    """
    layers = {f"{name}_lora_layers": _as_saved(name, state) for name, state in states.items()}
    headers = {
        f"{name}_lora_adapter_metadata": config.to_dict() for name, config in configs.items()
    }

    def write(path: Path) -> None:
        pipeline_class.save_lora_weights(path.parent, weight_name=path.name, **layers, **headers)

    return replace_file(file, write)


def read_lora(file: Path) -> dict[str, dict[str, Tensor]]:
    """Return a LoRA file's weights by part, in PEFT's names and in float32.

    Every B is multiplied by the scale that the file gives its layer, so that the effect is B @ A.

    Raises:
        LoraFileError: a key is not one of diffusers'.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        part, layer, tensor = split_key(file, key)
        parts.setdefault(part, {})[f"{layer}.{tensor}"] = value.float()
    header = read_header(file)
    for part, state in parts.items():
        prefix = f"{part}."
        settings = {k.removeprefix(prefix): v for k, v in header.items() if k.startswith(prefix)}
        alphas = {key: state.pop(key).item() for key in list(state) if key.endswith(".alpha")}
        for key in state:
            if key.endswith(".lora_B.weight"):
                layer, rank = key.removesuffix(".lora_B.weight"), state[key].shape[1]
                state[key] *= _scale(layer, rank, alphas.get(f"{layer}.alpha"), settings)
    return parts


def _scale(layer: str, rank: int, alpha: float | None, settings: dict[str, Any]) -> float:
    """Return what PEFT multiplies B @ A by.

    Args:
        alpha: the layer's own; None: the header's, or where that has none, the rank.
        settings: the header's, of the layer's part.
    """
    if alpha is None:
        pattern = settings.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(pattern, layer), settings.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


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
                f"{file}: its {name} weights do not fit this run's adapter; "
                "same --rank, --use_dora, --train_text_encoder and base model as then?"
            )
        set_peft_model_state_dict(model, state, adapter_name=ADAPTER)


def resume_lora(path: str | None, models: Mapping[str, Any]) -> None:
    """Give fresh adapters the start that --resume_lora names; None leaves them as they are.

    Raises:
        SetupError: the LoRA does not fit the models.
    """
    if path is None:
        return
    try:
        load_lora(outline(Path(path)).file, models)
    except ValueError as error:
        raise SetupError(f"--resume_lora {error}") from error


def save_kohya(folder: Path, models: Mapping[str, Any]) -> Path:
    """Write KOHYA_WEIGHTS_NAME: the LoRA under the key names that ComfyUI and A1111 load."""
    state: dict[str, Tensor] = {}
    for name, model in models.items():
        alpha = float(model.peft_config[ADAPTER].lora_alpha)
        for key, value in _peft_state(model).items():
            module, suffix = _kohya_module(name, key)
            if suffix == "dora_scale":
                value = value[:, None]  # (out, 1): one magnitude a row, or readers take columns
            state[f"{module}.{suffix}"] = value.contiguous().cpu()
            state[f"{module}.alpha"] = torch.tensor(alpha)
    config = next(iter(models.values())).peft_config[ADAPTER]
    header = {"ss_network_dim": str(config.r), "ss_network_alpha": str(config.lora_alpha)}
    return replace_file(
        folder / KOHYA_WEIGHTS_NAME, lambda path: save_file(state, path, metadata=header)
    )


def _as_saved(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the key names that diffusers' own trainers give this part."""
    return state if part == "transformer" else convert_state_dict_to_diffusers(state)


def _peft_state(model: Any) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, adapter_name=ADAPTER)


def _kohya_module(part: str, key: str) -> tuple[str, str]:
    """Split a PEFT key into kohya's module name and its suffix."""
    for ours, theirs in _KOHYA_SUFFIXES.items():
        if key.endswith(f".{ours}"):
            path = key.removesuffix(f".{ours}")
            if part == "text_encoder" and not path.startswith("text_model."):
                # transformers 5 dropped this level from CLIPTextModel; the readers expect it
                path = f"text_model.{path}"
            return f"{_KOHYA_PREFIXES[part]}_{path.replace('.', '_')}", theirs
    raise ValueError(f"no kohya name for the weight {key!r}")
