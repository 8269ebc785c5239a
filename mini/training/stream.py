"""Training data by number: scene n of a seed is always the same, whoever draws it, and when."""

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mini.world import Scene, draw_scene
from mudi.ground.devices import on_gpu

HELD_OUT_SEED = 1_000_003  # of scenes that no training draws


@dataclass(frozen=True)
class SceneBatch:
    """Scenes as tensors.

    Attributes:
        pixels: (B, 3, S, S) float32, -1 to 1.
        things: (B, 1, S, S) bool, True where a thing is visible.
        captions: B texts.
    """

    pixels: Tensor
    things: Tensor
    captions: list[str]

    def to(self, device: torch.device) -> "SceneBatch":
        return SceneBatch(self.pixels.to(device), self.things.to(device), self.captions)


class NumberedDataset(Dataset):
    """Maps a number to what `draw` makes of its generator."""

    def __init__(self, draw: Callable[[np.random.Generator], Any], seed: int):
        self.draw = draw
        self.seed = seed

    def __getitem__(self, number: int) -> Any:
        return self.draw(np.random.default_rng([self.seed, number]))


def collate(scenes: list[Scene]) -> SceneBatch:
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
    things = torch.from_numpy(np.stack([scene.masks.any(axis=0) for scene in scenes]))
    captions = [scene.caption for scene in scenes]
    return SceneBatch(pixels / 127.5 - 1, things[:, None], captions)


def numbered_loader(
    draw: Callable[[np.random.Generator], Any],
    collate: Callable[[list], Any],
    seed: int,
    first: int,
    batch_size: int,
    num_workers: int,
) -> DataLoader:
    """Return an endless loader of what `draw` makes of first, first + 1, ... in batches."""
    return DataLoader(
        NumberedDataset(draw, seed),
        batch_size=batch_size,
        sampler=itertools.count(first),
        num_workers=num_workers,
        collate_fn=collate,
        prefetch_factor=8 if num_workers else None,
        worker_init_fn=_leave_stopping_to_the_main_process,
    )


def _leave_stopping_to_the_main_process(worker: int) -> None:
    """Ignore what a terminal's Ctrl-C sends to all processes: a batch under way must still come."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def scene_loader(seed: int, first: int, batch_size: int, num_workers: int) -> DataLoader:
    """Return an endless loader of the scenes first, first + 1, ... in batches."""
    return numbered_loader(draw_scene, collate, seed, first, batch_size, num_workers)


def held_out_scenes(count: int, first: int = 0) -> SceneBatch:
    """Return scenes that no training has seen."""
    dataset = NumberedDataset(draw_scene, HELD_OUT_SEED)
    return collate([dataset[number] for number in range(first, first + count)])


def default_workers() -> int:
    """Return how many processes should draw: a GPU waits for one core, a CPU trains on it."""
    return max(1, (os.cpu_count() or 1) - 1) if on_gpu() else 0
