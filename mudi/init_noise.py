"""Mean-shifted noise: sampling that starts from a collage of the subjects (MuDI, section 4.2).

    layout = random_layout(2, random.Random(seed))
    scene = compose_layout(cutouts, layout, (width, height))
    latents = subject_latents(vae, [scene.image])                              # (1, C, h, w)
    masks = latent_masks(scene.visible, latents.shape[-2:]).to(latents)        # (N, h, w)
    mask = masks.sum(0)[None, None]                                            # (1, 1, h, w)
    noise = mean_shifted_noise(latents.to(pipeline.dtype), mask, gamma, generator)
    pipeline(prompt, latents=noise, generator=generator)  # FLUX.1: latents=pack(noise)

gamma is one number, or one per subject by `gamma_map(gammas, masks)`. The pipeline gets the same
generator objects, so that schedulers that draw noise themselves go on where this one stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from comfyui import placing
from comfyui.shift import gamma_map, latent_masks, shift_noise
from mudi.images import Box
from mudi.latents import KL, LatentSpace, encode_images
from mudi.layouts import (
    Layout,
    LayoutError,
    layout_prompt,
    load_layout,
    parse_layout,
    random_layout,
)
from mudi.segmix import Cutout

__all__ = [
    "Layout",
    "LayoutError",
    "Scene",
    "compose_layout",
    "gamma_map",
    "latent_masks",
    "layout_prompt",
    "load_layout",
    "mean_shifted_noise",
    "parse_layout",
    "random_layout",
    "reference_gamma",
    "starts_without_signal",
    "subject_latents",
]


@dataclass(frozen=True)
class Scene:
    """Cut-outs placed by a layout.

    Attributes:
        image: PIL RGB, the collage on its plain background.
        visible: (N, H, W) bool, each subject's pixels that no other hides.
        boxes: where each cut-out stands (px), in the order they were given.
    """

    image: Image.Image
    visible: np.ndarray
    boxes: list[Box]

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, True where any subject was painted."""
        return np.any(self.visible, axis=0)


def compose_layout(
    cutouts: Sequence[Cutout], layout: Layout, size: tuple[int, int], background: str = "white"
) -> Scene:
    """Paint each cut-out into its box, the back one first.

    A cut-out keeps its own aspect ratio: it is scaled to the largest size that its box holds and
    stands on the middle of the box's lower edge.

    Args:
        cutouts: one a box of the layout; see `mudi.segmix.cut_out`.
        size: (width, height) of the canvas (px).
        background: any colour that Pillow knows.

    Raises:
        ValueError: the layout is for another number of subjects.
    """
    pixels = [cutout.pixels for cutout in cutouts]
    image, visible, boxes = placing.place(pixels, layout, size, background)
    return Scene(image, visible, [Box(*box) for box in boxes])


def subject_latents(vae: Any, images: Sequence[Image.Image], space: LatentSpace = KL) -> Tensor:
    """Encode collages of one size on the VAE's device: (B, C, h, w) float32, scaled as in training.

    The mean of the VAE's distribution is taken, not a sample: equal collages give equal latents.
    """
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    with torch.no_grad():
        return encode_images(vae, pixels.to(vae.device), generator=None, space=space)


def mean_shifted_noise(
    subject_latents: Tensor,
    subject_mask: Tensor,
    gamma: float | Tensor,
    generator: torch.Generator | list[torch.Generator],
) -> Tensor:
    """Return epsilon + gamma * (mask * z), before the scheduler's own scaling (MuDI, section 4.2).

    epsilon is what a diffusers pipeline draws from the same generators, so gamma = 0 is ordinary
    sampling.

    Args:
        subject_latents: z (B, C, h, w); its device and dtype are those of the result.
        subject_mask: (B, 1, h, w) in [0, 1].
        gamma: strength, a number or a map (B, 1, h, w); see `reference_gamma` for its unit.
        generator: one for the batch, or one an image: then an image's noise does not depend on
            the batch it is drawn in.

    Raises:
        ValueError: shapes or the number of generators do not fit.
    """
    batch, _, height, width = subject_latents.shape
    expected = (batch, 1, height, width)
    if subject_mask.shape != expected:
        raise ValueError(f"subject_mask is {tuple(subject_mask.shape)}, not {expected}")
    if isinstance(gamma, Tensor) and gamma.shape != expected:
        raise ValueError(f"gamma is {tuple(gamma.shape)}, not a number or {expected}")
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for {batch} images")
    noise = randn_tensor(
        subject_latents.shape, generator, subject_latents.device, subject_latents.dtype
    )
    return shift_noise(noise, subject_latents, subject_mask, gamma)


def starts_without_signal(scheduler: Any) -> bool:
    """Say whether a scheduler is of flow matching, which starts from noise alone."""
    return hasattr(scheduler, "scale_noise") or bool(scheduler.config.get("use_flow_sigmas"))


def reference_gamma(scheduler: Any) -> float | None:
    """Return the gamma of a plain forward process to the first sampling step, sqrt(alpha_bar).

    Noise of that gamma holds as much of the collage as the model saw of its pictures at this step
    in training. SDXL's own scheduler gives 0.087 at 30 steps.

    Args:
        scheduler: a diffusers scheduler after `set_timesteps`. In terms of its first sigma it is
            1 / sqrt(sigma^2 + 1), one over the `init_noise_sigma` of SDXL's own.

    Returns:
        None for flow matching: gamma has no unit there.
    """
    if starts_without_signal(scheduler):
        return None
    if hasattr(scheduler, "sigmas"):
        return (float(scheduler.sigmas[0]) ** 2 + 1) ** -0.5
    return float(scheduler.alphas_cumprod[scheduler.timesteps[0]]) ** 0.5
