"""Make the miniature's picture in ComfyUI and by diffusers, and compare them.

    python tests/by_hand/comfyui_picture.py COMFYUI

COMFYUI is a checkout, and Python one that has its requirements and ours. The denoiser is ComfyUI's
own code with the miniature's weights and a random LoRA's, which ComfyUI's loader reads from the
kohya file; noise and layout come from our nodes, steps and guidance from ComfyUI. The miniature is
too small for ComfyUI's text encoders and VAE: prompts are encoded, and pictures decoded, by
diffusers for both.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from comfyui_loras import SDXL_UNET
from comfyui_noise import GAMMA, LAYOUT, PHOTOS, PROMPT, ROOT, SEED, called, load_comfyui
from safetensors.torch import load_file
from torch import Tensor

SIDE, GUIDANCE, RANK = 128, 5.0, 4
STEPS = 50  # a divisor of 1000: ddim_uniform then takes the steps of diffusers' own schedule
SCALE = 0.13025  # ComfyUI's, of SDXL latents


class MiniatureVae:
    """The miniature's VAE as ComfyUI's nodes see one."""

    def __init__(self, vae: Any):
        self.vae = vae

    def encode(self, pixels: Tensor) -> Tensor:
        from mudi.latents import encode_images

        return encode_images(self.vae, (pixels * 255).round().to(torch.uint8), None) / SCALE


def random_lora(unet: Any, folder: Path) -> tuple[Path, Path]:
    """Write a LoRA for the network's attention, in diffusers' names and in kohya's."""
    from mudi.lora import ATTENTION_TARGETS
    from mudi.lora_files import write_diffusers, write_kohya

    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, module in unet.named_modules():
        if name.endswith(tuple(ATTENTION_TARGETS)):
            height, width = module.weight.shape
            state[f"{name}.lora_A.weight"] = torch.randn(RANK, width, generator=generator) / 10
            state[f"{name}.lora_B.weight"] = torch.randn(height, RANK, generator=generator) / 10
    diffusers = write_diffusers(folder / "diffusers.safetensors", {"unet": state}, {})
    return diffusers, write_kohya(folder / "kohya.safetensors", {"unet": state}, original=False)


def comfyui_model(unet: Any, lora: Path) -> Any:
    """Return ComfyUI's MODEL with a diffusers network's weights and a LoRA's."""
    import comfy.sd
    import comfy.utils
    from comfy import model_patcher, supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    given = unet.config
    config = SDXL_UNET | {
        "model_channels": given.block_out_channels[0],
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1],
        "context_dim": given.cross_attention_dim,
        "adm_in_channels": given.projection_class_embeddings_input_dim,
    }
    cpu = torch.device("cpu")
    kind = supported_models.SDXL(config)
    head = given.block_out_channels[0] // given.attention_head_dim[0]
    kind.unet_config["num_head_channels"] = head  # after SDXL's own, 64, is put there
    network = kind.get_model({}, device=cpu)
    network.embedder = Timestep(given.addition_time_embed_dim)
    table = comfy.utils.unet_to_diffusers(config)
    weights = {table[key]: value for key, value in unet.state_dict().items()}
    network.diffusion_model.load_state_dict(weights, strict=True)
    for module in network.diffusion_model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = given.norm_num_groups  # ComfyUI knows 32 only
    network.eval()
    patcher = model_patcher.ModelPatcher(network, cpu, cpu)
    return comfy.sd.load_lora_for_models(patcher, None, load_file(lora), 1.0, 0.0)[0]


def comfyui_picture(library: dict[str, Any], pipeline: Any, model: Any) -> Tensor:
    """Sample as the SDXL example does; return z (1, 4, h, w)."""
    words, avoided, pooled, avoided_pooled = pipeline.encode_prompt(PROMPT)
    more = {"width": SIDE, "height": SIDE}
    positive = [[words, {"pooled_output": pooled, **more}]]
    negative = [[avoided, {"pooled_output": avoided_pooled, **more}]]
    given: dict[str, Any] = {}
    for number, name in enumerate(("a00", "b00"), 1):
        given[f"image_{number}"] = library["LoadImage"]().load_image(f"{name}.jpg")[0]
        [given[f"mask_{number}"]] = library["LoadImageMask"]().load_image(f"mask_{name}.png", "red")
    picture, masks = library["MuDICollage"]().compose(SIDE, SIDE, LAYOUT, 0, "white", **given)
    sigmas = called(library, "BasicScheduler", model, "ddim_uniform", STEPS, 1.0)
    vae = MiniatureVae(pipeline.vae)
    settings = (str(GAMMA), SEED, "float32", sigmas)
    noise = called(library, "MuDIMeanShiftedNoise", model, vae, picture, masks, *settings)
    guider = called(library, "CFGGuider", model, positive, negative, GUIDANCE)
    euler = called(library, "KSamplerSelect", "euler")
    side = SIDE // pipeline.vae_scale_factor
    empty = {"samples": torch.zeros(1, 4, side, side)}
    made = called(library, "SamplerCustomAdvanced", noise, guider, euler, sigmas, empty)
    return made["samples"] * SCALE


def diffusers_picture(pipeline: Any) -> Tensor:
    """Sample as inference.py does; return z (1, 4, h, w)."""
    from comfyui.layout_json import parse_layout
    from mudi.metadata import load_subjects
    from mudi.pictures.sampling import Sampler, Sampling, Shot

    subjects = load_subjects(PHOTOS)
    layout = parse_layout(LAYOUT, list(subjects.names.values()))
    sampler = Sampler(pipeline, Sampling((SIDE, SIDE), STEPS, GUIDANCE), subjects)
    noise = sampler.noise(Shot(PROMPT, SEED, GAMMA, layout))
    return pipeline(
        PROMPT,
        width=SIDE,
        height=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise,
        output_type="latent",
    ).images


def decoded(pipeline: Any, latents: Tensor) -> np.ndarray:
    """Decode z as the pipeline does: (H, W, 3) in 0..255."""
    vae = pipeline.vae
    mean, std = (
        torch.tensor(values).view(1, 4, 1, 1) if values else torch.tensor(default)
        for values, default in ((vae.config.latents_mean, 0.0), (vae.config.latents_std, 1.0))
    )
    pixels = vae.decode(latents * std / vae.config.scaling_factor + mean).sample
    return np.asarray(pipeline.image_processor.postprocess(pixels)[0]).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", type=Path)
    library = load_comfyui(parser.parse_args().comfyui)
    from diffusers import StableDiffusionXLPipeline

    from mudi.pictures.loras import load_loras

    pipeline = StableDiffusionXLPipeline.from_pretrained(ROOT / "mini" / "weights" / "sdxl")
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), TemporaryDirectory() as folder:
        plain = diffusers_picture(pipeline)
        diffusers_lora, kohya_lora = random_lora(pipeline.unet, Path(folder))
        theirs = comfyui_picture(library, pipeline, comfyui_model(pipeline.unet, kohya_lora))
        load_loras(pipeline, [str(diffusers_lora)], [1.0], None)
        ours = diffusers_picture(pipeline)
        pictures = [decoded(pipeline, latents) for latents in (theirs, ours, plain)]
    largest = float(ours.abs().max())
    for name, latents, picture in (
        ("ComfyUI", theirs, pictures[0]),
        ("diffusers without the LoRA", plain, pictures[2]),
    ):
        error = float((latents - ours).abs().max()) / largest
        off = np.abs(picture - pictures[1])
        print(f"{name} against diffusers: latents {error:.1e} of the largest, pixels at most "
              f"{off.max()} of 255, {off.mean():.3f} on average")  # fmt: skip


if __name__ == "__main__":
    main()
