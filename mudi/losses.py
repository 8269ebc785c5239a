"""The losses as the papers state them; every one comes back per sample, in float32."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def soft_mask(mask: Tensor, soft_alpha: float) -> Tensor:
    """Return the loss weight M(1 - alpha) + alpha: alpha 1 weighs all alike, 0 subjects only."""
    return mask * (1.0 - soft_alpha) + soft_alpha


def latent_weight(mask: Tensor, size: Sequence[int], soft_alpha: float) -> Tensor:
    """Bring masks (B, 1, H, W) bool to latent size (h, w) bilinearly and soften them: float32.

    That reads four pixels for each latent. A mask that none of them hits is averaged by area, or
    its sample would weigh nothing.
    """
    pixels = mask.float()
    reduced = F.interpolate(pixels, size=tuple(size), mode="bilinear", align_corners=False)
    by_area = F.interpolate(pixels, size=tuple(size), mode="area")
    missed = reduced.amax(dim=(1, 2, 3), keepdim=True) == 0
    return soft_mask(by_area.where(missed, reduced), soft_alpha)


def masked_mse(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error, weighted and averaged over all channels and positions.

    Args:
        pred, target: (B, C, h, w).
        weight: (B, 1, h, w).

    Returns:
        (B,) float32. The average is over all C*h*w entries, whatever the weights add up to.
    """
    error = (pred.float() - target.float()) ** 2
    return (error * weight.float()).mean(dim=(1, 2, 3))


def dco_loss(loss: Tensor, reference_loss: Tensor, beta: float) -> Tensor:
    """Direct Consistency Optimization (arXiv 2402.12004): -log sigmoid(-beta (L - L_base)).

    Args:
        loss, reference_loss: (B,) denoising errors of the adapted and of the base model on the
            same sample, noise and timestep.
        beta: strength of the tie to the base model, > 0.

    Returns:
        (B,) float32; log 2 where both errors are equal.
    """
    return F.softplus(beta * (loss.float() - reference_loss.float()))


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Min-SNR weight (arXiv 2303.09556) of each sample: (B,) -> (B,) float32.

    min(SNR, gamma) / SNR for noise prediction; one more for v-prediction, as in diffusers'
    scripts. At SNR 0 (a schedule with zero terminal SNR) the ratio's limit, 1, is taken.

    Raises:
        ValueError: a prediction type other than "epsilon" and "v_prediction".
    """
    ratio = (gamma / snr.float()).clamp(max=1.0)
    if prediction_type == "epsilon":
        return ratio
    if prediction_type == "v_prediction":
        return ratio + 1.0
    raise ValueError(f"min-SNR weights are not defined for prediction type {prediction_type!r}")
