"""Flow matching, which FLUX and all later backbones are trained by."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from torch import Tensor

from mudi.backbones import parts
from mudi.denoising import Corrupted


def load_scheduler(base: str, **hub: Any) -> FlowMatchEulerDiscreteScheduler:
    """Load the base model's flow-matching scheduler.

    Raises:
        OSError: there is no such model, or it can't be reached.
    """
    return parts.load_scheduler(FlowMatchEulerDiscreteScheduler, base, **hub)


class FlowSchedule:
    """Flow matching between x_0 and noise: x_t = (1 - sigma) x_0 + sigma * noise.

    The network predicts the velocity, noise - x_0. Indices are into the scheduler's training
    sigmas. With density "none" they are uniform; "logit_normal" and "mode" draw some
    more often (arXiv 2403.03206, section 3.1), "sigma_sqrt" and "cosmap" weigh their loss.
    """

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        weighting_scheme: str = "none",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        mode_scale: float = 1.29,
    ):
        self.scheduler = scheduler
        self.weighting_scheme = weighting_scheme
        self._density = {
            "logit_mean": logit_mean,
            "logit_std": logit_std,
            "mode_scale": mode_scale,
        }

    def timestep_indices(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw indices (B,) int64 by the scheme's density, on the generator's device."""
        u = compute_density_for_timestep_sampling(
            self.weighting_scheme,
            count,
            device=generator.device,
            generator=generator,
            **self._density,
        )
        num_timesteps = self.scheduler.config.num_train_timesteps
        return (u * num_timesteps).long().clamp(0, num_timesteps - 1)

    def corrupt(self, latents: Tensor, noise: Tensor, indices: Tensor) -> Corrupted:
        """x_t = (1 - sigma) x_0 + sigma * noise; the network is told sigma, asked noise - x_0."""
        self.scheduler.sigmas = self.scheduler.sigmas.to(indices.device)  # moved once
        told = self.scheduler.sigmas[indices]  # (B,) in (0, 1]
        sigmas = told[:, None, None, None]
        return Corrupted(
            network_input=(1.0 - sigmas) * latents + sigmas * noise,
            timesteps=told,
            target=noise - latents,
            loss_weights=compute_loss_weighting_for_sd3(self.weighting_scheme, told),
        )
