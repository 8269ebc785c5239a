"""What the networks are asked in training, and the loss of their answers; the same for every base.

A base brings a `Schedule` (noise levels, targets, weights) and a denoiser, a module called as
`denoiser(sample, timesteps, prompts, conditions)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from mudi.lora import adapters_off
from mudi.losses import dco_loss, masked_mse

PROMPT_BYTES = 1 << 27  # of device memory; SDXL's prompts take 0.3 MB apiece, FLUX's 4 MB

# prompts -> (B, T, D) token embeddings and (B, P) pooled ones
PromptEncoder = Callable[[list[str]], tuple[Tensor, Tensor]]


class Schedule(Protocol):
    """Noise levels as indices into a scheduler's training levels."""

    def sample_levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw levels (B,) int64 on the generator's device."""

    def timesteps(self, levels: Tensor) -> Tensor:
        """Return what the network is told (B,)."""

    def add_noise(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return noisy latents (B, C, h, w)."""

    def network_input(self, noisy: Tensor, levels: Tensor) -> Tensor:
        """Scale noisy latents for the network."""

    def prediction(self, output: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
        """Turn the network's output into what `target` is compared with; float32."""

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return what a perfect prediction would be (B, C, h, w)."""

    def weights(self, levels: Tensor) -> Tensor:
        """Return each sample's loss weight (B,) float32."""


@dataclass(frozen=True)
class Models:
    """The parts of a base that a run uses.

    Attributes:
        denoiser: its submodule `text_encoders` holds the encoders that train, if any.
        adapted: what trains, by the pipeline's part names.
        sample: makes a validation image from a seed; None without a validation prompt.
    """

    denoiser: nn.Module
    vae: AutoencoderKL
    schedule: Schedule
    adapted: dict[str, Any]
    sample: Callable[[int], Image.Image] | None


class PromptTable:
    """Prompts encoded once; looks them up afterwards, so that the encoders can be freed.

    Args:
        encode: encodes a list of prompts.
        prompts: all that will be asked for.
        device: where looked-up embeddings go.
        kept_bytes: embeddings kept there, the first ones asked for; the others are copied from
            host memory each time.
    """

    def __init__(
        self,
        encode: PromptEncoder,
        prompts: list[str],
        device: torch.device,
        kept_bytes: int = PROMPT_BYTES,
    ):
        self._device = device
        self._room = kept_bytes
        self._entries: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for prompt in tqdm(prompts, desc="prompts", leave=False, disable=len(prompts) < 20):
                tokens, pooled = encode([prompt])
                self._entries[prompt] = tokens.cpu(), pooled.cpu()

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        tokens, pooled = zip(*map(self._look_up, prompts), strict=True)
        return torch.cat(tokens), torch.cat(pooled)

    def _look_up(self, prompt: str) -> tuple[Tensor, Tensor]:
        entry = self._entries[prompt]
        if entry[0].device.type == self._device.type:
            return entry
        moved = entry[0].to(self._device), entry[1].to(self._device)
        size = moved[0].nbytes + moved[1].nbytes
        if size <= self._room:
            self._room -= size
            self._entries[prompt] = moved
        return moved


@dataclass(frozen=True)
class DenoisingTask:
    """What the network is asked in one pass, and what would be right.

    Attributes:
        noisy, target: (B, C, h, w) float32.
        levels: (B,) noise levels of `schedule`.
        weight: (B, 1, h, w), the soft mask at latent size.
        conditions: (B, n), what the network is told besides the prompt; n may be 0.
    """

    schedule: Schedule
    noisy: Tensor
    target: Tensor
    levels: Tensor
    weight: Tensor
    prompts: list[str]
    conditions: Tensor

    def first(self, count: int) -> "DenoisingTask":
        """Return the task of the first samples only."""
        tensors = ("noisy", "target", "levels", "weight", "conditions")
        cut = {name: getattr(self, name)[:count] for name in tensors}
        return DenoisingTask(schedule=self.schedule, prompts=self.prompts[:count], **cut)


def make_task(
    schedule: Schedule,
    latents: Tensor,
    weight: Tensor,
    prompts: list[str],
    conditions: Tensor,
    generator: torch.Generator,
) -> DenoisingTask:
    """Draw noise and levels for latents (B, C, h, w) float32."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    levels = schedule.sample_levels(len(latents), generator)
    return DenoisingTask(
        schedule=schedule,
        noisy=schedule.add_noise(latents, noise, levels),
        target=schedule.target(latents, noise, levels),
        levels=levels,
        weight=weight,
        prompts=prompts,
        conditions=conditions,
    )


def denoising_errors(denoiser: nn.Module, task: DenoisingTask) -> Tensor:
    """Return L: the weighted squared error of each sample (B,) float32."""
    schedule, levels = task.schedule, task.levels
    output = denoiser(
        schedule.network_input(task.noisy, levels),
        schedule.timesteps(levels),
        task.prompts,
        task.conditions,
    )
    prediction = schedule.prediction(output, task.noisy, levels)
    return schedule.weights(levels) * masked_mse(prediction, task.target, task.weight)


def training_loss(
    denoiser: nn.Module,
    base: nn.Module,
    task: DenoisingTask,
    num_subjects: int,
    dco_beta: float,
    prior_loss_weight: float,
) -> Tensor:
    """Return the scalar to minimise: DCO or plain error of the subjects, plain error of the prior.

    Args:
        denoiser: the network as accelerate wrapped it.
        base: the same network unwrapped, for DCO's pass without adapters.
        num_subjects: how many samples, from the first, show subjects; the rest are the prior's.
        dco_beta: 0 for the plain error.
    """
    reference = None
    if dco_beta > 0:
        with torch.no_grad(), adapters_off(base):
            reference = denoising_errors(base, task.first(num_subjects))  # (num_subjects,)
    errors = denoising_errors(denoiser, task)  # (B,)
    subjects, prior = errors[:num_subjects], errors[num_subjects:]
    if reference is not None:
        subjects = dco_loss(subjects, reference, dco_beta)
    loss = subjects.mean()
    return loss + prior_loss_weight * prior.mean() if len(prior) else loss
