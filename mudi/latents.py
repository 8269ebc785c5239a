"""Pixels <-> latents, for any VAE with a normal distribution; `LatentSpace`: a base's own ways."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cachetools import LRUCache
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from mudi.data import to_float

CACHE_BYTES = 1 << 30  # of host memory; a 1024 px SDXL photo's distribution takes 0.5 MB


Scaling = tuple[Tensor | float, Tensor | float]  # what to subtract, what to multiply with then


@dataclass(frozen=True)
class LatentSpace:
    """How a base's denoiser sees what its VAE makes of pictures.

    Attributes:
        scaling: of latents (B, C, h, w), whose device and precision the answer has, by the VAE.
        patch: side of the squares of the VAE's latents that are folded into channels first.
    """

    scaling: Callable[[Any, Tensor], Scaling]
    patch: int = 1

    def shape(self, channels: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return one picture's shape (1, C, h, w) from the VAE's channels and size (h, w)."""
        height, width = (side // self.patch for side in size)
        return 1, channels * self.patch**2, height, width

    def seen(self, vae: Any, raw: Tensor) -> Tensor:
        """Turn the VAE's latents into the denoiser's: (B, c, p h, p w) -> (B, c p^2, h, w)."""
        latents = F.pixel_unshuffle(raw, self.patch)
        shift, scale = self.scaling(vae, latents)
        return (latents - shift) * scale

    def raw(self, vae: Any, latents: Tensor) -> Tensor:
        """Undo `seen`."""
        shift, scale = self.scaling(vae, latents)
        return F.pixel_shuffle(latents / scale + shift, self.patch)


class LatentCache:
    """Keeps the VAE's answers for pixels that come again; see `encode_images`."""

    def __init__(self, max_bytes: int = CACHE_BYTES):
        self._entries: LRUCache = LRUCache(max_bytes, getsizeof=lambda t: t.nbytes)

    def __len__(self) -> int:
        return len(self._entries)

    def distributions(self, vae: Any, pixels: Tensor, keys: list[Any]) -> Tensor:
        """Return means and log-variances (B, 2C, h, w); None among the keys: never kept.

        What is kept is encoded by itself: a batch's size tells in the last bits, and a resumed
        run, whose cache is empty, would put other batches together.
        """
        loose = [i for i, key in enumerate(keys) if key is None]
        rows = dict(zip(loose, _encode(vae, pixels[loose]), strict=True)) if loose else {}
        for i, key in enumerate(keys):
            if key is not None:
                rows[i] = self._distribution(vae, pixels[i : i + 1], key)
        return torch.stack([rows[i] for i in range(len(keys))])

    def _distribution(self, vae: Any, pixels: Tensor, key: Any) -> Tensor:
        if key in self._entries:
            return self._entries[key].to(pixels.device, non_blocking=True)
        row = _encode(vae, pixels)[0]
        if row.nbytes <= self._entries.maxsize:
            # from a GPU into pinned memory, in the order of its work: neither copy is waited for
            self._entries[key] = row.to("cpu", copy=True, non_blocking=True)
        return row


def config_scaling(vae: Any, latents: Tensor) -> Scaling:
    """Return the scaling that an `AutoencoderKL`'s configuration states."""
    config = vae.config
    shift, scale = config.shift_factor or 0.0, config.scaling_factor
    if config.latents_mean is not None and config.latents_std is not None:
        shift = shift + latents.new_tensor(config.latents_mean)[:, None, None]
        scale = scale / latents.new_tensor(config.latents_std)[:, None, None]
    return shift, scale


KL = LatentSpace(config_scaling)


def encode_images(
    vae: Any,
    pixels: Tensor,
    generator: torch.Generator | None,
    cache: LatentCache | None = None,
    keys: list[Any] | None = None,
    space: LatentSpace = KL,
) -> Tensor:
    """Encode pixels (B, H, W, 3) uint8 to latents (B, C, h, w) float32, as the denoiser sees them.

    Args:
        generator: of the sampling noise, which is drawn anew each time, cached or not; None for
            the distribution's mean.
        cache: where distributions are kept between calls.
        keys: what identifies each picture's pixels; None for one that does not come again.
        space: the base's.
    """
    if cache is None or keys is None:
        parameters = _encode(vae, pixels)
    else:
        parameters = cache.distributions(vae, pixels, keys)
    distribution = DiagonalGaussianDistribution(parameters)
    raw = distribution.mode() if generator is None else distribution.sample(generator)
    return space.seen(vae, raw.float())


def decode_latents(vae: Any, latents: Tensor, space: LatentSpace = KL) -> Tensor:
    """Undo `encode_images`: (B, C, h, w) -> (B, 3, H, W) in [-1, 1], in the VAE's precision."""
    return decode_raw(vae, space.raw(vae, latents.float()))


def decode_raw(vae: Any, latents: Tensor) -> Tensor:
    """Decode the VAE's own latents as `decode_latents` does the denoiser's."""
    raw = latents.to(vae.dtype)
    with torch.autocast(raw.device.type, enabled=False):  # SDXL's own VAE overflows in float16
        return vae.decode(raw, return_dict=False)[0]


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    return vae.encode(to_float(pixels).to(vae.dtype)).latent_dist.parameters
