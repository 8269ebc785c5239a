"""A pool of scenes, encoded once: latents and captions in shards on disk.

A shard is drawn and encoded when it is first needed, so training starts at once. After the last
scene of the pool the first comes again, with other noise.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mini.training.stream import scene_loader
from mudi.ground.errors import SetupError
from mudi.ground.files import replace_file

ENCODE_BATCH = 64
WORLD_FILES = (
    "art.py",
    "backgrounds.py",
    "cast.py",
    "shapes.py",
    "world.py",
)  # what a scene's number stands for


@dataclass(frozen=True)
class Shard:
    """latents (N, C, h, w) float16, normalised as the UNet sees them; N captions."""

    latents: Tensor
    captions: list[str]


class LatentPool:
    """Latents of scenes 0, 1, ... of a seed.

    Attributes:
        size: scenes in the pool; a multiple of shard_size.
        shard_size: scenes a file.
    """

    def __init__(
        self,
        folder: Path,
        vae: AutoencoderKL,
        seed: int,
        size: int,
        shard_size: int,
        num_workers: int,
    ):
        if size % shard_size:
            raise SetupError(f"a pool of {size} scenes is no multiple of {shard_size} a shard")
        self.size = size
        self.shard_size = shard_size
        self._vae = vae
        self._seed = seed
        self._num_workers = num_workers
        self._folder = folder / _pool_name(vae, seed, shard_size)

    def batches(self, first: int, batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Yield latents (B, C, h, w) float32 and captions without end, from picture first on."""
        number, shard = -1, None
        for start in count(first, batch_size):
            rows: list[Tensor] = []
            captions: list[str] = []
            for picture in range(start, start + batch_size):
                index = picture % self.size
                if shard is None or index // self.shard_size != number:
                    number = index // self.shard_size
                    shard = self._shard(number)
                rows.append(shard.latents[index % self.shard_size])
                captions.append(shard.captions[index % self.shard_size])
            yield torch.stack(rows).float(), captions

    def _shard(self, number: int) -> Shard:
        """Read a shard, or make it first."""
        path = self._folder / f"{number:05d}.safetensors"
        if not path.is_file():
            replace_file(path, lambda temporary: self._make(number, temporary))
        with safe_open(path, framework="pt") as file:
            return Shard(file.get_tensor("latents"), json.loads(file.metadata()["captions"]))

    @torch.no_grad()
    def _make(self, number: int, path: Path) -> None:
        """Draw and encode a shard's scenes."""
        first = number * self.shard_size
        generator = torch.Generator(self._vae.device).manual_seed(self._seed + first)
        latents: list[Tensor] = []
        captions: list[str] = []
        for batch in scene_loader(self._seed, first, ENCODE_BATCH, self._num_workers):
            pixels = batch.pixels.to(self._vae.device, self._vae.dtype)
            latents.append(encode(self._vae, pixels, generator).half().cpu())
            captions += batch.captions
            if len(captions) >= self.shard_size:
                break
        save_file(
            {"latents": torch.cat(latents)[: self.shard_size].contiguous()},
            path,
            metadata={"captions": json.dumps(captions[: self.shard_size])},
        )


def encode(vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Sample the latents of pixels (B, 3, S, S), -1 to 1: (B, C, h, w) of mean 0, variance 1."""
    sample = vae.encode(pixels).latent_dist.sample(generator)
    if vae.config.latents_mean is None:
        return sample
    mean, std = (sample.new_tensor(x) for x in (vae.config.latents_mean, vae.config.latents_std))
    return (sample - mean[:, None, None]) / std[:, None, None]


def encoder_fingerprint(vae: AutoencoderKL) -> str:
    """Return a name for the encoder's weights; the decoder may go on learning."""
    digest = hashlib.sha256()
    for name, tensor in [*vae.encoder.state_dict().items(), *vae.quant_conv.state_dict().items()]:
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _pool_name(vae: AutoencoderKL, seed: int, shard_size: int) -> str:
    """Return a folder name for what decides the latents: the encoder, the world, the seed."""
    digest = hashlib.sha256(f"{encoder_fingerprint(vae)} {seed} {shard_size}".encode())
    for name in WORLD_FILES:
        digest.update((Path(__file__).parent.parent / name).read_bytes())
    return f"latents-{digest.hexdigest()[:12]}"
