"""What LoRA files hold, by their names and shapes alone. Knows no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mudi.ground.errors import SetupError

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"

# The parts that can be adapted, the denoiser first, by how the pipeline's class name begins.
PARTS = {
    "StableDiffusionXL": ("unet", "text_encoder", "text_encoder_2"),
    "Flux": ("transformer", "text_encoder"),
}
# What diffusers' trainers, old and new, call a layer's tensors, and PEFT's names for them.
_TENSORS = {
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora.down.weight": "lora_A.weight",
    "lora.up.weight": "lora_B.weight",
    "lora_linear_layer.down.weight": "lora_A.weight",
    "lora_linear_layer.up.weight": "lora_B.weight",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "alpha": "alpha",
}


class LoraFileError(SetupError):
    """A LoRA file can't be used; the message is one line that begins with the file."""


@dataclass(frozen=True)
class LoraOutline:
    """What a LoRA file adapts.

    Attributes:
        family: the key of PARTS that fits.
        parts: the family's parts that it has layers of, the denoiser first.
        ranks: of the layers, ascending; more than one where layers differ.
        is_dora: it has DoRA's magnitudes.
    """

    file: Path
    family: str
    parts: tuple[str, ...]
    ranks: tuple[int, ...]
    is_dora: bool


def lora_path(path: Path) -> Path:
    """Return the file that a file's or a training run's path stands for."""
    return path / WEIGHTS_NAME if path.is_dir() else path


def outline(path: Path) -> LoraOutline:
    """Read a LoRA file's outline from its header.

    Args:
        path: a file, or a training run's folder.

    Raises:
        LoraFileError: there is none, or not one of SDXL or FLUX in diffusers' key names.
    """
    file = lora_path(path)
    if not file.is_file():
        raise LoraFileError(f"{file}: no such file")
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}
    except SafetensorError as error:
        raise LoraFileError(f"{file}: not a safetensors file ({error})") from error
    found, ranks, is_dora = set(), set(), False
    for key, shape in shapes.items():
        part, _, tensor = split_key(file, key)
        is_dora |= tensor == "lora_magnitude_vector"
        if tensor == "lora_A.weight":
            found.add(part)
            ranks.add(shape[0])
    for family, parts in PARTS.items():
        if parts[0] in found and found <= set(parts):
            present = tuple(part for part in parts if part in found)
            return LoraOutline(file, family, present, tuple(sorted(ranks)), is_dora)
    held = ", ".join(sorted(found)) or "nothing"
    raise LoraFileError(f"{file}: adapts {held}, as neither SDXL nor FLUX has them")


def split_key(file: Path, key: str) -> tuple[str, str, str]:
    """Split a key of a file into part, layer and tensor, the latter two in PEFT's names.

    Raises:
        LoraFileError: the key is not one of diffusers'.
    """
    part, _, rest = key.partition(".")
    for theirs, ours in _TENSORS.items():
        if rest.endswith(f".{theirs}"):
            layer = rest.removesuffix(f".{theirs}")
            if part == "text_encoder":  # transformers 5 dropped this level from CLIPTextModel
                layer = layer.removeprefix("text_model.")
            return part, layer, ours
    raise LoraFileError(
        f"{file}: {key!r} is not one of diffusers' key names; "
        f"give the LoRA as diffusers saves it ({WEIGHTS_NAME})"
    )


def read_header(file: Path) -> dict[str, Any]:
    """Return the adapter settings in a LoRA file's header, as {"unet.r": 32, …}."""
    with safe_open(file, framework="numpy") as opened:
        return json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
