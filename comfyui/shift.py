"""The mean shift of the starting noise, epsilon + gamma * (mask * z) (MuDI, section 4.2)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def latent_masks(visible: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
    """Reduce masks (N, H, W), bool or in [0, 1], to latents of size (h, w): (N, h, w) float32.

    Each entry is the share of its patch of pixels that the subject covers. It is left soft: a
    latent at the edge is part background and is shifted so much the less, while one that no
    subject touches is exactly 0, and the masks of several subjects add up to that of their union.
    """
    pixels = torch.as_tensor(visible)[:, None].float()
    return F.interpolate(pixels, size=size, mode="area")[:, 0]


def gamma_map(gammas: Sequence[float], masks: Tensor) -> Tensor:
    """Give each subject its own gamma: (N,) and `latent_masks` (N, h, w) -> (1, 1, h, w).

    Where two subjects share a latent, their gammas are averaged by the areas that they cover, so
    that gamma * mask is the sum of gamma_i * mask_i; 0 where no subject is.

    Raises:
        ValueError: another number of gammas than of masks.
    """
    if len(gammas) != len(masks):
        raise ValueError(f"{len(gammas)} gammas, but {len(masks)} subjects")
    covered = masks.sum(0)
    shares = masks / covered.where(covered > 0, 1.0)
    return torch.einsum("n,nhw->hw", masks.new_tensor(gammas), shares)[None, None]


def shift_noise(noise: Tensor, latents: Tensor, mask: Tensor, gamma: float | Tensor) -> Tensor:
    """Return noise + gamma * (mask * latents) in the noise's own precision.

    Args:
        noise: epsilon (B, C, h, w), standard normal.
        latents: z, scaled as the denoiser sees them.
        mask: (B, 1, h, w) in [0, 1].
        gamma: a number or a map (B, 1, h, w).
    """
    return (noise + gamma * (mask * latents)).to(noise.dtype)
