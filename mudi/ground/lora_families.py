"""Whose a LoRA file is: the kinds of base model that have LoRAs, and their layers' names.

Three vocabularies name the layers: diffusers', the original one of each network (SDXL's
`input_blocks.4.1...`, FLUX's `double_blocks.0.img_attn.qkv`), and kohya's, which is either with its
dots made underscores. FLUX's original network has some of diffusers' layers fused into one.
Knows no torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

Rows = Mapping[str, tuple[str, ...]]
UNET, TRANSFORMER, CLIP, CLIP_2 = "unet", "transformer", "text_encoder", "text_encoder_2"

# How many of each there can be; real networks have no more, and a miniature less
_UNET_BLOCKS, _UNET_DEPTH, _FLUX_BLOCKS, _CLIP_LAYERS = 4, 12, 64, 48
SDXL_RESNETS = 2  # of a down block; the original's block numbers count them

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
_KLEIN_ENDS = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "final_layer.linear": ("proj_out",),
}
_KLEIN_DOUBLE = {
    **{old: news for old, news in _FLUX_DOUBLE.items() if "_attn" in old},
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_KLEIN_SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_ZIMAGE_ENDS = {
    "x_embedder": ("all_x_embedder.2-1",),
    "cap_embedder.1": ("cap_embedder.1",),
    "t_embedder.mlp.0": ("t_embedder.mlp.0",),
    "t_embedder.mlp.2": ("t_embedder.mlp.2",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}
_ZIMAGE_BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    **{n: (n,) for n in (*(f"feed_forward.w{i}" for i in (1, 2, 3)), "adaLN_modulation.0")},
}
_CLIP_LAYER = (
    *(f"self_attn.{layer}" for layer in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "mlp.fc1",
    "mlp.fc2",
)
TEXT_MODEL = "text_model."  # a level that transformers 5 dropped from CLIPTextModel; files have it


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
    yield from _two_streams(_FLUX_ENDS, _FLUX_DOUBLE, _FLUX_SINGLE)


def klein_names() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of FLUX.2-klein's layers, as `flux_names`."""
    yield from _two_streams(_KLEIN_ENDS, _KLEIN_DOUBLE, _KLEIN_SINGLE)


def _two_streams(ends: Rows, double: Rows, single: Rows) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ends.items()
    for i in range(_FLUX_BLOCKS):
        for old, news in double.items():
            yield f"double_blocks.{i}.{old}", tuple(f"transformer_blocks.{i}.{n}" for n in news)
        for old, news in single.items():
            layers = tuple(f"single_transformer_blocks.{i}.{n}" for n in news)
            yield f"single_blocks.{i}.{old}", layers


def zimage_names() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of Z-Image's layers: the original's, and diffusers' that it stands for."""
    yield from _ZIMAGE_ENDS.items()
    for i in range(_FLUX_BLOCKS):
        for stack in ("layers", "noise_refiner", "context_refiner"):
            for old, news in _ZIMAGE_BLOCK.items():
                yield f"{stack}.{i}.{old}", tuple(f"{stack}.{i}.{n}" for n in news)


def clip_names(part: str) -> Iterator[str]:
    """Yield the names of a text encoder's layers in today's transformers."""
    level = TEXT_MODEL if part == CLIP_2 else ""
    for i in range(_CLIP_LAYERS):
        for layer in _CLIP_LAYER:
            yield f"{level}encoder.layers.{i}.{layer}"
    if part == CLIP_2:
        yield "text_projection"


def sdxl_names() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of SDXL's layers as `Family.names` has them."""
    return ((old, (new,)) for new, old in unet_names())


@dataclass(frozen=True, eq=False)
class Family:
    """The LoRAs of one kind of base model.

    Attributes:
        title: as people write it.
        pipeline: the exact name of its pipeline's class in diffusers.
        denoiser: that of the class that always is adapted.
        parts: of the pipeline, which can be adapted, the denoiser first.
        names: yields the denoiser's layers, (original name, diffusers' that it stands for).
        header: how the readers' headers call the base model.
        heights: outputs of some layers as a multiple of their inputs, by the end of diffusers'
            names: what tells a layer from another family's of the same original name.
    """

    title: str
    pipeline: str
    denoiser: str
    parts: tuple[str, ...]
    names: Callable[[], Iterator[tuple[str, tuple[str, ...]]]]
    header: Mapping[str, str]
    heights: Mapping[str, int] = field(default_factory=dict)

    def height(self, layers: tuple[str, ...]) -> int | None:
        """Return the outputs of layers, one below the other, for each input; None: unknown."""
        found = [n for layer in layers for end, n in self.heights.items() if layer.endswith(end)]
        return len(layers) - len(found) + sum(found) if found else None


FAMILIES = (
    Family(
        title="SDXL",
        pipeline="StableDiffusionXLPipeline",
        denoiser="UNet2DConditionModel",
        parts=(UNET, CLIP, CLIP_2),
        names=sdxl_names,
        header={
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_network_module": "networks.lora",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        },
    ),
    Family(
        title="FLUX",
        pipeline="FluxPipeline",
        denoiser="FluxTransformer2DModel",
        parts=(TRANSFORMER, CLIP),
        names=flux_names,
        header={
            "ss_base_model_version": "flux1",
            "ss_network_module": "networks.lora_flux",
            "modelspec.architecture": "flux-1-dev/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        },
        heights={"proj_mlp": 4, "ff.net.0.proj": 4, "ff_context.net.0.proj": 4},
    ),
    Family(
        title="FLUX.2-klein",
        pipeline="Flux2KleinPipeline",
        denoiser="Flux2Transformer2DModel",
        parts=(TRANSFORMER,),
        names=klein_names,
        header={
            "ss_base_model_version": "flux2_klein_4b",
            "ss_network_module": "networks.lora_flux",
            "modelspec.architecture": "flux-2-klein-4b/lora",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        },
        heights={"to_qkv_mlp_proj": 9, "ff.linear_in": 6, "ff_context.linear_in": 6},
    ),
    Family(
        title="Z-Image",
        pipeline="ZImagePipeline",
        denoiser="ZImageTransformer2DModel",
        parts=(TRANSFORMER,),
        names=zimage_names,
        header={
            "ss_base_model_version": "z_image",
            "ss_network_module": "networks.lora_zimage",
            "modelspec.architecture": "Z-Image/lora",
            "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
        },
    ),
)


def family_of(**names: str) -> Family:
    """Return the family with exactly this `pipeline` or `denoiser`.

    Raises:
        ValueError: there is none.
    """
    for family in FAMILIES:
        if all(getattr(family, key) == name for key, name in names.items()):
            return family
    raise ValueError(f"no LoRAs are known of a {' '.join(names.values())}")
