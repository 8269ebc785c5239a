"""Z-Image: load its parts, encode prompts of any length, predict.

What it has of its own: the network takes lists, of pictures (C, 1, h, w), which it patches itself,
and of prompts (T, D), without padding; it is told 1 - sigma, and answers x_0 - noise.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor, nn

from mudi.backbones import parts
from mudi.denoising import PromptEncoder
from mudi.latents import KL, decode_latents

SPACE = KL
NO_PROMPT = ""  # the other half of classifier-free guidance


def load_text_pipeline(base: str, dtype: torch.dtype, **hub: Any) -> ZImagePipeline:
    """Load tokenizer, Qwen3 and the sampler's scheduler; neither transformer nor VAE."""
    return parts.load_text_pipeline(
        ZImagePipeline, base, dtype, without=("transformer", "vae"), **hub
    )


def load_transformer(
    base: str, dtype: torch.dtype, quantize: str = "none", **hub: Any
) -> ZImageTransformer2DModel:
    """Load the frozen transformer, its linear layers in fewer bits if so told."""
    return parts.load_part(ZImageTransformer2DModel, base, "transformer", dtype, quantize, **hub)


def load_vae(base: str, **hub: Any) -> AutoencoderKL:
    """Load the frozen VAE in float32."""
    return parts.load_part(AutoencoderKL, base, "vae", torch.float32, **hub)


def encode_prompts(
    pipeline: ZImagePipeline, max_sequence_length: int, prompts: list[str]
) -> tuple[list[Tensor]]:
    """Encode prompts with Qwen3's last state but one: a list of (T, D).

    Each goes in by itself, in the chat template. The pipeline pads them and cuts the padding's
    states away; as Qwen3 looks back only, those of the words are the same without.
    """
    return ([_encode(pipeline, max_sequence_length, prompt) for prompt in prompts],)


def _encode(pipeline: ZImagePipeline, max_sequence_length: int, prompt: str) -> Tensor:
    chat = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    ids = pipeline.tokenizer(chat, truncation=True, max_length=max_sequence_length).input_ids
    encoder = pipeline.text_encoder
    tokens = torch.tensor([ids], device=encoder.device)
    return encoder(tokens, output_hidden_states=True, use_cache=False).hidden_states[-2][0]


def free_text_encoders(pipeline: ZImagePipeline) -> None:
    """Drop Qwen3 from the pipeline and give its memory back."""
    pipeline.register_modules(text_encoder=None)
    free_memory()


class Denoiser(nn.Module):
    """The transformer with what turns prompts into its inputs, as one module; see sdxl.Denoiser."""

    def __init__(self, transformer: ZImageTransformer2DModel, encode: PromptEncoder):
        super().__init__()
        self.transformer = transformer
        self.text_encoders = nn.ModuleDict()
        self._encode = encode

    def forward(
        self, sample: Tensor, timesteps: Tensor, prompts: list[str], conditions: Tensor
    ) -> Tensor:
        """Predict the velocity: (B, C, h, w), (B,) sigmas, B texts, nothing -> (B, C, h, w)."""
        (tokens,) = self._encode(prompts)
        pictures = sample.to(tokens[0].dtype).unsqueeze(2)  # (B, C, 1, h, w)
        answers = self.transformer(
            list(pictures.unbind()), 1.0 - timesteps, tokens, return_dict=False
        )[0]
        return -torch.stack(answers).squeeze(2)


def to_pipeline(latents: Tensor) -> Tensor:
    """Return starting noise (B, 16, h, w) as the pipeline's `latents` take it."""
    return latents


def sample_image(
    pipeline: ZImagePipeline,
    encode: PromptEncoder,
    prompt: str,
    resolution: int,
    num_steps: int,
    seed: int,
    guidance_scale: float,
) -> Image.Image:
    """Make one square image; decodes in the VAE's own precision.

    Args:
        encode: must know the prompt and NO_PROMPT.
        guidance_scale: s of pos + s (pos - neg); 0, as Turbo wants it: the prompt alone.
    """
    (tokens,), (nothing,) = encode([prompt]), encode([NO_PROMPT])
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt_embeds=tokens,
        negative_prompt_embeds=nothing,
        height=resolution,
        width=resolution,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator(pipeline.transformer.device).manual_seed(seed),
        output_type="latent",
    ).images
    with torch.no_grad():
        decoded = decode_latents(pipeline.vae, latents).float()
    return pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
