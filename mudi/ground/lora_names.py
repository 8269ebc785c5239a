"""All names that LoRA files use, and what they mean. Knows no torch.

A `Place` says it in this package's own words: part of the pipeline, layers of it by their names in
today's diffusers and transformers, PEFT's name of the tensor. `place` reads any key;
`diffusers_key` and `kohya_layers` are its inverse.

Three vocabularies name the layers themselves: diffusers', the original one of each network (SDXL's
`input_blocks.4.1...`, FLUX's `double_blocks.0.img_attn.qkv`), and kohya's, which is either with its
dots made underscores. FLUX's original network has some of diffusers' layers fused into one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

UNET, TRANSFORMER, CLIP, CLIP_2 = "unet", "transformer", "text_encoder", "text_encoder_2"
PARTS = (UNET, TRANSFORMER, CLIP, CLIP_2)
DORA_RANK, DORA_ERROR = 128, 0.1  # of the plain LoRA that comes near a DoRA, and what it may lose
DOWN, UP, MAGNITUDE, ALPHA = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "alpha"

# How many of each there can be; real networks have no more, and a miniature less
_UNET_BLOCKS, _UNET_DEPTH, _FLUX_BLOCKS, _CLIP_LAYERS = 4, 12, 64, 48
SDXL_RESNETS = 2  # of a down block; the original's block numbers count them

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

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER_BLOCK = (
    *(f"attn{n}.{layer}" for n in (1, 2) for layer in _ATTENTION),
    "ff.net.0.proj",
    "ff.net.2",
)
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
# FLUX's original layers and the diffusers layers that each is, stacked along the output.
_FLUX_ENDS = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
_FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_CLIP_LAYER = (
    *(f"self_attn.{layer}" for layer in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "mlp.fc1",
    "mlp.fc2",
)
_TEXT_MODEL = "text_model."  # a level that transformers 5 dropped from CLIPTextModel; files have it
_KOHYA_CLIPS = {"lora_te1_": CLIP, "lora_te2_": CLIP_2}


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


def place(key: str) -> Place | None:
    """Return what a key of a LoRA file means; None if it is of no known vocabulary."""
    for suffix, tensor in _TENSORS.items():
        if key.endswith(f".{suffix}"):
            found = _layers(key.removesuffix(f".{suffix}"))
            return found and Place(*found, tensor)
    return None


def _layers(name: str) -> tuple[str, tuple[str, ...]] | None:
    if name.startswith("lora_"):
        return _kohya_table().get(name)
    name = name.removeprefix("base_model.model.")  # PEFT's, which does not say of which part
    part, _, rest = name.partition(".")
    if part in PARTS and rest:
        rest = rest.removeprefix("base_model.model.")
        return part, (rest.removeprefix(_TEXT_MODEL) if part == CLIP else rest,)
    return _bare_table().get(name.removeprefix("diffusion_model."))


def diffusers_key(part: str, layer: str, tensor: str) -> str:
    """Return the key under which diffusers' trainers save a tensor, and its loaders look for it."""
    return f"{part}.{_in_files(part, layer)}.{_WRITTEN[part][tensor]}"


def kohya_layers(
    part: str, layers: Iterable[str], original: bool = True
) -> dict[str, tuple[str, ...]]:
    """Return kohya's names for layers, with the layers that each stands for.

    Args:
        layers: of the part.
        original: name a UNet's layers as SDXL's original code does, which all readers know; False
            for a miniature of another number of layers, which can have diffusers' names only.

    Returns:
        All layers of a fused one, also those that `layers` lacks.

    Raises:
        ValueError: kohya's files have no name for a layer.
    """
    table = _inverse(part, original)
    lost = [layer for layer in layers if layer not in table]
    if lost:
        raise ValueError(f"no kohya name for the layer {part}.{lost[0]}")
    return dict(table[layer] for layer in layers)


@lru_cache
def _inverse(part: str, original: bool) -> dict[str, tuple[str, tuple[str, ...]]]:
    rows: Iterable[tuple[str, tuple[str, ...]]]
    if part == UNET:
        rows = ((old if original else new, (new,)) for new, old in unet_names())
    elif part == TRANSFORMER:
        rows = flux_names()
    else:
        rows = ((_in_files(part, layer), (layer,)) for layer in clip_names(part))
    prefix = {CLIP: "lora_te1", CLIP_2: "lora_te2"}.get(part, "lora_unet")
    return {new: (_flat(prefix, old), layers) for old, layers in rows for new in layers}


@lru_cache
def _kohya_table() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Kohya's names in both vocabularies, and OneTrainer's for FLUX."""
    table: dict[str, tuple[str, tuple[str, ...]]] = {}
    for new, old in unet_names():
        table[_flat("lora_unet", new)] = table[_flat("lora_unet", old)] = UNET, (new,)
    for old, layers in flux_names():
        table[_flat("lora_unet", old)] = TRANSFORMER, layers
        for new in layers:
            for prefix in ("lora_unet", "lora_transformer"):
                table[_flat(prefix, new)] = TRANSFORMER, (new,)
    for prefix, part in _KOHYA_CLIPS.items():
        for layer in clip_names(part):
            table[prefix + _in_files(part, layer).replace(".", "_")] = part, (layer,)
    return table


@lru_cache
def _bare_table() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Layers whose part nothing but their names tells."""
    table: dict[str, tuple[str, tuple[str, ...]]] = {}
    for new, old in unet_names():
        table[new] = table[old] = UNET, (new,)
    for old, layers in flux_names():
        table[old] = TRANSFORMER, layers
        table |= {new: (TRANSFORMER, (new,)) for new in layers}
    return table


def _flat(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('.', '_')}"


def _in_files(part: str, layer: str) -> str:
    """Return a layer's name with the level that today's first text encoder lacks."""
    return f"{_TEXT_MODEL}{layer}" if part == CLIP else layer


def unet_names() -> Iterator[tuple[str, str]]:
    """Yield the names of SDXL's layers, (diffusers', original)."""
    for i in range(_UNET_BLOCKS):
        first = (SDXL_RESNETS + 1) * i
        for j in range(SDXL_RESNETS):
            yield from _unet_layer(f"down_blocks.{i}", j, f"input_blocks.{first + j + 1}")
        yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{first + 3}.0.op"
        for j in range(SDXL_RESNETS + 1):
            yield from _unet_layer(f"up_blocks.{i}", j, f"output_blocks.{first + j}")
        yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{first + 2}.2.conv"
    yield from _attention("mid_block.attentions.0", "middle_block.1")
    for j in range(2):
        yield from _resnet(f"mid_block.resnets.{j}", f"middle_block.{2 * j}")
    yield from _UNET_ENDS.items()


def _unet_layer(block: str, j: int, original: str) -> Iterator[tuple[str, str]]:
    yield from _resnet(f"{block}.resnets.{j}", f"{original}.0")
    yield from _attention(f"{block}.attentions.{j}", f"{original}.1")


def _resnet(new: str, old: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in _RESNET.items():
        yield f"{new}.{ours}", f"{old}.{theirs}"


def _attention(new: str, old: str) -> Iterator[tuple[str, str]]:
    inside = [f"transformer_blocks.{k}.{n}" for k in range(_UNET_DEPTH) for n in _TRANSFORMER_BLOCK]
    for name in ("proj_in", "proj_out", *inside):
        yield f"{new}.{name}", f"{old}.{name}"


def flux_names() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of FLUX's layers: the original's, and diffusers' that it stands for."""
    yield from _FLUX_ENDS.items()
    for i in range(_FLUX_BLOCKS):
        for old, news in _FLUX_DOUBLE.items():
            yield f"double_blocks.{i}.{old}", tuple(f"transformer_blocks.{i}.{n}" for n in news)
        for old, news in _FLUX_SINGLE.items():
            layers = tuple(f"single_transformer_blocks.{i}.{n}" for n in news)
            yield f"single_blocks.{i}.{old}", layers


def clip_names(part: str) -> Iterator[str]:
    """Yield the names of a text encoder's layers in today's transformers."""
    level = _TEXT_MODEL if part == CLIP_2 else ""
    for i in range(_CLIP_LAYERS):
        for layer in _CLIP_LAYER:
            yield f"{level}encoder.layers.{i}.{layer}"
    if part == CLIP_2:
        yield "text_projection"
