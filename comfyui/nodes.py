"""The nodes: a collage of cut-outs, the noise whose mean it shifts, and that noise as a latent.

What ComfyUI gives and takes: IMAGE (B, H, W, 3) float in [0, 1]; MASK (B, H, W) float in [0, 1];
LATENT, a dict with "samples" (B, C, h, w), unscaled; SIGMAS (steps + 1,); MODEL, which gives its
latent format and noise scaling by `get_model_object`; NOISE, an object with `seed` and
`generate_noise(latent)`.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import placing
from .layout_json import parse_layout
from .layouts import LayoutError, random_layout
from .shift import gamma_map, latent_masks, shift_noise

MAX_SUBJECTS = 5
MAX_SEED = 0xFFFFFFFFFFFFFFFF
FOREGROUND = 0.5  # a mask's pixel above it is the subject's
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CATEGORY = "MuDI"


class Collage:
    """Cut subjects out and lay them out: the picture that sampling starts from."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK")
    RETURN_NAMES = ("collage", "masks")
    OUTPUT_TOOLTIPS = ("the collage", "one mask a subject: what of it is seen")
    FUNCTION = "compose"
    DESCRIPTION = "Cuts subjects out by their masks and lays them out on a plain canvas."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 1024, "min": 64, "max": 8192, "step": 16}
        layout = {
            "default": "",
            "multiline": True,
            "tooltip": 'JSON: {"boxes": [[left, top, right, bottom], ...]}, one a subject, in '
            "fractions of the canvas, front to back; empty: drawn by the seed",
        }
        whole = {"tooltip": "white (1) where the subject is; invert what Load Image gives"}
        subjects: dict[str, Any] = {}
        for number in range(1, MAX_SUBJECTS + 1):
            subjects |= {f"image_{number}": ("IMAGE",), f"mask_{number}": ("MASK", whole)}
        first = {key: subjects.pop(key) for key in ("image_1", "mask_1")}
        return {
            "required": {
                **first,
                "width": ("INT", side),
                "height": ("INT", side),
                "layout": ("STRING", layout),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED}),
                "background": (["white", "black"],),
            },
            "optional": subjects,
        }

    def compose(
        self, width: int, height: int, layout: str, seed: int, background: str, **subjects: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the collage (1, H, W, 3) and the masks (N, H, W).

        Args:
            subjects: image_1, mask_1, image_2, ...; a number whose image is missing is left out.

        Raises:
            ValueError: a mask is missing, empty or of another size than its image; the layout does
                not fit.
        """
        cutouts = [
            _cut_out(number, subjects[f"image_{number}"], subjects.get(f"mask_{number}"))
            for number in range(1, MAX_SUBJECTS + 1)
            if subjects.get(f"image_{number}") is not None
        ]
        if layout.strip():
            try:
                places = parse_layout(layout, None)
            except LayoutError as error:
                raise ValueError(f"layout: {error}") from error
        else:
            rng = random.Random(f"layout {seed}")
            places = random_layout(len(cutouts), rng, aspect=width / height)
        image, visible, _ = placing.place(cutouts, places, (width, height), background)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255)
        return pixels[None], torch.from_numpy(visible).float()


def _cut_out(number: int, image: Tensor, mask: Tensor | None) -> np.ndarray:
    if mask is None:
        raise ValueError(f"image_{number} has no mask_{number}")
    rgb = (image[0, ..., :3] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    try:
        return placing.cut_out(rgb, (mask[0] > FOREGROUND).cpu().numpy())
    except ValueError as error:
        raise ValueError(
            f"image_{number}: {error}; Load Image gives an empty mask of 64x64 for a picture "
            "without transparency, and else one to be inverted"
        ) from error


@dataclass(frozen=True)
class ShiftedNoise:
    """A NOISE object. Picture i of a batch has the noise of seed + i, as in MuDI's inference.py.

    Attributes:
        latents: z (1, C, h, w), as the model's latent format scales it.
        mask: (1, 1, h, w) in [0, 1].
        gamma: a number or a map (1, 1, h, w).
        dtype: what epsilon is drawn in.
        scale: of the whole, so that sampling starts from what diffusers starts from.
    """

    seed: int
    latents: Tensor
    mask: Tensor
    gamma: float | Tensor
    dtype: torch.dtype
    scale: float = 1.0

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Return noise for the latent's samples (B, C, h, w), on the CPU.

        Raises:
            ValueError: the latent is of another size than the collage.
        """
        return self.unscaled(input_latent) * self.scale

    def unscaled(self, input_latent: dict[str, Any]) -> Tensor:
        """Return the same noise as the formula has it."""
        samples = input_latent["samples"]
        if samples.shape[1:] != self.latents.shape[1:]:
            theirs, ours = tuple(samples.shape[1:]), tuple(self.latents.shape[1:])
            raise ValueError(
                f"the latent is {theirs}, the collage's {ours} (channels, height, width): "
                "make both of one size"
            )
        numbers = input_latent.get("batch_index") or range(len(samples))
        return torch.cat([self._one(int(number)) for number in numbers]).to(samples.dtype)

    def _one(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed + number) % (MAX_SEED + 1))
        epsilon = torch.randn(self.latents.shape, generator=generator, dtype=self.dtype)
        return shift_noise(epsilon, self.latents.to(self.dtype), self.mask, self.gamma)


class MeanShiftedNoise:
    """Noise whose mean is shifted towards a collage, for SamplerCustomAdvanced."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("NOISE",)
    FUNCTION = "shift"
    DESCRIPTION = "epsilon + gamma * (mask * z): gives each subject its place from the first step."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        gamma = {"default": "0.4", "tooltip": "one number, or one a subject: 0.4, 0.2; 0: no shift"}
        seed = {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}
        drawn = {"tooltip": "inference.py's --dtype, whose noise this then is: float16 on a GPU"}
        sigmas = {"tooltip": "the sampler's; they correct ComfyUI's own scaling of the first step"}
        return {
            "required": {
                "model": ("MODEL",),
                "vae": ("VAE",),
                "collage": ("IMAGE",),
                "masks": ("MASK", {"tooltip": "one mask a subject, white (1) where it is"}),
                "gamma": ("STRING", gamma),
                "noise_seed": ("INT", seed),
                "drawn_in": (list(DTYPES), drawn),
            },
            "optional": {"sigmas": ("SIGMAS", sigmas)},
        }

    def shift(
        self,
        model: Any,
        vae: Any,
        collage: Tensor,
        masks: Tensor,
        gamma: str,
        noise_seed: int,
        drawn_in: str,
        sigmas: Tensor | None = None,
    ) -> tuple[ShiftedNoise]:
        """Encode the collage and return its NOISE.

        Raises:
            ValueError: gamma is not one number or one a subject; the model's latents are no images.
        """
        latents = model.get_model_object("latent_format").process_in(vae.encode(collage[:1]))
        if latents.ndim != 4:
            raise ValueError("mean-shifted noise is for image models; this one's latents are video")
        gammas = _gammas(gamma, len(masks))
        latents = latents.float().cpu()
        covered = latent_masks(masks.cpu(), latents.shape[-2:])
        return (
            ShiftedNoise(
                noise_seed,
                latents,
                covered.sum(0).clamp(max=1)[None, None],
                gammas[0] if len(gammas) == 1 else gamma_map(gammas, covered),
                DTYPES[drawn_in],
                1.0 if sigmas is None else _correction(model, sigmas),
            ),
        )


class StartLatent:
    """The noise as a latent, for KSamplerAdvanced with add_noise off."""

    CATEGORY = CATEGORY
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "start"
    DESCRIPTION = "Turns noise into the latent that sampling starts from (SDXL; not FLUX)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sigmas = {"tooltip": "the sampler's; unset: it starts at the model's largest sigma"}
        return {
            "required": {"model": ("MODEL",), "noise": ("NOISE",), "latent": ("LATENT",)},
            "optional": {"sigmas": ("SIGMAS", sigmas)},
        }

    def start(
        self, model: Any, noise: Any, latent: dict[str, Any], sigmas: Tensor | None = None
    ) -> tuple[dict[str, Any]]:
        """Return the latent with the start in it.

        Raises:
            ValueError: the model starts from noise alone, so no latent can hold it.
        """
        sampling = model.get_model_object("model_sampling")
        first = torch.as_tensor(sampling.sigma_max if sigmas is None else sigmas[0]).float().cpu()
        one = torch.ones(1, 1, 1, 1)
        if not sampling.noise_scaling(first, torch.zeros_like(one), one).any():
            raise ValueError(
                "this model starts from noise alone: give the NOISE to SamplerCustomAdvanced"
            )
        ours = isinstance(noise, ShiftedNoise)
        epsilon = noise.unscaled(latent) if ours else noise.generate_noise(latent)
        start = sampling.noise_scaling(first, epsilon, torch.zeros_like(epsilon), max_denoise=True)
        samples = model.get_model_object("latent_format").process_out(start)
        return ({**latent, "samples": samples},)


def _gammas(text: str, count: int) -> list[float]:
    words = text.replace(",", " ").split()
    try:
        gammas = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(
            f"gamma {text!r}: write a number, or one a subject as in 0.4, 0.2"
        ) from error
    if len(gammas) not in (1, count):
        raise ValueError(f"gamma {text!r}: {len(gammas)} numbers for {count} subjects")
    return gammas


def _correction(model: Any, sigmas: Tensor) -> float:
    """Return what ComfyUI's first step lacks of diffusers'.

    Both start from sqrt(1 + sigma^2) times the noise at the model's largest sigma, but below it
    ComfyUI takes sigma: 0.3 % less at SDXL's usual start. Flow matching knows no such difference.
    """
    sampling = model.get_model_object("model_sampling")
    first, largest = sigmas[0].float().cpu(), float(sampling.sigma_max)
    whole = bool(np.isclose(largest, float(first), rtol=1e-5, atol=0)) or float(first) > largest
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    wanted, given = (
        sampling.noise_scaling(first, one.clone(), none.clone(), max_denoise=most).item()
        for most in (True, whole)
    )
    return wanted / given


NODE_CLASS_MAPPINGS = {
    "MuDICollage": Collage,
    "MuDIMeanShiftedNoise": MeanShiftedNoise,
    "MuDIStartLatent": StartLatent,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MuDICollage": "MuDI collage",
    "MuDIMeanShiftedNoise": "MuDI mean-shifted noise",
    "MuDIStartLatent": "MuDI start latent",
}
