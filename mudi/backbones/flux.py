"""FLUX: load its parts, encode prompts, packed latents and position ids; see `flow`."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor, nn

from mudi.backbones import parts
from mudi.denoising import PromptEncoder
from mudi.latents import KL, decode_latents

SPACE = KL


def load_text_pipeline(base: str, dtype: torch.dtype, **hub: Any) -> FluxPipeline:
    """Load tokenizers, text encoders and the sampler's scheduler; neither transformer nor VAE."""
    return parts.load_text_pipeline(
        FluxPipeline, base, dtype, without=("transformer", "vae"), **hub
    )


def load_transformer(
    base: str, dtype: torch.dtype, quantize: str = "none", **hub: Any
) -> FluxTransformer2DModel:
    """Load the frozen transformer, its linear layers in fewer bits if so told."""
    return parts.load_part(FluxTransformer2DModel, base, "transformer", dtype, quantize, **hub)


def load_vae(base: str, **hub: Any) -> AutoencoderKL:
    """Load the frozen VAE in float32."""
    return parts.load_part(AutoencoderKL, base, "vae", torch.float32, **hub)


def encode_prompts(
    pipeline: FluxPipeline, max_sequence_length: int, prompts: list[str]
) -> tuple[Tensor, Tensor]:
    """Encode prompts: T5 tokens (B, T, D) and CLIP's pooled embeddings (B, P)."""
    tokens, pooled, _ = pipeline.encode_prompt(
        prompts,
        prompt_2=None,
        device=pipeline.text_encoder.device,
        max_sequence_length=max_sequence_length,
    )
    return tokens, pooled


class LiveClip:
    """T5's tokens from a table, CLIP's pooled embeddings live: for a CLIP that trains."""

    def __init__(self, pipeline: FluxPipeline, table: PromptEncoder):
        self._tokenizer, self._clip = pipeline.tokenizer, pipeline.text_encoder
        self._table = table

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        tokens, _ = self._table(prompts)
        inputs = self._tokenizer(
            prompts,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        pooled = self._clip(inputs.input_ids.to(self._clip.device)).pooler_output
        return tokens, pooled.to(self._clip.dtype)


def free_text_encoders(pipeline: FluxPipeline, keep_clip: bool) -> None:
    """Drop T5, and CLIP unless it trains, from the pipeline and give their memory back."""
    pipeline.register_modules(text_encoder_2=None)
    if not keep_clip:
        pipeline.register_modules(text_encoder=None)
    free_memory()


class Denoiser(nn.Module):
    """The transformer with what turns prompts into its inputs, as one module; see sdxl.Denoiser.

    Args:
        transformer: the adapted transformer.
        encode: a `PromptTable`, or a `LiveClip` where CLIP trains.
        text_encoders: the encoders that train, by part name.
        guidance_scale: what a guidance-distilled transformer is told; others are told nothing.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        encode: PromptEncoder,
        text_encoders: dict[str, nn.Module],
        guidance_scale: float,
    ):
        super().__init__()
        self.transformer = transformer
        self.text_encoders = nn.ModuleDict(text_encoders)
        self._encode = encode
        self._guidance = guidance_scale if transformer.config.guidance_embeds else None

    def forward(
        self, sample: Tensor, timesteps: Tensor, prompts: list[str], conditions: Tensor
    ) -> Tensor:
        """Predict the velocity: (B, C, h, w), (B,) sigmas, B texts, nothing -> (B, C, h, w)."""
        tokens, pooled = self._encode(prompts)
        size = (sample.shape[2], sample.shape[3])
        guidance = None
        if self._guidance is not None:
            guidance = torch.full_like(timesteps, self._guidance)
        packed = self.transformer(
            hidden_states=pack(sample).to(tokens.dtype),
            timestep=timesteps,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=sample.device, dtype=tokens.dtype),
            img_ids=image_ids(size, sample.device, tokens.dtype),
            return_dict=False,
        )[0]
        return unpack(packed, size)


def pack(latents: Tensor) -> Tensor:
    """Fold 2x2 neighbours into channels: (B, C, h, w), h and w even -> (B, h/2 * w/2, 4C)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def to_pipeline(latents: Tensor) -> Tensor:
    """Return starting noise (B, 16, h, w) as the pipeline's `latents` take it: packed."""
    return pack(latents)


def unpack(packed: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pack` for latents of size (h, w)."""
    height, width = size
    patches = packed.reshape(len(packed), height // 2, width // 2, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(packed), -1, height, width)


def image_ids(size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (0, row, column) of each packed position of latents (h, w): (h/2 * w/2, 3)."""
    sides = [torch.arange(side // 2, device=device) for side in size]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1)
    return ids.reshape(-1, 3).to(dtype)


def sample_image(
    pipeline: FluxPipeline,
    encode: PromptEncoder,
    prompt: str,
    resolution: int,
    num_steps: int,
    guidance_scale: float,
    seed: int,
) -> Image.Image:
    """Make one square image; decodes in the VAE's own precision."""
    with torch.no_grad():
        tokens, pooled = encode([prompt])
    pipeline.set_progress_bar_config(disable=True)
    packed = pipeline(
        prompt_embeds=tokens,
        pooled_prompt_embeds=pooled,
        height=resolution,
        width=resolution,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator(pipeline.transformer.device).manual_seed(seed),
        output_type="latent",
    ).images
    side = resolution // pipeline.vae_scale_factor
    with torch.no_grad():
        decoded = decode_latents(pipeline.vae, unpack(packed, (side, side))).float()
    return pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
