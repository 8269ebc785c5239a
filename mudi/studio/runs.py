"""Masks on their way to the page and back: lengths of runs, row by row, background first.

Exact where a picture is not: a browser may change what it gives out of a canvas, to hide who asks.
"""

from http import HTTPStatus
from typing import Any

import numpy as np

from mudi.studio.server import Refusal


def to_runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of a mask's runs (H, W) bool; the first, of background, may be 0."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def from_runs(runs: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) bool of a photo of size (W, H).

    Raises:
        Refusal: they are no runs of such a mask.
    """
    whole = all(type(run) is int and 0 <= run <= size[0] * size[1] for run in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"no mask of {size[0]}x{size[1]} px")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0])
