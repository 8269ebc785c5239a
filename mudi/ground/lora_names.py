"""All names that LoRA files use, and what they mean. Knows no torch.

A `Place` says it in this package's own words: part of the pipeline, layers of it by their names in
today's diffusers and transformers, PEFT's name of the tensor. `place` reads any key;
`diffusers_key` and `kohya_layers` are its inverse. The layers' names: `lora_families`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from mudi.ground.lora_families import (
    CLIP,
    CLIP_2,
    FAMILIES,
    TEXT_MODEL,
    TRANSFORMER,
    UNET,
    Family,
    clip_names,
)

PARTS = (UNET, TRANSFORMER, CLIP, CLIP_2)
DORA_RANK, DORA_ERROR = 128, 0.1  # of the plain LoRA that comes near a DoRA, and what it may lose
DOWN, UP, MAGNITUDE, ALPHA = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "alpha"

# What files call a layer's tensors; the first of each is how diffusers' trainers write it.
_TENSORS = {
    "lora.down.weight": DOWN,
    "lora.up.weight": UP,
    "lora_linear_layer.down.weight": DOWN,
    "lora_linear_layer.up.weight": UP,
    "lora_down.weight": DOWN,
    "lora_up.weight": UP,
    "lora_A.default.weight": DOWN,
    "lora_B.default.weight": UP,
    DOWN: DOWN,
    UP: UP,
    f"{MAGNITUDE}.default.weight": MAGNITUDE,
    f"{MAGNITUDE}.weight": MAGNITUDE,
    MAGNITUDE: MAGNITUDE,
    ALPHA: ALPHA,
}
_WRITTEN = {  # by diffusers' trainers, and as its loaders want magnitudes
    UNET: {DOWN: "lora.down.weight", UP: "lora.up.weight", MAGNITUDE: MAGNITUDE},
    TRANSFORMER: {DOWN: DOWN, UP: UP, MAGNITUDE: MAGNITUDE},
    CLIP: {
        DOWN: "lora_linear_layer.down.weight",
        UP: "lora_linear_layer.up.weight",
        # without .weight it is passed over, and the norms of the base's weights taken instead
        MAGNITUDE: f"{MAGNITUDE}.weight",
    },
}
_WRITTEN[CLIP_2] = _WRITTEN[CLIP]

_KOHYA_CLIPS = {CLIP: "lora_te1", CLIP_2: "lora_te2"}
_KOHYA_DENOISERS = ("lora_unet", "lora_transformer")  # the second is OneTrainer's


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file belongs.

    Attributes:
        part: of the pipeline, one of PARTS.
        layers: by today's names in diffusers or transformers; several where the file has them
            fused, in the order in which their outputs are stacked.
        tensor: DOWN, UP, MAGNITUDE or ALPHA.
    """

    part: str
    layers: tuple[str, ...]
    tensor: str


def place(key: str, family: Family | None = None) -> Place | None:
    """Return what a key of a LoRA file means; None if it is of no known vocabulary.

    Args:
        family: whose vocabulary; None: any, the first that has the key.
    """
    for suffix, tensor in _TENSORS.items():
        if key.endswith(f".{suffix}"):
            name = key.removesuffix(f".{suffix}")
            for known in FAMILIES if family is None else (family,):
                if found := _layers(name, known):
                    return Place(*found, tensor)
            return None
    return None


def _layers(name: str, family: Family) -> tuple[str, tuple[str, ...]] | None:
    if name.startswith("lora_"):
        return _kohya_table(family).get(name)
    name = name.removeprefix("base_model.model.")  # PEFT's, which does not say of which part
    part, _, rest = name.partition(".")
    if part in family.parts and rest:
        rest = rest.removeprefix("base_model.model.")
        return part, (rest.removeprefix(TEXT_MODEL) if part == CLIP else rest,)
    return _bare_table(family).get(name.removeprefix("diffusion_model."))


def knows(family: Family, found: Place) -> bool:
    """Say whether a family has the layers of a place, whatever vocabulary named them."""
    known = _inverse(family, found.part)
    return all(layer in known for layer in found.layers)


def likely(states: Mapping[str, Iterable[str]]) -> Family:
    """Return the family that knows the most of layers by part; of several the first.

    Raises:
        ValueError: none has these parts.
    """
    fits = [family for family in FAMILIES if set(states) <= set(family.parts)]
    if not fits:
        raise ValueError(f"no base model that is known has the parts {', '.join(states)}")

    def count(family: Family) -> int:
        return sum(
            knows(family, Place(part, (layer,), DOWN))
            for part, layers in states.items()
            for layer in layers
        )

    return max(fits, key=count)


def diffusers_key(part: str, layer: str, tensor: str) -> str:
    """Return the key under which diffusers' trainers save a tensor, and its loaders look for it."""
    return f"{part}.{_in_files(part, layer)}.{_WRITTEN[part][tensor]}"


def kohya_layers(
    part: str, layers: Iterable[str], original: bool = True, family: Family | None = None
) -> dict[str, tuple[str, ...]]:
    """Return kohya's names for layers, with the layers that each stands for.

    Args:
        layers: of the part.
        original: name a denoiser's layers as its original code does, which all readers know; False
            for a miniature of another number of layers, which can have diffusers' names only.
        family: None: that of the layers; see `likely`.

    Returns:
        All layers of a fused one, also those that `layers` lacks.

    Raises:
        ValueError: kohya's files have no name for a layer.
    """
    layers = list(layers)
    table = _inverse(family or likely({part: layers}), part, original)
    lost = [layer for layer in layers if layer not in table]
    if lost:
        raise ValueError(f"no kohya name for the layer {part}.{lost[0]}")
    return dict(table[layer] for layer in layers)


@lru_cache
def _inverse(
    family: Family, part: str, original: bool = True
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return kohya's name of each layer, with the layers that it stands for."""
    if part in _KOHYA_CLIPS:
        prefix = _KOHYA_CLIPS[part]
        return {n: (_flat(prefix, _in_files(part, n)), (n,)) for n in clip_names(part)}
    rows = list(family.names())
    if not original:
        rows = [(new, (new,)) for _, layers in rows for new in layers]
    return {n: (_flat(_KOHYA_DENOISERS[0], old), layers) for old, layers in rows for n in layers}


@lru_cache
def _kohya_table(family: Family) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Kohya's names in both vocabularies, and OneTrainer's."""
    table: dict[str, tuple[str, tuple[str, ...]]] = {}
    denoiser, *encoders = family.parts
    for old, layers in family.names():
        table[_flat(_KOHYA_DENOISERS[0], old)] = denoiser, layers
        for new in layers:
            for prefix in _KOHYA_DENOISERS:
                table[_flat(prefix, new)] = denoiser, (new,)
    for part in encoders:
        for layer, (name, _) in _inverse(family, part).items():
            table[name] = part, (layer,)
    return table


@lru_cache
def _bare_table(family: Family) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Layers whose part nothing but their names tells."""
    table: dict[str, tuple[str, tuple[str, ...]]] = {}
    for old, layers in family.names():
        table[old] = family.parts[0], layers
        table |= {new: (family.parts[0], (new,)) for new in layers}
    return table


def _flat(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('.', '_')}"


def _in_files(part: str, layer: str) -> str:
    """Return a layer's name with the level that today's first text encoder lacks."""
    return f"{TEXT_MODEL}{layer}" if part == CLIP else layer
