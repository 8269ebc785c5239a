"""Merge LoRAs that were trained apart into one, whose effect is their weighted sum.

    python -m mudi.merge_lora output/cats output/dogs --weights 1 0.8 --output merged.safetensors

The ranks add up. A training script refits the result with --resume_lora. Given one LoRA, it brings
that into diffusers' names and, beside it, into those of all other programs; given a DoRA and its
base model, into a plain LoRA that comes near. Words that were learned with them keep what they
mean, whatever the weights, in a file beside the result.
"""

from dataclasses import dataclass
from pathlib import Path

from mudi.ground.flags import flag, parse
from mudi.ground.lora_names import DORA_ERROR, DORA_RANK
from mudi.training.args import SAVE_PRECISIONS


@dataclass
class PlainArgs:
    """DoRA, which is brought into a plain LoRA"""

    pretrained_model_name_or_path: str | None = flag(
        None, "base model that it was trained on: folder or hub id"
    )
    variant: str | None = flag(None, 'weight files of the base model, e.g. "fp16"')
    dora_rank: int = flag(DORA_RANK, "of that LoRA", at_least=1)
    dora_error: float = flag(DORA_ERROR, "the part of the DoRA that may be lost at most")


@dataclass
class MergeArgs(PlainArgs):
    """LoRAs"""

    loras: list[Path] = flag(
        [], "LoRA files of any naming, run folders, PEFT folders", positional=True, nargs="+"
    )
    weights: list[float] | None = flag(None, "one a LoRA; unset: 1 for each", nargs="+")
    output: Path = flag(Path(), "file: NAME.safetensors", required=True)
    output_kohya_format: bool = flag(
        True, "also write NAME_kohya.safetensors, for ComfyUI and all others"
    )
    save_precision: str = flag(
        "float32",
        "of the files; a refit starts from float32 exactly",
        choices=SAVE_PRECISIONS,
    )


def parse_args(argv: list[str] | None = None) -> MergeArgs:
    return parse(MergeArgs, __doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import math
from collections.abc import Sequence

import torch
from peft import LoraConfig
from torch import Tensor

from mudi import dora
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.flags import range_complaints
from mudi.ground.lora_families import Family
from mudi.ground.lora_outline import LoraFileError, LoraOutline, file_header, outline
from mudi.learned_words import Joined, join_words, save_words
from mudi.lora_files import TRIGGERS_KEY, About, read_lora, write_diffusers, write_kohya
from mudi.words import FILE_NAME, WordError, words_file

A, B = ".lora_A.weight", ".lora_B.weight"
BASE_FLAG = "--pretrained_model_name_or_path"


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


def read_outlines(
    paths: Sequence[Path], problems: list[str], base: str | None = None
) -> list[LoraOutline]:
    """Read what the files hold; add what forbids merging them to problems.

    Args:
        base: model from which a DoRA can be made a plain LoRA.
    """
    found = []
    for path in paths:
        try:
            found.append(outline(path))
        except LoraFileError as error:
            problems.append(str(error))
    if base is None:
        problems += [
            f"{one.file}: a DoRA, whose magnitudes cannot be added to another's; "
            f"{BASE_FLAG} brings it into a plain LoRA"
            for one in found
            if one.is_dora
        ]
    if found and not _common(found):
        told = ", ".join(f"{one.file} is {one.families[0].title}" for one in found)
        problems.append(f"LoRAs of different base models cannot be merged: {told}")
    return found


def _common(outlines: Sequence[LoraOutline]) -> list[Family]:
    """Return the families that all LoRAs can be of."""
    return [f for f in outlines[0].families if all(f in one.families for one in outlines)]


def read_words(outlines: Sequence[LoraOutline], problems: list[str]) -> Joined | None:
    """Return the words that were learned with LoRAs, and their rows; None: there are none.

    Those that can't be told apart are added to problems.
    """
    files = [file for one in outlines if (file := words_file(one.file)) is not None]
    try:
        return join_words(files) if files else None
    except WordError as error:
        problems.append(str(error))
        return None


def read_plain(
    told: LoraOutline, base: str | None, variant: str | None, rank: int, max_error: float
) -> dict[str, dict[str, Tensor]]:
    """Read a LoRA; a DoRA as the plain LoRA that is nearest.

    Raises:
        SetupError: too much of the DoRA would be lost, or the base's weights can't be had.
    """
    states = read_lora(told.file)
    if not told.is_dora or base is None:
        return states
    plain = dora.as_plain(states, dora.BaseWeights(base, variant=variant), rank)
    print(f"{told.file}: {plain.told()}")
    if plain.error > max_error:
        raise SetupError(
            f"{told.file}: {plain.error:.2%} of the DoRA would be lost, more than --dora_error "
            f"{max_error:g}; nothing was written. A larger --dora_rank loses less"
        )
    return plain.states


@program
def main(args: MergeArgs) -> None:
    problems = range_complaints(args)
    weights = args.weights or [1.0] * len(args.loras)
    if len(weights) != len(args.loras):
        problems.append(f"--weights: {len(weights)} numbers for {len(args.loras)} LoRAs")
    if not all(map(math.isfinite, weights)):
        problems.append("--weights: all must be finite numbers")
    if args.output.suffix != ".safetensors":
        problems.append(f"--output {args.output}: must end in .safetensors")
    base = args.pretrained_model_name_or_path
    outlines = read_outlines(args.loras, problems, base)
    words = read_words(outlines, problems)
    beside = args.output.with_name(FILE_NAME)
    if not words and beside.is_file():
        problems.append(
            f"--output {args.output}: {beside} there would be taken for its learned words; give "
            "another folder"
        )
    refuse(problems)

    try:
        settings = (base, args.variant, args.dora_rank, args.dora_error)
        merged = merge([read_plain(one, *settings) for one in outlines], weights)
    except ValueError as error:
        raise SetupError(str(error)) from error
    rank = write(merged, outlines, args)
    words_path = args.output.with_name(f"{args.output.stem}_{FILE_NAME}")
    if words:
        save_words(words_path, *words)
    else:
        words_path.unlink(missing_ok=True)  # what was merged before would be taken for this
    print(f"{args.output}: rank {rank}; refit it with --resume_lora {args.output} --rank {rank}")


def write(
    merged: dict[str, dict[str, Tensor]], outlines: Sequence[LoraOutline], args: MergeArgs
) -> int:
    """Write the merged LoRA for diffusers and for all other programs; return its rank."""
    layers = {
        part: [key.removesuffix(A) for key in state if key.endswith(A)]
        for part, state in merged.items()
    }
    rank = next(len(merged[part][names[0] + A]) for part, names in layers.items())
    configs = {
        part: LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
        for part, names in layers.items()
    }
    phrases = [file_header(one.file).get(TRIGGERS_KEY, "") for one in outlines]
    words = [word for phrase in phrases for word in phrase.split(", ") if word]
    about = About(args.output.stem, tuple(dict.fromkeys(words)))
    dtype = getattr(torch, SAVE_PRECISIONS[args.save_precision])
    family = _common(outlines)[0]
    write_diffusers(args.output, merged, configs, about, dtype, family)
    if args.output_kohya_format:
        file = args.output.with_stem(f"{args.output.stem}_kohya")
        try:
            write_kohya(file, merged, about, dtype, family=family)
        except ValueError as error:
            print(f"no {file}: {error}")
    return rank


if __name__ == "__main__":
    main(ARGS)
