"""A DoRA as a plain LoRA, for programs that read no DoRA, or each in its own way.

A DoRA scales every row of W + B A to the length m: its change of W has full rank, so that a plain
LoRA of some rank comes near it at best. How near is measured, and told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from mudi.ground.errors import SetupError, first_line
from mudi.ground.lora_names import DORA_RANK, DOWN, MAGNITUDE, UP
from mudi.lora_files import States, layers_of, pair

OVERSAMPLING, POWERS = 16, 4  # of the randomised decomposition, arXiv 0909.4061
VARIANTS = ("fp16", "bf16", "non_ema")  # weights that stand beside a model's own, by their names


class DoraError(SetupError):
    """A DoRA can't be made a plain LoRA; the message says why."""


@dataclass(frozen=True)
class Plain:
    """A plain LoRA in a DoRA's place.

    Attributes:
        states: its weights by part.
        rank: of its layers, or less where a layer has fewer inputs or outputs.
        error: what it lacks of the DoRA's change, relative, over all layers (Frobenius norm).
    """

    states: dict[str, dict[str, Tensor]]
    rank: int
    error: float

    def told(self) -> str:
        """Return rank and error in words."""
        return f"a plain LoRA of rank {self.rank} in place of the DoRA, {self.error:.2%} of it lost"


class BaseWeights:
    """A base model's weights on disk, read one at a time; never quantized.

    Args:
        base: folder or hub id.
        variant: of the weight files, as diffusers has it.
    """

    def __init__(
        self,
        base: str,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
    ):
        self.base, self.variant = base, variant
        self._revision, self._cache_dir = revision, cache_dir
        self._files: dict[str, dict[str, Path]] = {}

    def weight(self, part: str, layer: str) -> Tensor:
        """Return a layer's weight (out, in) in float32.

        Raises:
            DoraError: the base has no such layer, or no safetensors files, or can't be reached.
        """
        if part not in self._files:
            self._files[part] = self._find(part)
        for level in ("", "text_model."):  # files of text encoders have it, today's models do not
            key = f"{level}{layer}.weight"
            if key in self._files[part]:
                with safe_open(self._files[part][key], framework="pt") as opened:
                    return opened.get_tensor(key).float()
        raise DoraError(f"{self.base}: its {part} has no layer {layer}; another base model?")

    def _find(self, part: str) -> dict[str, Path]:
        """Return the file of each tensor of a part."""
        wanted = f".{self.variant}." if self.variant else "."
        others = [f".{name}." for name in VARIANTS if name != self.variant]
        folder = Path(self.base) if Path(self.base).is_dir() else self._fetch(part, others)
        keys: dict[str, Path] = {}
        for path in sorted((folder / part).glob("*.safetensors")):
            if wanted in path.name and not any(other in path.name for other in others):
                with safe_open(path, framework="pt") as opened:
                    keys |= dict.fromkeys(opened.keys(), path)
        if not keys:
            raise DoraError(f"{self.base}: no safetensors files of its {part}")
        return keys

    def _fetch(self, part: str, others: list[str]) -> Path:
        try:
            return Path(
                snapshot_download(
                    self.base,
                    allow_patterns=[f"{part}/*{self.variant or ''}*.safetensors"],
                    ignore_patterns=[f"*{other}*" for other in others],
                    revision=self._revision,
                    cache_dir=self._cache_dir,
                )
            )
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise DoraError(f"{self.base}: {first_line(error)}") from error


def is_dora(states: States) -> bool:
    """Say whether any layer has a magnitude."""
    return any(key.endswith(MAGNITUDE) for state in states.values() for key in state)


def change(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor) -> Tensor:
    """Return what a DoRA adds to a weight: m (W + BA) / |W + BA| - W, by rows.

    Args:
        weight: W (out, in).
        down, up: A (rank, in) and B (out, rank), with the scale in B.
        magnitude: m (out,).
    """
    moved = weight + up @ down
    lengths = torch.linalg.vector_norm(moved, dim=1)
    return (magnitude / lengths)[:, None] * moved - weight


def nearest(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A (rank, in), B (out, rank) whose product is nearly the nearest to a matrix (out, in).

    Randomised subspace iteration, algorithm 4.4 of arXiv 0909.4061; A and B share the singular
    values.
    """
    rank = min(rank, *matrix.shape)
    width = min(rank + OVERSAMPLING, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], (basis @ left[:, :rank]) * root


def as_plain(
    states: States, base: BaseWeights, rank: int = DORA_RANK, device: torch.device | str = "cpu"
) -> Plain:
    """Bring a DoRA's change of the unquantized base into a plain LoRA.

    Args:
        states: weights by part; layers without a magnitude stay as they are.
        device: where it is computed; the result is on the CPU.

    Raises:
        DoraError: the base's weights can't be had, or have other sizes.
    """
    generator = torch.Generator().manual_seed(0)
    lost = whole = 0.0
    plain: dict[str, dict[str, Tensor]] = {}
    for part, state in states.items():
        plain[part] = {}
        for layer in layers_of(state):
            piece = pair(state, layer)
            if piece is None:
                raise DoraError(f"{part}.{layer} has a magnitude, but neither A nor B")
            down, up = (value.detach().to(device, torch.float32) for value in piece)
            if f"{layer}.{MAGNITUDE}" in state:
                delta = _change_of(base, part, layer, state, down, up)
                down, up = nearest(delta, rank, generator)
                lost += float((delta - up @ down).square().sum(dtype=torch.float64))
            else:
                delta = up @ down
            whole += float(delta.square().sum(dtype=torch.float64))
            plain[part] |= {f"{layer}.{DOWN}": down.cpu(), f"{layer}.{UP}": up.cpu()}
    return Plain(plain, rank, (lost / whole) ** 0.5 if whole else 0.0)


def _change_of(
    base: BaseWeights,
    part: str,
    layer: str,
    state: Mapping[str, Tensor],
    down: Tensor,
    up: Tensor,
) -> Tensor:
    weight = base.weight(part, layer).to(down.device)
    if weight.shape != (len(up), down.shape[1]):
        sizes = f"{tuple(weight.shape)}, the DoRA's {(len(up), down.shape[1])}"
        raise DoraError(f"{base.base}: {part}.{layer} is {sizes}; another base model?")
    magnitude = state[f"{layer}.{MAGNITUDE}"].detach().to(down.device, torch.float32)
    return change(weight, down, up, magnitude)
