"""Base models in three sizes, none of which is downloaded.

tiny: random, some 1 M parameters. mini: the trained miniature for SDXL, a random network of its
size for FLUX. real: the published shapes with random weights, built on the device.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, StableDiffusionXLPipeline

from benchmarks.common import BACKBONES, ROOT
from benchmarks.parts import swapped
from benchmarks.published import FLUX, FLUX_SCHEDULER, SDXL, SDXL_SCHEDULER, Network
from mini.tiny import FAMILIES, FLUX_CHANNELS, TEXT_WIDTH, clip_tokenizer, t5_tokenizer, tiny_flux
from mudi.backbones import flux, table
from mudi.pictures.pipelines import default_dtype, load_pipeline

PUBLISHED: dict[str, dict[str, Network]] = {"sdxl": SDXL, "flux": FLUX}
MINIATURE = ROOT / "mini/weights/sdxl"


@contextmanager
def base_model(family: str, size: str, device: torch.device) -> Iterator[str]:
    """Give what --pretrained_model_name_or_path is to be, for as long as it can be loaded.

    At size real that folder holds no weights: the backbone's loaders build them meanwhile.
    """
    if (family, size) == ("sdxl", "mini"):
        yield str(MINIATURE)
        return
    with TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        if size == "real":
            write_light_parts(family, Path(folder))
            loaders = random_loaders(family, PUBLISHED[family], device)
            stack.enter_context(swapped(BACKBONES[family], **loaders))
        else:
            build = mini_flux if size == "mini" else FAMILIES[family]
            build().save_pretrained(folder)
        yield folder


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


def pipeline_of(family: str, size: str, device: torch.device) -> Any:
    """Return a whole pipeline on the device, for making pictures."""
    if size != "real":
        with base_model(family, size, device) as base:
            return load_pipeline(base, device=device).to(device)
    dtype = default_dtype(table.BACKBONES[family], device)
    networks = PUBLISHED[family]
    parts = {name: random_network(network, device, dtype) for name, network in networks.items()}
    pipeline = light_pipeline(family, **parts)
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


def light_pipeline(family: str, **parts: Any) -> Any:
    """Return a pipeline with tokenizers and scheduler, and of the networks the given parts only.

    The tokenizers are small ones: they make other numbers of the words, but as many a prompt.
    """
    clip = clip_tokenizer()
    if family == "sdxl":
        kind, tokenizers = StableDiffusionXLPipeline, {"tokenizer": clip, "tokenizer_2": clip}
    else:
        kind, tokenizers = FluxPipeline, {"tokenizer": clip, "tokenizer_2": t5_tokenizer()}
    scheduler = {"sdxl": SDXL_SCHEDULER, "flux": FLUX_SCHEDULER}[family]
    networks = dict.fromkeys(PUBLISHED[family])
    return kind(**{**networks, **parts}, **tokenizers, scheduler=scheduler)


def write_light_parts(family: str, folder: Path) -> None:
    """Write a pipeline folder without weights."""
    light_pipeline(family).save_pretrained(folder)


def random_loaders(
    family: str, networks: Mapping[str, Network], device: torch.device
) -> dict[str, Callable]:
    """Return stand-ins for the loaders of mudi.backbones.sdxl or .flux, by their names there."""

    def load_text_pipeline(base: str, dtype: torch.dtype, **hub: Any) -> Any:
        names = ("text_encoder", "text_encoder_2")
        encoders = {name: random_network(networks[name], device, dtype) for name in names}
        return light_pipeline(family, **encoders)

    def load_unet(base: str, dtype: torch.dtype, quantize: str = "none", **hub: Any) -> Any:
        return random_network(networks["unet"], device, dtype)

    def load_sdxl_vae(base: str, half_safe: str | None, dtype: torch.dtype, **hub: Any) -> Any:
        return random_network(networks["vae"], device, dtype if half_safe else torch.float32)

    def load_flux_vae(base: str, **hub: Any) -> Any:
        return random_network(networks["vae"], device, torch.float32)

    load_real_transformer = flux.load_transformer

    def load_transformer(base: str, dtype: torch.dtype, quantize: str = "none", **hub: Any) -> Any:
        transformer = random_network(networks["transformer"], device, dtype)
        if quantize == "none":
            return transformer
        with TemporaryDirectory(prefix="bench-") as folder:  # weights are quantized while loaded
            transformer.save_pretrained(f"{folder}/transformer")
            del transformer
            return load_real_transformer(folder, dtype, quantize, **hub)

    if family == "sdxl":
        return {
            "load_text_pipeline": load_text_pipeline,
            "load_unet": load_unet,
            "load_vae": load_sdxl_vae,
        }
    return {
        "load_text_pipeline": load_text_pipeline,
        "load_transformer": load_transformer,
        "load_vae": load_flux_vae,
    }
