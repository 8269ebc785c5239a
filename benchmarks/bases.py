"""Base models in three sizes, none of which is downloaded.

tiny: random, some 1 M parameters. mini: the trained miniature for SDXL, random networks of its
size for the others. real: the published shapes with random weights, built on the device.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from benchmarks.common import ROOT
from benchmarks.parts import swapped
from benchmarks.published import (
    FLUX,
    FLUX_SCHEDULER,
    KLEIN,
    KLEIN_SCHEDULER,
    SDXL,
    SDXL_SCHEDULER,
    ZIMAGE,
    ZIMAGE_SCHEDULER,
    Network,
)
from mini.tiny import (
    FAMILIES,
    FLUX_CHANNELS,
    TEXT_WIDTH,
    clip_tokenizer,
    qwen_tokenizer,
    t5_tokenizer,
    tiny_flux,
    tiny_klein,
    tiny_zimage,
)
from mudi.backbones import parts, table
from mudi.pictures.pipelines import default_dtype, load_pipeline

MINIATURE = ROOT / "mini/weights/sdxl"


def mini_flux() -> FluxPipeline:
    """Build a random FLUX with a transformer about as large as the miniature's UNet."""
    pipeline = tiny_flux()
    pipeline.transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * FLUX_CHANNELS,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    return pipeline


def mini_klein() -> Flux2KleinPipeline:
    """Build a random FLUX.2-klein with a transformer about as large as the miniature's UNet."""
    pipeline = tiny_klein()
    config = dict(pipeline.transformer.config)
    wider: dict[str, Any] = {"num_layers": 4, "num_single_layers": 8, "attention_head_dim": 32}
    wider |= {"num_attention_heads": 4, "axes_dims_rope": (8, 8, 8, 8)}
    pipeline.transformer = Flux2Transformer2DModel.from_config({**config, **wider})
    return pipeline


def mini_zimage() -> ZImagePipeline:
    """Build a random Z-Image with a transformer about as large as the miniature's UNet."""
    pipeline = tiny_zimage()
    wider = {"dim": 192, "n_layers": 8, "n_heads": 6, "n_kv_heads": 6, "axes_dims": (8, 12, 12)}
    config = {**pipeline.transformer.config, **wider}
    pipeline.transformer = ZImageTransformer2DModel.from_config(config)
    return pipeline


@dataclass(frozen=True)
class Light:
    """What a family's pipelines have besides networks.

    Attributes:
        tokenizers: makes small ones: other numbers for the words, but as many a prompt.
        mini: makes a random pipeline about as large as the miniature; None: the miniature itself.
    """

    tokenizers: Callable[[], dict[str, Any]]
    scheduler: Any
    mini: Callable[[], Any] | None


def _two_clips() -> dict[str, Any]:
    return dict.fromkeys(("tokenizer", "tokenizer_2"), clip_tokenizer())


def _clip_and_t5() -> dict[str, Any]:
    return {"tokenizer": clip_tokenizer(), "tokenizer_2": t5_tokenizer()}


def _qwen() -> dict[str, Any]:
    return {"tokenizer": qwen_tokenizer()}


PUBLISHED: dict[str, dict[str, Network]] = {
    "sdxl": SDXL,
    "flux": FLUX,
    "klein": KLEIN,
    "zimage": ZIMAGE,
}
LIGHT = {
    "sdxl": Light(_two_clips, SDXL_SCHEDULER, None),
    "flux": Light(_clip_and_t5, FLUX_SCHEDULER, mini_flux),
    "klein": Light(_qwen, KLEIN_SCHEDULER, mini_klein),
    "zimage": Light(_qwen, ZIMAGE_SCHEDULER, mini_zimage),
}


@contextmanager
def base_model(family: str, size: str, device: torch.device) -> Iterator[str]:
    """Give what --pretrained_model_name_or_path is to be, for as long as it can be loaded.

    At size real that folder holds no weights: the backbone's loaders build them meanwhile.
    """
    mini = LIGHT[family].mini
    if size == "mini" and mini is None:
        yield str(MINIATURE)
        return
    with TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        if size == "real":
            write_light_parts(family, Path(folder))
            loaders = random_loaders(family, PUBLISHED[family], device)
            stack.enter_context(swapped(parts, **loaders))
        else:
            build = mini if mini and size == "mini" else FAMILIES[family]
            build().save_pretrained(folder)
        yield folder


def pipeline_of(family: str, size: str, device: torch.device) -> Any:
    """Return a whole pipeline on the device, for making pictures."""
    if size != "real":
        with base_model(family, size, device) as base:
            return load_pipeline(base, device=device).to(device)
    dtype = default_dtype(table.BACKBONES[family], device)
    networks = PUBLISHED[family]
    made = {name: random_network(network, device, dtype) for name, network in networks.items()}
    pipeline = light_pipeline(family, **made)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_network(network: Network, device: torch.device, dtype: torch.dtype) -> Any:
    """Build a network with random weights, without a copy of it in host memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            if isinstance(network.config, Mapping):
                model = network.kind.from_config(network.config)
            else:
                model = network.kind(network.config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def light_pipeline(family: str, **networks: Any) -> Any:
    """Return a pipeline with small tokenizers, a scheduler, and the given networks only."""
    light, kind = LIGHT[family], table.BACKBONES[family].pipeline_class
    nothing = dict.fromkeys(PUBLISHED[family])
    return kind(**{**nothing, **networks}, **light.tokenizers(), scheduler=light.scheduler)


def write_light_parts(family: str, folder: Path) -> None:
    """Write a pipeline folder without weights."""
    light_pipeline(family).save_pretrained(folder)


def random_loaders(
    family: str, networks: Mapping[str, Network], device: torch.device
) -> dict[str, Callable]:
    """Return stand-ins for the loaders of mudi.backbones.parts, by their names there."""
    load_real = parts.load_part

    def load_text_pipeline(
        kind: Any, base: str, dtype: torch.dtype, without: tuple[str, ...], **hub: Any
    ) -> Any:
        names = [name for name in networks if name not in without]
        return light_pipeline(
            family, **{name: random_network(networks[name], device, dtype) for name in names}
        )

    def load_part(
        kind: Any,
        base: str,
        subfolder: str | None,
        dtype: torch.dtype,
        quantize: str = "none",
        **hub: Any,
    ) -> Any:
        network = random_network(networks[subfolder or "vae"], device, dtype)
        if quantize == "none":
            return network
        with TemporaryDirectory(prefix="bench-") as folder:  # weights are quantized while loaded
            network.save_pretrained(f"{folder}/{subfolder}")
            del network
            return load_real(kind, folder, subfolder, dtype, quantize, **hub)

    return {"load_text_pipeline": load_text_pipeline, "load_part": load_part}
