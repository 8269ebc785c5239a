"""Seg-Mix and mean-shifted noise with one idea taken out, to see what it does.

A collage of the method shows several subjects, each under its own name; a start shows each where it
is to be. Each class here changes one of these and nothing else.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from mudi import segmix
from mudi.data import Conditioning, Sample, SegMixDataset
from mudi.init_noise import compose_layout
from mudi.metadata import Photo
from mudi.pictures.sampling import Shot, Stage, Start
from mudi.segmix import Cutout
from mudi.training import runtime

GREY = 128


class NamesAtRandom(SegMixDataset):
    """Each cut-out of a collage goes under a name that is drawn anew, its own or not.

    (To exchange a pair's two names would change nothing: a prompt names both, in either order, and
    each stands on either side.)
    """

    def prompts(self) -> list[str]:
        names, count = list(self.subjects.names.values()), self.options.num_subjects
        return _more(super().prompts(), _any_names(names, count), self)

    def _mix(self, photo: Photo, rng: random.Random) -> Sample:
        sample = super()._mix(photo, rng)
        names = list(self.subjects.names.values())
        told = [rng.choice(names) for _ in sample.boxes]
        return replace(sample, prompt=segmix.collage_prompt(self._style, told))


class OneTwice(SegMixDataset):
    """A collage shows one subject several times, by other photos where there are."""

    def prompts(self) -> list[str]:
        count = self.options.num_subjects
        repeated = [[name] * count for name in self.subjects.names.values()]
        return _more(super().prompts(), repeated, self)

    def _mix(self, photo: Photo, rng: random.Random) -> Sample:
        own = self._by_source[photo.source][photo.subject]
        photos = [photo, *(rng.choice(own) for _ in range(self.options.num_subjects - 1))]
        return self._collage(photos, self.subjects.names, rng, None)


class Alone(SegMixDataset):
    """A collage is one cut-out on the plain background, as large as it would be among others."""

    def prompts(self) -> list[str]:
        return _more(super().prompts(), [[name] for name in self.subjects.names.values()], self)

    def _mix(self, photo: Photo, rng: random.Random) -> Sample:
        size, style = self.options.resolution, self._style
        cutout = self._cutout(photo.image, photo.mask)
        if self.options.random_flip and rng.random() < 0.5:
            cutout = segmix.flip(cutout)
        largest = segmix.largest_scale(cutout, size, style, self.options.num_subjects)
        cutout = segmix.resize(cutout, rng.uniform(style.shrink, 1) * largest)
        left, top = rng.randint(0, size - cutout.width), rng.randint(0, size - cutout.height)
        pixels = np.full((size, size, 3), 255, np.uint8)
        mask = np.zeros((size, size), bool)
        place = np.s_[top : top + cutout.height, left : left + cutout.width]
        pixels[place][cutout.mask] = cutout.pixels[..., :3][cutout.mask]
        mask[place] = cutout.mask
        prompt = segmix.collage_prompt(style, [self.subjects.names[photo.subject]])
        return Sample(pixels, mask, prompt, Conditioning(size, size, 0, 0), mixed=True)


def _any_names(names: list[str], count: int) -> list[list[str]]:
    """Return all rows of so many names, each any of them."""
    rows: list[list[str]] = [[]]
    for _ in range(count):
        rows = [[*row, name] for row in rows for name in names]
    return rows


def _more(prompts: list[str], rows: list[list[str]], dataset: SegMixDataset) -> list[str]:
    """Add the collages' prompts that name these rows of subjects."""
    told = [segmix.collage_prompt(dataset._style, row) for row in rows]
    return list(dict.fromkeys([*prompts, *told]))


class Blobs(Stage):
    """Starts show each subject's shape in grey."""

    def start(self, shot: Shot) -> Start:
        start = super().start(shot)
        cutouts = [_greyed(self._cutout(photo)) for photo in start.photos]
        return replace(start, scene=compose_layout(cutouts, start.layout, self.size))


class Exchanged(Stage):
    """Starts show each subject in the next one's place."""

    def start(self, shot: Shot) -> Start:
        start = super().start(shot)
        photos = (*start.photos[1:], start.photos[0])
        cutouts = [self._cutout(photo) for photo in photos]
        return replace(start, scene=compose_layout(cutouts, start.layout, self.size))


def _greyed(cutout: Cutout) -> Cutout:
    pixels = cutout.pixels.copy()
    pixels[..., :3] = GREY
    return Cutout(pixels)


COLLAGES: dict[str, type[SegMixDataset]] = {
    "names_at_random": NamesAtRandom,
    "one_twice": OneTwice,
    "alone": Alone,
}
STARTS: dict[str, type[Stage]] = {"blobs": Blobs, "exchanged": Exchanged}


@contextmanager
def collages_of(name: str | None) -> Iterator[None]:
    """Have trainings inside draw their samples by one of COLLAGES; None: by the method's own."""
    own = runtime.SegMixDataset
    if name is not None:
        runtime.SegMixDataset = COLLAGES[name]  # type: ignore[misc]
    try:
        yield
    finally:
        runtime.SegMixDataset = own  # type: ignore[misc]
