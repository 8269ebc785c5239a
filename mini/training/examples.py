"""Scenes with the boxes and classes of their things: what the detector learns from."""

from dataclasses import dataclass

import numpy as np

from mini.art import KINDS, SUBJECT_ACCESSORIES
from mini.training.instances import TRAINING, Wardrobe, draw_instances, random_instance
from mini.world import SIZE
from mudi.images import tight_box

NOUNS = tuple(KINDS)
NOTHING = -100  # instead of a noun; cross_entropy passes over it
COUNT_SHARES = (0.25, 0.33, 0.18, 0.13, 0.11)  # of scenes with one, two, ... five things
TWINS_SHARE = 0.35  # of the scenes of two or more whose things are all of one class
OVERLAP_SHARE = 0.3  # of the scenes, in which things may stand before each other
SOFT_SHARE = 0.6  # of the scenes, which look generated
HELD_OUT = Wardrobe(tuple(SUBJECT_ACCESSORIES), accessory_share=0.6, badge_share=0.0)


@dataclass(frozen=True)
class Example:
    """A scene to find things in.

    Attributes:
        pixels: (S, S, 3) uint8.
        boxes: (n, 4) float32, centre x, y, width and height as shares of the side.
        nouns: (n,) int64, indices into NOUNS.
        shown: (S, S) int64, the noun of the thing visible at each pixel, or NOTHING.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    nouns: np.ndarray
    shown: np.ndarray


def draw_training(rng: np.random.Generator) -> Example:
    """Draw a training scene of one to five things."""
    count = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    return draw_counted(count, TRAINING, rng)


def draw_counted(
    count: int, wardrobe: Wardrobe, rng: np.random.Generator, soft_share: float = SOFT_SHARE
) -> Example:
    """Draw a scene of so many things."""
    nouns = rng.integers(0, len(NOUNS), count)
    if rng.random() < TWINS_SHARE:
        nouns[:] = nouns[0]
    things = [random_instance(rng, wardrobe, NOUNS[noun]) for noun in nouns]
    pixels, masks = draw_instances(things, rng, OVERLAP_SHARE, soft_share)
    corners = np.array([tight_box(mask) for mask in masks], dtype=np.float32) / SIZE
    boxes = np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
    )
    shown = np.full((SIZE, SIZE), NOTHING)
    for mask, noun in zip(masks, nouns, strict=True):
        shown[mask] = noun
    return Example(pixels, boxes, nouns, shown)
