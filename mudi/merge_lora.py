"""Merge LoRAs that were trained apart into one, whose effect is their weighted sum.

    python -m mudi.merge_lora output/cats output/dogs --weights 1 0.8 --output merged.safetensors

The ranks add up. A training script refits the result with --resume_lora.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.flags import Parser
from mudi.ground.lora_outline import LoraFileError, LoraOutline, outline
from mudi.lora_files import read_lora, write_diffusers

A, B = ".lora_A.weight", ".lora_B.weight"


def merge(
    loras: Sequence[dict[str, dict[str, Tensor]]], weights: Sequence[float]
) -> dict[str, dict[str, Tensor]]:
    """Return the LoRA whose effect on every layer is the sum of weight * B @ A.

    A's rows and B's columns are stacked. All layers get the same rank: where some LoRAs lack a
    layer, B is filled up with zeros, which have no effect, and A with noise as in a fresh LoRA,
    so that a refit can train it.

    Args:
        loras: as `mudi.lora_files.read_lora` returns them; no DoRAs.
        weights: one for each.

    Raises:
        ValueError: a layer's input or output is wider in one than in another.
    """
    pieces: dict[str, dict[str, list[Tensor]]] = {}
    for parts, weight in zip(loras, weights, strict=True):
        for part, state in parts.items():
            for key, value in state.items():
                piece = weight * value if key.endswith(B) else value
                pieces.setdefault(part, {}).setdefault(key, []).append(piece)
    rank = max(
        sum(map(len, rows))
        for part in pieces.values()
        for key, rows in part.items()
        if key.endswith(A)
    )
    generator = torch.Generator().manual_seed(0)
    return {
        part: {key: _stack(key, values, rank, generator) for key, values in state.items()}
        for part, state in pieces.items()
    }


def _stack(key: str, pieces: list[Tensor], rank: int, generator: torch.Generator) -> Tensor:
    """Join the pieces of a layer's A or B along the rank, and fill it up to `rank`."""
    along = 1 if key.endswith(B) else 0
    if len({piece.movedim(along, 0).shape[1:] for piece in pieces}) > 1:
        raise ValueError(f"{key} has other sizes in one LoRA than in another: other base models?")
    stacked = torch.cat(pieces, dim=along)
    size = list(stacked.shape)
    size[along] = rank - size[along]
    if key.endswith(B):
        return torch.cat([stacked, torch.zeros(size)], dim=1)
    return torch.cat([stacked, torch.randn(size, generator=generator) / rank])


def read_outlines(paths: Sequence[Path], problems: list[str]) -> list[LoraOutline]:
    """Read what the files hold; add what forbids merging them to problems."""
    found = []
    for path in paths:
        try:
            found.append(outline(path))
        except LoraFileError as error:
            problems.append(str(error))
    problems += [
        f"{one.file}: a DoRA; its magnitudes cannot be added to another's"
        for one in found
        if one.is_dora
    ]
    if len({one.family for one in found}) > 1:
        told = ", ".join(f"{one.file} is {one.family}" for one in found)
        problems.append(f"LoRAs of different base models cannot be merged: {told}")
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "loras", nargs="+", type=Path, help="LoRA files in diffusers' key names, or run folders"
    )
    parser.add_argument("--weights", nargs="+", type=float, help="one a LoRA; unset: 1 for each")
    parser.add_argument("--output", type=Path, required=True, help="file: NAME.safetensors")
    return parser.parse_args(argv)


@program
def main(args: argparse.Namespace) -> None:
    problems: list[str] = []
    weights = args.weights or [1.0] * len(args.loras)
    if len(weights) != len(args.loras):
        problems.append(f"--weights: {len(weights)} numbers for {len(args.loras)} LoRAs")
    if not all(map(math.isfinite, weights)):
        problems.append("--weights: all must be finite numbers")
    if args.output.suffix != ".safetensors":
        problems.append(f"--output {args.output}: must end in .safetensors")
    outlines = read_outlines(args.loras, problems)
    refuse(problems)

    try:
        merged = merge([read_lora(one.file) for one in outlines], weights)
    except ValueError as error:
        raise SetupError(str(error)) from error
    layers = {
        part: [key.removesuffix(A) for key in state if key.endswith(A)]
        for part, state in merged.items()
    }
    rank = next(len(merged[part][names[0] + A]) for part, names in layers.items())
    configs = {
        part: LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
        for part, names in layers.items()
    }
    write_diffusers(args.output, merged, configs)
    print(f"{args.output}: rank {rank}; refit it with --resume_lora {args.output} --rank {rank}")


if __name__ == "__main__":
    main(parse_args())
