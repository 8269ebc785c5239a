"""The start of a picture as a file that ComfyUI samples from without any node of ours (SDXL)."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mudi.ground.files import replace_file

LATENT_SCALE = 0.13025  # ComfyUI multiplies any SDXL latent by it, whatever its VAE


def start_latent(noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return the latent from which ComfyUI starts where a diffusers pipeline does: float32.

    That is sqrt(1 + sigma^2) * noise / 0.13025, sigma the training schedule's largest (14.61 for
    SDXL), from which all of ComfyUI's schedules begin but ddim_uniform: KSamplerAdvanced with
    add_noise off only multiplies by 0.13025. As sigma^2 = (1 - alpha_bar) / alpha_bar, the root is
    1 / sqrt(alpha_bar).

    Args:
        noise: epsilon + gamma * (mask * z), (B, C, h, w).
        alphas_cumprod: alpha_bar of the scheduler's training steps.
    """
    return noise.float() / alphas_cumprod[-1].float().sqrt() / LATENT_SCALE


def write_latent(path: Path, latent: Tensor, made: str) -> Path:
    """Write a file for ComfyUI's Load Latent.

    Args:
        made: what the latent follows from, for the header.
    """
    tensors = {
        "latent_tensor": latent.contiguous().cpu(),
        "latent_format_version_0": torch.tensor([]),  # else ComfyUI divides by SD1.5's 0.18215
    }
    return replace_file(path, lambda file: save_file(tensors, file, metadata={"mudi": made}))
