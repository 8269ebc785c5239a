"""SDXL: load its parts, encode prompts and images, and the noise schedules it is trained with."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr, free_memory
from PIL import Image
from torch import Tensor, nn

from mudi.backbones import parts
from mudi.denoising import Corrupted, PromptEncoder
from mudi.latents import KL, decode_latents
from mudi.learned_words import LearnedWords
from mudi.losses import min_snr_weight

SPACE = KL
NO_PROMPT = ""  # the unconditional half of classifier-free guidance


def load_schedule(
    base: str, edm_style: bool, snr_gamma: float | None, **hub: Any
) -> "NoiseSchedule":
    """Load the base model's noise schedule; a base of the EDM family is trained EDM-style.

    Raises:
        OSError: there is no such model, or it can't be reached.
        ValueError: the schedule does not go with the arguments.
    """
    config = DDPMScheduler.load_config(base, subfolder="scheduler", **hub)
    kind: Any = EulerDiscreteScheduler if edm_style else DDPMScheduler
    if "EDM" in config["_class_name"]:
        kind = EDMEulerScheduler
    return NoiseSchedule(kind.from_config(config), snr_gamma)


def load_text_pipeline(base: str, dtype: torch.dtype, **hub: Any) -> StableDiffusionXLPipeline:
    """Load tokenizers, text encoders and the sampler's scheduler; neither UNet nor VAE."""
    return parts.load_text_pipeline(
        StableDiffusionXLPipeline, base, dtype, without=("unet", "vae"), **hub
    )


def load_unet(
    base: str, dtype: torch.dtype, quantize: str = "none", **hub: Any
) -> UNet2DConditionModel:
    """Load the frozen UNet, its linear layers in fewer bits if so told."""
    return parts.load_part(UNet2DConditionModel, base, "unet", dtype, quantize, **hub)


def load_vae(base: str, half_safe: str | None, dtype: torch.dtype, **hub: Any) -> AutoencoderKL:
    """Load the frozen VAE: half_safe in dtype if given, else the base's own in float32."""
    if half_safe:
        own = {key: value for key, value in hub.items() if key == "cache_dir"}
        return parts.load_part(AutoencoderKL, half_safe, None, dtype, **own)
    return parts.load_part(AutoencoderKL, base, "vae", torch.float32, **hub)


def encode_prompts(pipeline: StableDiffusionXLPipeline, prompts: list[str]) -> tuple:
    """Encode prompts live: (B, 77, D) and (B, P). Gradients flow where the encoders train."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    return tokens, pooled


class Denoiser(nn.Module):
    """The UNet with what turns prompts into its conditions, as one module.

    To wrap it is to wrap all that trains; to switch its adapters off is to switch off the text
    encoders' and the learned words as well, so that the DCO reference sees the base's prompts.

    Args:
        unet: the adapted UNet.
        encode: a `PromptTable`, `WordPrompts`, or `encode_prompts` bound to a pipeline whose
            encoders train.
        text_encoders: the encoders that it runs, by part name; none where all is looked up.
        words: learned ones that `encode` knows.
    """

    def __init__(
        self,
        unet: nn.Module,
        encode: PromptEncoder,
        text_encoders: dict[str, nn.Module],
        words: LearnedWords | None = None,
    ):
        super().__init__()
        self.unet = unet
        self.text_encoders = nn.ModuleDict(text_encoders)
        self.words = words
        self._encode = encode

    def forward(
        self, sample: Tensor, timesteps: Tensor, prompts: list[str], conditions: Tensor
    ) -> Tensor:
        """Run the network: (B, 4, h, w), (B,), B texts, (B, 6) sizes -> (B, 4, h, w)."""
        tokens, pooled = self._encode(prompts)
        added = {"text_embeds": pooled, "time_ids": conditions}
        return self.unet(sample, timesteps, tokens, added_cond_kwargs=added, return_dict=False)[0]


class NoiseSchedule:
    """Noise levels, network preconditioning and targets, as diffusers' SDXL trainers have them.

    Indices are into the scheduler's training timesteps. Either DDPM's (the plain case) or EDM's
    sigmas (arXiv 2206.00364), where the output is turned into an estimate of the clean latents.

    Attributes:
        snr_gamma: gamma of the min-SNR weight; None: all count the same.
    """

    def __init__(self, scheduler: Any, snr_gamma: float | None = None):
        self.scheduler = scheduler
        self.snr_gamma = snr_gamma
        self.edm_style = not isinstance(scheduler, DDPMScheduler)
        self.prediction_type = scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"the base model predicts {self.prediction_type!r}, which is unknown")
        if self.edm_style and snr_gamma is not None:
            raise ValueError("min-SNR weights do not go with EDM-style training; drop snr_gamma")

    def timestep_indices(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw uniform indices (B,) int64 on the generator's device."""
        count_all = self.scheduler.config.num_train_timesteps
        return torch.randint(0, count_all, (count,), generator=generator, device=generator.device)

    def corrupt(self, latents: Tensor, noise: Tensor, indices: Tensor) -> Corrupted:
        """x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise, asked the noise or v; EDM: see below."""
        if self.edm_style:
            return self._corrupt_edm(latents, noise, indices)
        target = noise
        if self.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, indices)
        return Corrupted(
            network_input=self.scheduler.add_noise(latents, noise, indices),
            timesteps=indices,
            target=target,
            loss_weights=self._min_snr_weights(indices),
        )

    def _corrupt_edm(self, latents: Tensor, noise: Tensor, indices: Tensor) -> Corrupted:
        """x = x_0 + sigma * noise, asked x_0: c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x)."""
        scheduler = self.scheduler
        scheduler.sigmas = scheduler.sigmas.to(indices.device)  # moved once
        scheduler.timesteps = scheduler.timesteps.to(indices.device)
        sigmas = scheduler.sigmas[indices][:, None, None, None]
        noisy = latents + sigmas * noise
        if isinstance(scheduler, EDMEulerScheduler):
            nothing, one = torch.zeros_like(sigmas), torch.ones_like(sigmas)
            network_input = scheduler.precondition_inputs(noisy, sigmas)
            offset = scheduler.precondition_outputs(noisy, nothing, sigmas)
            scale = scheduler.precondition_outputs(nothing, one, sigmas)
            weights = torch.ones(len(indices), device=indices.device)
        else:
            network_input = noisy / (sigmas**2 + 1) ** 0.5
            offset, scale = noisy, -sigmas
            if self.prediction_type == "v_prediction":
                offset, scale = noisy / (sigmas**2 + 1), -sigmas / (sigmas**2 + 1) ** 0.5
            weights = sigmas.flatten() ** -2.0
        told = scheduler.timesteps[indices]
        return Corrupted(network_input, told, latents, weights, offset, scale)

    def _min_snr_weights(self, indices: Tensor) -> Tensor:
        if self.snr_gamma is None:
            return torch.ones(len(indices), device=indices.device)
        snr = compute_snr(self.scheduler, indices)
        return min_snr_weight(snr, self.snr_gamma, self.prediction_type)


def to_pipeline(latents: Tensor) -> Tensor:
    """Return starting noise (B, 4, h, w) as the pipeline's `latents` take it."""
    return latents


def size_conditions(conditioning: Tensor, resolution: int, real_sizes: bool) -> Tensor:
    """Return SDXL's size conditions (B, 6) for conditioning (B, 4).

    Published runs tell the network that every sample is an uncropped resolution x resolution
    photo; real_sizes tells it the photo's own size and where it was cropped.
    """
    target = torch.full_like(conditioning[:, :2], resolution)
    if not real_sizes:
        conditioning = torch.cat([target, torch.zeros_like(target)], dim=1)
    return torch.cat([conditioning, target], dim=1)


def text_encoders(pipeline: StableDiffusionXLPipeline) -> dict[str, Any]:
    """Return both text encoders by part name."""
    return {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}


def free_text_encoders(pipeline: StableDiffusionXLPipeline) -> None:
    """Drop the text encoders from the pipeline and give their memory back."""
    pipeline.register_modules(text_encoder=None, text_encoder_2=None)
    free_memory()


def sample_image(
    pipeline: StableDiffusionXLPipeline,
    encode: PromptEncoder,
    prompt: str,
    resolution: int,
    num_steps: int,
    seed: int,
    guidance_scale: float | None = None,
) -> Image.Image:
    """Make one square image; decodes in the VAE's own precision, whatever the UNet's.

    Args:
        encode: must know the prompt and NO_PROMPT.
        guidance_scale: None: the pipeline's own.
    """
    guidance = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    with torch.no_grad():
        (tokens, pooled), (no_tokens, no_pooled) = encode([prompt]), encode([NO_PROMPT])
    if pipeline.config.force_zeros_for_empty_prompt:
        no_tokens, no_pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt_embeds=tokens,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=no_tokens,
        negative_pooled_prompt_embeds=no_pooled,
        height=resolution,
        width=resolution,
        num_inference_steps=num_steps,
        generator=torch.Generator(pipeline.unet.device).manual_seed(seed),
        output_type="latent",
        **guidance,
    ).images
    with torch.no_grad():
        decoded = decode_latents(pipeline.vae, latents).float()
    return pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
