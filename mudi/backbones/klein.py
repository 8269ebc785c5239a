"""FLUX.2-klein: load its parts, Qwen3's prompts, latents in patches, ids of four numbers."""

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor, nn

from mudi.backbones import parts
from mudi.denoising import PromptEncoder
from mudi.latents import LatentSpace, Scaling, decode_raw

NO_PROMPT = ""  # the unconditional half of classifier-free guidance
# As diffusers' own script has them: all attention, and the single blocks' feed-forward with it
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"]


def _statistics(vae: Any, latents: Tensor) -> Scaling:
    """Return the running mean and one over the deviation of the VAE's batch norm: (128, 1, 1)."""
    mean, variance = (
        value.to(latents)[:, None, None] for value in (vae.bn.running_mean, vae.bn.running_var)
    )
    return mean, (variance + vae.config.batch_norm_eps).rsqrt()


SPACE = LatentSpace(_statistics, patch=2)


def load_text_pipeline(base: str, dtype: torch.dtype, **hub: Any) -> Flux2KleinPipeline:
    """Load tokenizer, text encoder and the sampler's scheduler; neither transformer nor VAE."""
    return parts.load_text_pipeline(
        Flux2KleinPipeline, base, dtype, without=("transformer", "vae"), **hub
    )


def load_transformer(
    base: str, dtype: torch.dtype, quantize: str = "none", **hub: Any
) -> Flux2Transformer2DModel:
    """Load the frozen transformer, its linear layers in fewer bits if so told."""
    return parts.load_part(Flux2Transformer2DModel, base, "transformer", dtype, quantize, **hub)


def load_vae(base: str, **hub: Any) -> AutoencoderKLFlux2:
    """Load the frozen VAE in float32."""
    return parts.load_part(AutoencoderKLFlux2, base, "vae", torch.float32, **hub)


def encode_prompts(
    pipeline: Flux2KleinPipeline, max_sequence_length: int, prompts: list[str]
) -> tuple[Tensor]:
    """Encode prompts: three of Qwen3's hidden states side by side (B, T, 3 D).

    T is always the maximum: Qwen3 is told where the padding is, the transformer is not.
    """
    device = pipeline.text_encoder.device
    with torch.no_grad():
        tokens, _ = pipeline.encode_prompt(
            prompts, device=device, max_sequence_length=max_sequence_length
        )
    return (tokens,)


def free_text_encoders(pipeline: Flux2KleinPipeline) -> None:
    """Drop Qwen3 from the pipeline and give its memory back."""
    pipeline.register_modules(text_encoder=None)
    free_memory()


class Denoiser(nn.Module):
    """The transformer with what turns prompts into its inputs, as one module; see sdxl.Denoiser.

    Args:
        transformer: the adapted transformer.
        encode: gives prompts' tokens.
    """

    def __init__(self, transformer: Flux2Transformer2DModel, encode: PromptEncoder):
        super().__init__()
        self.transformer = transformer
        self.text_encoders = nn.ModuleDict()  # none trains
        self._encode = encode

    def forward(
        self, sample: Tensor, timesteps: Tensor, prompts: list[str], conditions: Tensor
    ) -> Tensor:
        """Predict the velocity: (B, C, h, w), (B,) sigmas, B texts, nothing -> (B, C, h, w)."""
        (tokens,) = self._encode(prompts)
        size = (sample.shape[2], sample.shape[3])
        packed = self.transformer(
            hidden_states=pack(sample).to(tokens.dtype),
            timestep=timesteps,
            guidance=None,  # the base is not distilled for it
            encoder_hidden_states=tokens,
            txt_ids=text_ids(tokens.shape[1], sample.device),
            img_ids=image_ids(size, sample.device),
            return_dict=False,
        )[0]
        return unpack(packed, size)


def pack(latents: Tensor) -> Tensor:
    """Lay positions in a row: (B, C, h, w) -> (B, h * w, C)."""
    return latents.flatten(2).transpose(1, 2)


def unpack(packed: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pack` for latents of size (h, w)."""
    return packed.transpose(1, 2).unflatten(2, size)


def to_pipeline(latents: Tensor) -> Tensor:
    """Return starting noise (B, 128, h, w) as the pipeline's `latents` take it: not packed."""
    return latents


def image_ids(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return (0, row, column, 0) of each position of latents (h, w): (h * w, 4) int64."""
    rows, columns = torch.meshgrid(*(torch.arange(n, device=device) for n in size), indexing="ij")
    nothing = torch.zeros_like(rows)
    return torch.stack([nothing, rows, columns, nothing], dim=-1).reshape(-1, 4)


def text_ids(count: int, device: torch.device) -> Tensor:
    """Return (0, 0, 0, place) of each of a prompt's tokens: (count, 4) int64."""
    ids = torch.zeros(count, 4, dtype=torch.int64, device=device)
    ids[:, 3] = torch.arange(count, device=device)
    return ids


def sample_image(
    pipeline: Flux2KleinPipeline,
    encode: PromptEncoder,
    prompt: str,
    resolution: int,
    num_steps: int,
    seed: int,
    guidance_scale: float | None = None,
) -> Image.Image:
    """Make one square image; decodes in the VAE's own precision.

    Args:
        encode: must know the prompt and NO_PROMPT.
        guidance_scale: None: the pipeline's own; a step-distilled model heeds none.
    """
    guidance = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    (tokens,), (no_tokens,) = encode([prompt]), encode([NO_PROMPT])
    pipeline.set_progress_bar_config(disable=True)
    raw = pipeline(
        prompt_embeds=tokens,
        negative_prompt_embeds=no_tokens,
        height=resolution,
        width=resolution,
        num_inference_steps=num_steps,
        generator=torch.Generator(pipeline.transformer.device).manual_seed(seed),
        output_type="latent",  # brings the VAE's own latents
        **guidance,
    ).images
    with torch.no_grad():
        decoded = decode_raw(pipeline.vae, raw).float()
    return pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
