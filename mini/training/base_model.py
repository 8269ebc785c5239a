"""The miniature of SDXL: its real classes at 64 pixels, built, run for training, and saved."""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from mini.training.state import HEAD_WIDTH, save_in_half
from mini.training.tokenizer import PROMPT_TOKENS, world_tokenizer
from mini.world import SIZE

SIZE_WIDTH = 16  # of the embedding of each of the six sizes
NO_CROP_SIZES = (SIZE, SIZE, 0, 0, SIZE, SIZE)  # original height, width, crop, target; px
# SDXL's text encoders end one layer early; the first one's last layer is there to be left out.
TEXT_LAYERS = (3, 2)


class Denoiser(nn.Module):
    """The parts that are trained together: UNet and both text encoders."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
    ):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Predict the noise as `StableDiffusionXLPipeline` does.

        Args:
            noisy: (B, C, h, w).
            timesteps: (B,).
            ids: (B, T) tokens of the prompts.
        """
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids, output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        sizes = torch.tensor([NO_CROP_SIZES], device=noisy.device).expand(len(noisy), -1)
        added = {"text_embeds": second.text_embeds, "time_ids": sizes}
        return self.unet(noisy, timesteps, tokens, added_cond_kwargs=added).sample


def new_pipeline(
    vae: AutoencoderKL, channels: tuple[int, ...], text_widths: tuple[int, int]
) -> StableDiffusionXLPipeline:
    """Build the miniature around a trained VAE, its other parts untrained.

    Args:
        vae: encodes SIZE-pixel pictures.
        channels: of the UNet at each resolution.
        text_widths: of the two text encoders; the second's is also its pooled output's.
    """
    tokenizer = world_tokenizer()
    first, second = (
        text_config(tokenizer, width, layers)
        for width, layers in zip(text_widths, TEXT_LAYERS, strict=True)
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        transformer_layers_per_block=1,
        attention_head_dim=tuple(max(1, width // HEAD_WIDTH) for width in channels),
        use_linear_projection=True,
        cross_attention_dim=sum(text_widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=len(NO_CROP_SIZES) * SIZE_WIDTH + text_widths[1],
        norm_num_groups=16,
    )
    return assemble(
        vae=vae,
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def assemble(**parts: Any) -> StableDiffusionXLPipeline:
    """Put parts together; the empty prompt counts as a text, as it did in training."""
    return StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=False, add_watermarker=False
    )


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu",
    )


def load_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """Load a saved miniature in float32."""
    return StableDiffusionXLPipeline.from_pretrained(
        folder, dtype=torch.float32, add_watermarker=False
    )


def save_pipeline(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Save the parts in fp16, so that they load in float32 unless told otherwise.

    transformers loads a model in the type that its config names, diffusers in float32: the text
    encoders' configs must name float32 for a plain `from_pretrained` to give one type throughout.
    """
    half = {
        name: copy.deepcopy(part).half() if isinstance(part, nn.Module) else part
        for name, part in pipeline.components.items()
    }
    assemble(**half).save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):
        save_in_half(pipeline.components[name], folder / name)


def denoiser_of(pipeline: StableDiffusionXLPipeline) -> Denoiser:
    """Return the trained parts of a pipeline; they are shared, not copied."""
    return Denoiser(pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
