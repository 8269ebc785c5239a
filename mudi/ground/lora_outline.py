"""What a LoRA file is, by its names, shapes and header alone; or why it cannot be used.

Knows no torch, and opens no pickle.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mudi.ground.errors import SetupError
from mudi.ground.lora_families import FAMILIES, TRANSFORMER, UNET, Family
from mudi.ground.lora_names import DOWN, MAGNITUDE, UP, Place, knows, place

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
BLOCKS_KEY = "mudi_fused_blocks"  # header: a fused layer's ranks are so many layers', side by side
ADAPTER_KEY = "lora_adapter_metadata"  # header: diffusers' name for the adapters' settings

# What is seen in keys of no known place, the telling first; what it means, what to do.
_FOREIGN = {
    r"lokr_|hada_|\bglora\b|\bia3\b": "a LyCORIS adapter (LoKr, LoHa, ...), not a LoRA; resize or "
    "convert it to a LoRA with the program that made it",
    r"\boft_|oft_(blocks|diag|R)|\bboft_": "an OFT adapter, not a LoRA; train or fetch a LoRA",
    r"dora_scale": "a DoRA in kohya's form, of which each program has its own reading; give the "
    f"one that diffusers loads ({WEIGHTS_NAME}), or a plain LoRA",
    r"lora_mid\.": "a LoRA with Tucker cores, which are not supported; save it without (CP) cores",
    r"^lora_te_": "a LoRA of Stable Diffusion 1.5 or 2; those known here have other layers",
    r"^lora_te3_|^text_encoder_[23]\..*(SelfAttention|DenseReluDense)": "adapts the T5 text "
    "encoder, which stays as it is here; leave its keys out",
    r"norm\.(key|query)_norm|lora_B\.bias|\.(diff|diff_b|set_weight)$": "a control LoRA of Black "
    "Forest Labs, or one with biases and norms, which are not supported",
    r"\.processor\.|_lora\.(up|down)\.": "a LoRA in diffusers' form of before 2023-09; load and "
    "save it once with diffusers",
}
_CROSS_ATTENTION = re.compile(r"attn2\.to_[kv]$")
_TITLES = ", ".join(family.title for family in FAMILIES)
_ARCHITECTURES = ("modelspec.architecture", "ss_base_model_version")  # headers that tell the base
_OLDER_WIDTHS = {768: "1.5", 1024: "2"}  # of text, which SDXL's cross-attention has 2048 wide


class LoraFileError(SetupError):
    """A LoRA file can't be used; the message is one line that begins with the file."""


@dataclass(frozen=True)
class LoraOutline:
    """What a LoRA file adapts.

    Attributes:
        families: those that it can be of; more than one where neither names nor header tell.
        parts: the family's parts that it has layers of, the denoiser first.
        ranks: of the layers, ascending; more than one where layers differ.
        is_dora: it has DoRA's magnitudes.
        precisions: of its A and B, as safetensors names them: F32, F16, BF16, F8_E4M3, ...
        notes: what had to be assumed.
    """

    file: Path
    families: tuple[Family, ...]
    parts: tuple[str, ...]
    ranks: tuple[int, ...]
    is_dora: bool
    precisions: tuple[str, ...] = ("F32",)
    notes: tuple[str, ...] = ()


def lora_path(path: Path) -> Path:
    """Return the file that a file's, a training run's or a PEFT folder's path stands for."""
    if not path.is_dir():
        return path
    if not (path / WEIGHTS_NAME).is_file() and (path / PEFT_CONFIG).is_file():
        name = PEFT_NAME
        if not (path / name).is_file() and (path / name).with_suffix(".bin").is_file():
            name = str(Path(name).with_suffix(".bin"))
        return path / name
    return path / WEIGHTS_NAME


def outline(path: Path) -> LoraOutline:
    """Read a LoRA file's outline from its header.

    Args:
        path: a file, a training run's folder or a PEFT folder.

    Raises:
        LoraFileError: there is none, or not of a base model or a kind that is known here.
    """
    file = lora_path(path)
    shapes, dtypes = _read(file)
    header = file_header(file)
    families, places = recognise(file, shapes, header)
    _refuse_older(file, places, shapes)
    blocks = int(header.get(BLOCKS_KEY, 1))
    downs = {key: found for key, found in places.items() if found.tensor == DOWN}
    ranks = {shapes[key][0] // (blocks if len(p.layers) > 1 else 1) for key, p in downs.items()}
    notes: tuple[str, ...] = ()
    if any(key.startswith("base_model.") for key in places) and not _peft_settings(file):
        notes = (f"{file}: no {PEFT_CONFIG} beside it; alpha is taken to be the rank",)
    parts = {found.part for found in places.values()}
    return LoraOutline(
        file=file,
        families=families,
        parts=tuple(part for part in families[0].parts if part in parts),
        ranks=tuple(sorted(ranks)),
        is_dora=any(found.tensor == MAGNITUDE for found in places.values()),
        precisions=tuple(sorted({dtypes[key] for key in downs})),
        notes=notes,
    )


def recognise(
    file: Path, shapes: Mapping[str, Sequence[int]], header: Mapping[str, str]
) -> tuple[tuple[Family, ...], dict[str, Place]]:
    """Return the families that a file can be of, and what its keys mean in their vocabulary.

    Those that know the most of its layers, by name and height; of these, if one, the header's.

    Args:
        shapes: of all its tensors, by key.

    Raises:
        LoraFileError: a key is of no known vocabulary, or no family has them all; what the file
            seems to be, in one line.
    """
    found = {family: {key: place(key, family) for key in shapes} for family in FAMILIES}
    lost = [key for key in shapes if all(places[key] is None for places in found.values())]
    _refuse_lost(file, lost)
    fits: dict[Family, dict[str, Place]] = {}
    for family, places in found.items():
        known = {key: one for key, one in places.items() if one is not None}
        if len(known) == len(shapes) and any(p.part == family.parts[0] for p in known.values()):
            fits[family] = known
    if not fits:
        parts = {one.part for places in found.values() for one in places.values() if one}
        held = ", ".join(sorted(parts)) or "nothing"
        raise LoraFileError(f"{file}: adapts {held}, as no base model known here ({_TITLES})")
    counts = {family: _count_known(family, places, shapes) for family, places in fits.items()}
    best = [family for family, count in counts.items() if count == max(counts.values())]
    told = [f for f in best if any(header.get(key) == f.header[key] for key in _ARCHITECTURES)]
    families = tuple(told or best)
    return families, fits[families[0]]


def _count_known(
    family: Family, places: Mapping[str, Place], shapes: Mapping[str, Sequence[int]]
) -> int:
    """Count the layers that a family has under these names and with these heights."""
    widths = {p.layers: shapes[key][1] for key, p in places.items() if p.tensor == DOWN}
    count = 0
    for key, found in places.items():
        if found.tensor == UP and knows(family, found):
            height, width = family.height(found.layers), widths.get(found.layers)
            count += height is None or width is None or shapes[key][0] == height * width
    return count


def _refuse_lost(file: Path, lost: Sequence[str]) -> None:
    for pattern, meaning in _FOREIGN.items():
        for key in lost:
            if re.search(pattern, key):
                raise LoraFileError(f"{file}: {meaning} (it has {key!r})")
    if lost:
        raise LoraFileError(
            f"{file}: {lost[0]!r} is of no LoRA naming that is known here (diffusers, kohya, "
            f"ai-toolkit, PEFT for {_TITLES})"
        )


def _read(file: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return the shape and the precision of each tensor."""
    if not file.is_file():
        raise LoraFileError(f"{file}: no such file")
    if file.suffix in PICKLES:
        raise LoraFileError(
            f"{file}: a pickle, which can run code when it is opened, so it is not; save it as "
            "safetensors with the program that made it"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            shapes = {key: part.get_shape() for key, part in slices.items()}
            dtypes = {key: str(part.get_dtype()) for key, part in slices.items()}
    except SafetensorError as error:
        raise LoraFileError(f"{file}: not a safetensors file ({error})") from error
    return shapes, dtypes


def _refuse_older(
    file: Path, places: Mapping[str, Place], shapes: Mapping[str, Sequence[int]]
) -> None:
    for key, found in places.items():
        if found.part == UNET and found.tensor == DOWN and _CROSS_ATTENTION.search(found.layers[0]):
            version = _OLDER_WIDTHS.get(shapes[key][1])
            if version:
                raise LoraFileError(
                    f"{file}: a LoRA of Stable Diffusion {version}, whose text is "
                    f"{shapes[key][1]} wide; SDXL's is 2048, so they don't go together"
                )


def family_complaint(told: LoraOutline, pipeline: str, title: str) -> str | None:
    """Say in one line that a LoRA is for another base model than `title`, if it is.

    Args:
        pipeline: the exact name of the base model's pipeline class.
    """
    if any(family.pipeline == pipeline for family in told.families):
        return None
    return f"{told.file}: a LoRA of {told.families[0].title}, and the base model is {title}"


def file_header(file: Path) -> dict[str, str]:
    """Return the header of a safetensors file, as it is."""
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata() or {}


def read_header(file: Path) -> dict[str, Any]:
    """Return a LoRA's adapter settings by part, as {"unet.r": 32, ...}.

    They stand in the file's header, or for PEFT's files beside them; empty: nowhere.
    """
    return json.loads(file_header(file).get(ADAPTER_KEY, "{}")) or _peft_settings(file)


def _peft_settings(file: Path) -> dict[str, Any]:
    """Read the settings beside a PEFT file; they hold for whatever part it adapts."""
    config = file.with_name(PEFT_CONFIG)
    if not config.is_file():
        return {}
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        return {
            f"{part}.{key}": value
            for part in (UNET, TRANSFORMER)
            for key, value in settings.items()
        }
    except (ValueError, AttributeError) as error:
        raise LoraFileError(f"{config}: broken ({error})") from error
