"""LoRA files: read in whatever names they have, written in diffusers' and in kohya's.

Weights are held as {part: {layer.tensor: values}}, in the words of `mudi.ground.lora_names`, and
without alpha: B holds the scale, so that a layer's change is B @ A.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from mudi.ground.errors import SetupError
from mudi.ground.files import replace_file
from mudi.ground.lora_families import Family
from mudi.ground.lora_names import (
    ALPHA,
    DOWN,
    MAGNITUDE,
    UP,
    diffusers_key,
    kohya_layers,
    likely,
)
from mudi.ground.lora_outline import (
    ADAPTER_KEY,
    BLOCKS_KEY,
    LoraFileError,
    file_header,
    read_header,
    recognise,
)

States = Mapping[str, Mapping[str, Tensor]]
Pair = tuple[Tensor, Tensor]  # A (rank, in), B (out, rank)
TRIGGERS_KEY = "modelspec.trigger_phrase"  # header: the words that call the subjects
MLP_RATIO = 4  # of FLUX's blocks: how much wider the part of linear1 that is not attention


def split(key: str) -> tuple[str, str]:
    """Split "layer.tensor" into layer and tensor, in this package's names."""
    for tensor in (DOWN, UP, MAGNITUDE, ALPHA):
        if key.endswith(f".{tensor}"):
            return key.removesuffix(f".{tensor}"), tensor
    raise ValueError(f"{key!r} is no tensor of a LoRA")


def layers_of(state: Mapping[str, Tensor]) -> list[str]:
    """Return the layers that a part's weights adapt, in their order."""
    return list(dict.fromkeys(split(key)[0] for key in state))


# Reading


def read_lora(file: Path) -> dict[str, dict[str, Tensor]]:
    """Return a LoRA file's weights by part, in PEFT's names and in float32.

    Every B is multiplied by the scale that the file gives its layer, so that the effect is B @ A.

    Raises:
        LoraFileError: a key is of no known vocabulary, or a layer lacks its A or B.
    """
    tensors = load_file(file)
    settings = read_header(file)
    groups: dict[tuple[str, tuple[str, ...]], dict[str, Tensor]] = {}
    shapes = {key: value.shape for key, value in tensors.items()}
    _, places = recognise(file, shapes, file_header(file))
    for key, found in places.items():
        group = groups.setdefault((found.part, found.layers), {})
        group[found.tensor] = tensors[key].float()
    parts: dict[str, dict[str, Tensor]] = {}
    for (part, layers), group in groups.items():
        if not {DOWN, UP} <= group.keys():
            raise LoraFileError(f"{file}: {part}.{layers[0]} lacks its A or its B")
        down, up = _linear(group[DOWN]), _linear(group[UP])
        alpha = group[ALPHA].item() if ALPHA in group else None
        own = {k.removeprefix(f"{part}."): v for k, v in settings.items() if k.startswith(part)}
        scale = _scale(layers[0], len(down), alpha, own)
        state = parts.setdefault(part, {})
        for layer, piece in zip(layers, unfuse(down, up, len(layers)), strict=True):
            if piece is not None:
                state[f"{layer}.{DOWN}"], state[f"{layer}.{UP}"] = piece[0], piece[1] * scale
        if MAGNITUDE in group:
            state[f"{layers[0]}.{MAGNITUDE}"] = group[MAGNITUDE]
    return parts


def _linear(weight: Tensor) -> Tensor:
    """Return a 1x1 convolution's weight as the matrix that it is."""
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        return weight[:, :, 0, 0]
    return weight


def _scale(layer: str, rank: int, alpha: float | None, settings: Mapping[str, Any]) -> float:
    """Return what PEFT multiplies B @ A by.

    Args:
        alpha: the layer's own; None: the header's, or where that has none, the rank.
        settings: the header's, of the layer's part.
    """
    if alpha is None:
        pattern = settings.get("alpha_pattern") or {}
        alpha = pattern.get(get_pattern_key(pattern, layer), settings.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def unfuse(down: Tensor, up: Tensor, count: int) -> list[Pair | None]:
    """Take a fused layer's A (R, in) and B (out, R) apart into those of `count` layers.

    Where B is block-diagonal, as `fuse` makes it, each layer gets its own block and rank; else all
    have the same A. A layer without any effect that has no A either is None: nobody trained it.
    """
    if count == 1:
        return [(down, up)]
    rows = up.split(_heights(count, up.shape[0], down.shape[1]))
    for blocks in (count - 1, count) if count == 4 else (count,):
        if down.shape[0] % blocks == 0 and _is_block_diagonal(rows, blocks):
            rank = down.shape[0] // blocks
            pieces = [
                (down[i * rank : (i + 1) * rank], rows[i][:, i * rank : (i + 1) * rank])
                for i in range(blocks)
            ]
            return [
                pieces[i] if i < blocks and any(t.any() for t in pieces[i]) else None
                for i in range(count)
            ]
    return [(down, row) if row.any() else None for row in rows]


def _heights(count: int, height: int, width: int) -> list[int]:
    """Return the outputs of q, k, v and, if there are four, of what is stacked below them."""
    return [height // 3] * 3 if count == 3 else [width] * 3 + [height - 3 * width]


def _is_block_diagonal(rows: Sequence[Tensor], blocks: int) -> bool:
    rank = rows[0].shape[1] // blocks
    for i, row in enumerate(rows):
        rest = row.clone()
        if i < blocks:
            rest[:, i * rank : (i + 1) * rank] = 0
        if rest.any():
            return False
    return True


# Writing


@dataclass(frozen=True)
class About:
    """What a file's header tells people.

    Attributes:
        title: as lists show it.
        triggers: the words that call the subjects.
        resolution: of the training (px).
    """

    title: str = "MuDI"
    triggers: tuple[str, ...] = ()
    resolution: int | None = None


def write_diffusers(
    file: Path,
    states: States,
    configs: Mapping[str, LoraConfig],
    about: About | None = None,
    dtype: torch.dtype = torch.float32,
    family: Family | None = None,
) -> Path:
    """Write a LoRA or DoRA file as diffusers' own trainers do, complete or not at all.

    Args:
        states: weights by part.
        configs: what the header is to say to diffusers, by part.
        dtype: of A and B; magnitudes stay in float32, as they are of the size of the base's
            weights, and half a per mille of those is as much as was trained.
        family: whose LoRA it is; None: by its layers.

    Raises:
        SetupError: a value is too large for dtype.
    """
    tensors = {
        diffusers_key(part, *split(key)): _cast(key, value, dtype)
        for part, state in states.items()
        for key, value in state.items()
    }
    settings = {
        f"{part}.{key}": value
        for part, config in configs.items()
        for key, value in config.to_dict().items()
    }
    told = {key: sorted(v) if isinstance(v, set) else v for key, v in settings.items()}
    header = _header(states, about or About(), family or _likely(states))
    header[ADAPTER_KEY] = json.dumps(told, indent=2, sort_keys=True)
    return replace_file(file, lambda path: save_file(tensors, path, metadata=header))


def write_kohya(
    file: Path,
    states: States,
    about: About | None = None,
    dtype: torch.dtype = torch.float32,
    original: bool = True,
    more: Mapping[str, str] | None = None,
    family: Family | None = None,
) -> Path:
    """Write a LoRA as kohya's trainers do: for ComfyUI, Forge, A1111, InvokeAI and sd-scripts.

    Args:
        original: see `mudi.ground.lora_names.kohya_layers`.
        more: entries of the header.
        family: whose LoRA it is; None: by its layers.

    Raises:
        ValueError: it is a DoRA, of which each reader has its own reading, or kohya has no name for
            a layer.
        SetupError: a value is too large for dtype.
    """
    family = family or _likely(states)
    tensors: dict[str, Tensor] = {}
    blocks = set()
    for part, state in states.items():
        if any(key.endswith(MAGNITUDE) for key in state):
            raise ValueError("a DoRA in kohya's form would be read otherwise than it was trained")
        for name, layers in kohya_layers(part, layers_of(state), original, family).items():
            down, up = fuse([pair(state, layer) for layer in layers])
            tensors[f"{name}.lora_down.weight"] = _cast(name, down, dtype)
            tensors[f"{name}.lora_up.weight"] = _cast(name, up, dtype)
            tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
            if len(layers) > 1:
                blocks.add(_blocks([pair(state, layer) for layer in layers]))
    header = _header(states, about or About(), family) | dict(more or {})
    if len(blocks) == 1:
        header[BLOCKS_KEY] = str(blocks.pop())
    return replace_file(file, lambda path: save_file(tensors, path, metadata=header))


def pair(state: Mapping[str, Tensor], layer: str) -> Pair | None:
    """Return a layer's A and B, or None where it has none."""
    if f"{layer}.{DOWN}" not in state:
        return None
    return state[f"{layer}.{DOWN}"], state[f"{layer}.{UP}"]


def fuse(pairs: Sequence[Pair | None]) -> Pair:
    """Join the A and B of q, k, v (and MLP) into those of the one layer that has them stacked.

    A (R, in) has all of theirs one below the other, B (out, R) is block-diagonal: the same effect,
    exactly. Layers that are None get zeros; a last one of four, no part of R.
    """
    if len(pairs) == 1 and pairs[0] is not None:
        return pairs[0]
    blocks = _blocks(pairs)
    given = [p for p in pairs if p is not None]
    rank = max(len(a) for a, _ in given)
    width = given[0][0].shape[1]
    side = next((len(p[1]) for p in pairs[:3] if p is not None), width)
    heights = [side] * 3 + [MLP_RATIO * width if p is None else len(p[1]) for p in pairs[3:]]
    down = given[0][0].new_zeros(blocks * rank, width)
    up = given[0][1].new_zeros(sum(heights), blocks * rank)
    for i, piece in enumerate(pairs):
        if piece is not None:
            a, b = piece
            top = sum(heights[:i])
            down[i * rank : i * rank + len(a)] = a
            up[top : top + len(b), i * rank : i * rank + len(a)] = b
    return down, up


def _blocks(pairs: Sequence[Pair | None]) -> int:
    return 3 if len(pairs) == 4 and pairs[3] is None else len(pairs)


def _cast(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if key.endswith(MAGNITUDE):
        dtype = torch.float32
    cast = value.detach().to("cpu", dtype).contiguous()
    if cast.isinf().any():
        raise SetupError(f"{key} is too large for {dtype}; take --save_precision float32")
    return cast


def _likely(states: States) -> Family:
    return likely({part: layers_of(state) for part, state in states.items()})


def _header(states: States, about: About, family: Family) -> dict[str, str]:
    """Return what programs that sort and show LoRAs read."""
    ranks = [len(value) for state in states.values() for k, value in state.items() if DOWN in k]
    rank = str(max(ranks, default=0))
    header = {
        "format": "pt",
        **family.header,
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": about.title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": about.title,
    }
    if about.triggers:
        header[TRIGGERS_KEY] = ", ".join(about.triggers)
        header["ss_tag_frequency"] = json.dumps({"mudi": {name: 1 for name in about.triggers}})
    if about.resolution:
        header["modelspec.resolution"] = f"{about.resolution}x{about.resolution}"
        header["ss_resolution"] = f"({about.resolution}, {about.resolution})"
    return header
