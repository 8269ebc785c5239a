"""What the networks are asked in training, and the loss of their answers; the same for every base.

A base brings a `Schedule` (noise levels, targets, weights) and a denoiser, a module called as
`denoiser(sample, timesteps, prompts, conditions)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from cachetools import LRUCache
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from mudi.learned_words import LearnedWords
from mudi.lora import adapters_off
from mudi.losses import dco_loss, masked_mse

PROMPT_BYTES = 1 << 27  # of device memory; SDXL's prompts take 0.3 MB apiece, FLUX's 4 MB

# What a base is told of B prompts: tensors (B, ...), as (B, T, D) of tokens and (B, P) pooled, or
# lists of B tensors where prompts differ in length
Embeddings = tuple[Any, ...]
PromptEncoder = Callable[[list[str]], Embeddings]


@dataclass(frozen=True)
class Corrupted:
    """Latents at drawn noise levels: what the network gets, and what its answer is compared with.

    The prediction is `offset + scale * output`, where the network's output itself is not meant.

    Attributes:
        network_input, target: (B, C, h, w) float32.
        timesteps: (B,), what the network is told of the noise level.
        loss_weights: (B,) float32, of each sample's error.
        offset, scale: (B, C, h, w) and (B, 1, 1, 1) float32, or one number for all.
    """

    network_input: Tensor
    timesteps: Tensor
    target: Tensor
    loss_weights: Tensor
    offset: Tensor | float = 0.0
    scale: Tensor | float = 1.0

    def prediction(self, output: Tensor) -> Tensor:
        """Turn the network's output into what `target` is compared with, in float32."""
        return self.offset + self.scale * output.float()

    def first(self, count: int) -> "Corrupted":
        """Return the first samples only."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        cut = {k: v[:count] if isinstance(v, Tensor) else v for k, v in values.items()}
        return Corrupted(**cut)


class Schedule(Protocol):
    """The noise levels that a base is trained with, as indices into its scheduler's."""

    def timestep_indices(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw indices (B,) int64 on the generator's device."""

    def corrupt(self, latents: Tensor, noise: Tensor, indices: Tensor) -> Corrupted:
        """Bring latents (B, C, h, w) float32 to the levels of indices (B,) with that noise."""


@dataclass(frozen=True)
class Models:
    """The parts of a base that a run uses.

    Attributes:
        denoiser: its submodule `text_encoders` holds the encoders that each step runs, if any.
        adapted: what trains, by the pipeline's part names.
        sample: makes a validation image from a seed; None without a validation prompt.
        words: learned ones, a submodule of the denoiser's.
        drawn: another network, with which `sample` works; None: the denoiser's.
    """

    denoiser: nn.Module
    vae: Any
    schedule: Schedule
    adapted: dict[str, Any]
    sample: Callable[[int], Image.Image] | None
    words: LearnedWords | None = None
    drawn: nn.Module | None = None


class PromptTable:
    """Prompts encoded once; looks them up afterwards, so that the encoders can be freed.

    Args:
        encode: encodes a list of prompts.
        prompts: all that will be asked for.
        device: where looked-up embeddings go.
        kept_bytes: embeddings kept there, the first ones asked for; the others are copied from
            host memory each time.
        only_sizes: embeddings are all of one size, of which alone is asked: encode the first.
    """

    def __init__(
        self,
        encode: PromptEncoder,
        prompts: list[str],
        device: torch.device,
        kept_bytes: int = PROMPT_BYTES,
        only_sizes: bool = False,
    ):
        self._device = device
        self._room = kept_bytes
        self._entries: dict[str, Embeddings] = {}
        with torch.no_grad():
            for prompt in tqdm(prompts, desc="prompts", leave=False, disable=len(prompts) < 20):
                known = next(iter(self._entries.values()), None) if only_sizes else None
                told = encode([prompt]) if known is None else tuple(map(torch.empty_like, known))
                self._entries[prompt] = _moved(told, torch.device("cpu"))

    def __call__(self, prompts: list[str]) -> Embeddings:
        return joined(list(map(self._look_up, prompts)))

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._entries

    def _look_up(self, prompt: str) -> Embeddings:
        entry = self._entries[prompt]
        if all(tensor.device.type == self._device.type for tensor in _tensors(entry)):
            return entry
        moved = _moved(entry, self._device)
        size = sum(tensor.nbytes for tensor in _tensors(moved))
        if size <= self._room:
            self._room -= size
            self._entries[prompt] = moved
        return moved


class LivePrompts:
    """Looks up the prompts of a table, and encodes any other when it comes, with a frozen encoder.

    Each by itself, so that what it gives hangs on no other; the last few are kept, as DCO asks
    twice.
    """

    def __init__(self, table: PromptTable, encode: PromptEncoder, kept: int = 16):
        self._table, self._encode = table, encode
        self._last: LRUCache = LRUCache(kept)

    def __call__(self, prompts: list[str]) -> Embeddings:
        return joined(list(map(self._look_up, prompts)))

    def _look_up(self, prompt: str) -> Embeddings:
        if prompt in self._table:
            return self._table([prompt])
        if prompt not in self._last:
            with torch.no_grad():
                self._last[prompt] = self._encode([prompt])
        return self._last[prompt]


def joined(prompts: Sequence[Embeddings]) -> Embeddings:
    """Put what is told of single prompts together, as of one batch."""
    return tuple(
        torch.cat(parts) if isinstance(parts[0], Tensor) else [t for part in parts for t in part]
        for parts in zip(*prompts, strict=True)
    )


def _tensors(told: Embeddings) -> list[Tensor]:
    return [t for part in told for t in ([part] if isinstance(part, Tensor) else part)]


def _moved(told: Embeddings, device: torch.device) -> Embeddings:
    return tuple(
        part.to(device) if isinstance(part, Tensor) else [t.to(device) for t in part]
        for part in told
    )


class WordPrompts:
    """Encodes prompts with learned words anew each time, and looks the others up.

    Where the words are switched off (DCO's reference pass), nouns stand in the names' place. Each
    prompt is encoded by itself, as a table's are, so that what it gives hangs on no other.

    Args:
        encode: knows the words.
        prompts: all that will be asked for.
        device: see `PromptTable`.
    """

    def __init__(
        self, words: LearnedWords, encode: PromptEncoder, prompts: list[str], device: torch.device
    ):
        self._words, self._encode = words, encode
        plain = dict.fromkeys(map(words.vocabulary.with_nouns, prompts))
        with words.as_they_are():  # a noun may be another subject's name
            self._table = PromptTable(encode, list(plain), device)

    def __call__(self, prompts: list[str]) -> Embeddings:
        return joined(list(map(self._look_up, prompts)))

    def _look_up(self, prompt: str) -> Embeddings:
        vocabulary = self._words.vocabulary
        if vocabulary.finds(prompt) and not self._words.disable_adapters:
            return self._encode([prompt])
        return self._table([vocabulary.with_nouns(prompt)])


@dataclass(frozen=True)
class DenoisingTask:
    """What the network is asked in one pass, and what would be right.

    Attributes:
        weight: (B, 1, h, w), the soft mask at latent size.
        conditions: (B, n), what the network is told besides the prompt; n may be 0.
    """

    corrupted: Corrupted
    weight: Tensor
    prompts: list[str]
    conditions: Tensor

    def first(self, count: int) -> "DenoisingTask":
        """Return the task of the first samples only."""
        return DenoisingTask(
            self.corrupted.first(count),
            self.weight[:count],
            self.prompts[:count],
            self.conditions[:count],
        )


def make_task(
    schedule: Schedule,
    latents: Tensor,
    weight: Tensor,
    prompts: list[str],
    conditions: Tensor,
    generator: torch.Generator,
) -> DenoisingTask:
    """Draw noise and noise levels for latents (B, C, h, w) float32."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    indices = schedule.timestep_indices(len(latents), generator)
    return DenoisingTask(schedule.corrupt(latents, noise, indices), weight, prompts, conditions)


def denoising_errors(denoiser: nn.Module, task: DenoisingTask) -> Tensor:
    """Return L: the weighted squared error of each sample (B,) float32."""
    asked = task.corrupted
    output = denoiser(asked.network_input, asked.timesteps, task.prompts, task.conditions)
    errors = masked_mse(asked.prediction(output), asked.target, task.weight)
    return asked.loss_weights * errors


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
        base: the same network unwrapped, for DCO's pass without adapters and learned words.
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
