"""SDXL: load its parts, encode prompts and images, and the noise schedules it is trained with."""

from collections.abc import Callable
from dataclasses import dataclass
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

from mudi.data import to_float
from mudi.losses import masked_mse, min_snr_weight

# prompts -> (B, 77, D) token embeddings and (B, P) pooled ones
PromptEncoder = Callable[[list[str]], tuple[Tensor, Tensor]]


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
    return StableDiffusionXLPipeline.from_pretrained(base, unet=None, vae=None, dtype=dtype, **hub)


def load_unet(base: str, dtype: torch.dtype, **hub: Any) -> UNet2DConditionModel:
    """Load the frozen UNet."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=dtype, **hub)
    return unet.requires_grad_(False)


def load_vae(base: str, half_safe: str | None, dtype: torch.dtype, **hub: Any) -> AutoencoderKL:
    """Load the frozen VAE: half_safe in dtype if given, else the base's own in float32."""
    if half_safe:
        own = {key: value for key, value in hub.items() if key == "cache_dir"}
        vae = AutoencoderKL.from_pretrained(half_safe, dtype=dtype, **own)
    else:
        vae = AutoencoderKL.from_pretrained(base, subfolder="vae", dtype=torch.float32, **hub)
    return vae.requires_grad_(False)


def encode_images(vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Sample latents of pixels (B, H, W, 3) uint8: (B, 4, h, w) float32, as the UNet sees them."""
    images = to_float(pixels).to(vae.dtype)
    latents = vae.encode(images).latent_dist.sample(generator).float()
    mean, std = _latent_statistics(vae, latents)
    return (latents - mean) * vae.config.scaling_factor / std


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Undo `encode_images`: (B, 4, h, w) -> (B, 3, H, W) in [-1, 1], in the VAE's precision."""
    mean, std = _latent_statistics(vae, latents.float())
    unscaled = latents.float() * std / vae.config.scaling_factor + mean
    return vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]


def _latent_statistics(vae: AutoencoderKL, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the VAE's latent mean and deviation (1, C, 1, 1); 0 and 1 where it has none."""
    if vae.config.latents_mean is None or vae.config.latents_std is None:
        return latents.new_zeros(1), latents.new_ones(1)
    statistics = latents.new_tensor([vae.config.latents_mean, vae.config.latents_std])
    mean, std = statistics[:, None, :, None, None]
    return mean, std


def encode_prompts(pipeline: StableDiffusionXLPipeline, prompts: list[str]) -> tuple:
    """Encode prompts live: (B, 77, D) and (B, P). Gradients flow where the encoders train."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    return tokens, pooled


class PromptTable:
    """Prompts encoded once; looks them up afterwards, so that the encoders can be freed."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, prompts: list[str]):
        with torch.no_grad():
            self._entries = {p: encode_prompts(pipeline, [p]) for p in prompts}

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        tokens, pooled = zip(*(self._entries[prompt] for prompt in prompts), strict=True)
        return torch.cat(tokens), torch.cat(pooled)


class Denoiser(nn.Module):
    """The UNet with what turns prompts into its conditions, as one module.

    To wrap it is to wrap all that trains; to switch its adapters off is to switch off the text
    encoders' as well, so that the DCO reference sees unadapted prompt embeddings.

    Args:
        unet: the adapted UNet.
        encode: a `PromptTable`, or `encode_prompts` bound to a pipeline whose encoders train.
        text_encoders: those encoders by part name; none where a table is used.
    """

    def __init__(self, unet: nn.Module, encode: PromptEncoder, text_encoders: dict[str, nn.Module]):
        super().__init__()
        self.unet = unet
        self.text_encoders = nn.ModuleDict(text_encoders)
        self._encode = encode

    def forward(
        self, sample: Tensor, timesteps: Tensor, prompts: list[str], time_ids: Tensor
    ) -> Tensor:
        """Run the network: (B, 4, h, w), (B,), B texts, (B, 6) -> (B, 4, h, w)."""
        tokens, pooled = self._encode(prompts)
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        return self.unet(
            sample, timesteps, tokens, added_cond_kwargs=conditions, return_dict=False
        )[0]


class NoiseSchedule:
    """Noise levels, network preconditioning and targets, as diffusers' SDXL trainers have them.

    A level is an index into the scheduler's training levels. Either DDPM levels (the plain case)
    or sigmas (EDM-style training, arXiv 2206.00364), in which the prediction is turned into a
    clean-latent estimate before it is compared.

    Attributes:
        snr_gamma: gamma of the min-SNR weight; None: every level counts the same.
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

    def sample_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw uniform levels (B,) int64 on the generator's device."""
        num_levels = self.scheduler.config.num_train_timesteps
        return torch.randint(0, num_levels, (count,), generator=generator, device=generator.device)

    def timesteps(self, levels: Tensor) -> Tensor:
        """Return what the network is told (B,)."""
        if not self.edm_style:
            return levels
        return self.scheduler.timesteps.to(levels.device)[levels]

    def add_noise(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return noisy latents (B, C, h, w)."""
        if not self.edm_style:
            return self.scheduler.add_noise(latents, noise, levels)
        return latents + self._sigmas(levels) * noise

    def network_input(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Scale noisy latents for the network."""
        if not self.edm_style:
            return noisy
        sigmas = self._sigmas(levels)
        if isinstance(self.scheduler, EDMEulerScheduler):
            return self.scheduler.precondition_inputs(noisy, sigmas)
        return noisy / (sigmas**2 + 1) ** 0.5

    def prediction(self, output: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
        """Turn the network's output into what `target` is compared with; float32."""
        output = output.float()
        if not self.edm_style:
            return output
        sigmas = self._sigmas(levels)
        if isinstance(self.scheduler, EDMEulerScheduler):
            return self.scheduler.precondition_outputs(noisy, output, sigmas)
        if self.prediction_type == "epsilon":
            return noisy - sigmas * output
        return noisy / (sigmas**2 + 1) - output * sigmas / (sigmas**2 + 1) ** 0.5

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return what a perfect prediction would be (B, C, h, w)."""
        if self.edm_style:
            return latents
        if self.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, levels)

    def weights(self, levels: Tensor) -> Tensor:
        """Return each sample's loss weight (B,) float32."""
        if isinstance(self.scheduler, EulerDiscreteScheduler):
            return self._sigmas(levels).flatten() ** -2.0
        if self.snr_gamma is None:
            return torch.ones(len(levels), device=levels.device)
        snr = compute_snr(self.scheduler, levels)
        return min_snr_weight(snr, self.snr_gamma, self.prediction_type)

    def _sigmas(self, levels: Tensor) -> Tensor:
        return self.scheduler.sigmas.to(levels.device)[levels][:, None, None, None]


@dataclass(frozen=True)
class DenoisingTask:
    """What the network is asked in one pass, and what would be right.

    Attributes:
        noisy, target: (B, 4, h, w) float32.
        levels: (B,) noise levels of `schedule`.
        weight: (B, 1, h, w), the soft mask at latent size.
        time_ids: (B, 6) original height and width, crop top and left, target height and width.
    """

    schedule: NoiseSchedule
    noisy: Tensor
    target: Tensor
    levels: Tensor
    weight: Tensor
    prompts: list[str]
    time_ids: Tensor

    def first(self, count: int) -> "DenoisingTask":
        """Return the task of the first samples only."""
        tensors = ("noisy", "target", "levels", "weight", "time_ids")
        cut = {name: getattr(self, name)[:count] for name in tensors}
        return DenoisingTask(schedule=self.schedule, prompts=self.prompts[:count], **cut)


def make_task(
    schedule: NoiseSchedule,
    latents: Tensor,
    weight: Tensor,
    prompts: list[str],
    time_ids: Tensor,
    generator: torch.Generator,
) -> DenoisingTask:
    """Draw noise and levels for latents (B, 4, h, w) float32."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    levels = schedule.sample_levels(len(latents), generator)
    return DenoisingTask(
        schedule=schedule,
        noisy=schedule.add_noise(latents, noise, levels),
        target=schedule.target(latents, noise, levels),
        levels=levels,
        weight=weight,
        prompts=prompts,
        time_ids=time_ids,
    )


def denoising_errors(denoiser: nn.Module, task: DenoisingTask) -> Tensor:
    """Return L: the weighted squared error of each sample (B,) float32."""
    schedule, levels = task.schedule, task.levels
    output = denoiser(
        schedule.network_input(task.noisy, levels),
        schedule.timesteps(levels),
        task.prompts,
        task.time_ids,
    )
    prediction = schedule.prediction(output, task.noisy, levels)
    return schedule.weights(levels) * masked_mse(prediction, task.target, task.weight)


def time_ids(conditioning: Tensor, resolution: int, real_sizes: bool) -> Tensor:
    """Return SDXL's size conditions (B, 6) for conditioning (B, 4).

    Published runs tell the network that every sample is an uncropped resolution x resolution
    photo; real_sizes tells it the photo's own size and where it was cropped.
    """
    target = torch.full_like(conditioning[:, :2], resolution)
    if not real_sizes:
        conditioning = torch.cat([target, torch.zeros_like(target)], dim=1)
    return torch.cat([conditioning, target], dim=1)


class Validator:
    """Makes the validation images; encodes the prompt before the text encoders may be freed."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, prompt: str, trained_encoders: bool):
        self._pipeline = pipeline
        self._inputs: dict[str, Any] = {"prompt": prompt}
        if not trained_encoders:
            names = ("prompt_embeds", "negative_prompt_embeds")
            pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
            with torch.no_grad():
                encoded = pipeline.encode_prompt(prompt, device=pipeline.text_encoder.device)
            self._inputs = dict(zip((*names, *pooled), encoded, strict=True))

    def __call__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        count: int,
        resolution: int,
        num_steps: int,
        seed: int,
    ) -> list[Image.Image]:
        """Return `count` images of the prompt by the adapted model."""
        pipeline = StableDiffusionXLPipeline(
            **{**self._pipeline.components, "unet": unet, "vae": vae}
        )
        pipeline.set_progress_bar_config(disable=True)
        images = []
        for i in range(count):
            generator = torch.Generator(unet.device).manual_seed(seed + i)
            latents = pipeline(
                **self._inputs,
                height=resolution,
                width=resolution,
                num_inference_steps=num_steps,
                generator=generator,
                output_type="latent",
            ).images
            with torch.no_grad():
                decoded = decode_latents(vae, latents).float()
            images += pipeline.image_processor.postprocess(decoded, output_type="pil")
        return images


def text_encoders(pipeline: StableDiffusionXLPipeline) -> dict[str, Any]:
    """Return both text encoders by part name."""
    return {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}


def free_text_encoders(pipeline: StableDiffusionXLPipeline) -> None:
    """Drop the text encoders from the pipeline and give their memory back."""
    pipeline.register_modules(text_encoder=None, text_encoder_2=None)
    free_memory()
