"""Subjects -> training samples. Knows no command line, no model and no optimizer.

What a sample is depends on its `Draw` alone: the photo, the optimizer step and a seed of its own.
Draws come from `DrawSchedule`, a function of the position in the run, so worker processes,
prefetching, several processes and a resumed run all see the same samples.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from cachetools import LRUCache, cachedmethod
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mudi import segmix
from mudi.ground.devices import on_gpu
from mudi.ground.sheets import contact_sheet, outline
from mudi.images import Box, load_mask, load_rgb
from mudi.metadata import Photo, Scene, Subjects
from mudi.segmix import Cutout, SegMixStyle
from mudi.subjects import Source, pattern

CACHE_BYTES = 1 << 30  # decoded photos kept per process; ten photos at 1024 px need 80 MB
COLLAGE_BYTES = 1 << 28  # composed collages of a pool kept per process; at 1024 px 64 of them
PRIOR_SUBJECTS = 2  # a prior collage shows two class images, however many the subjects' show


@dataclass(frozen=True)
class Pool:
    """A bounded stock of collages, each of which is drawn several times.

    A run's collages have numbers. At optimizer step t the stock holds those from t //
    refresh_steps on, so every refresh_steps steps the oldest goes and a new one comes.

    Attributes:
        size: collages in stock.
        seed: of the run.
    """

    size: int
    refresh_steps: int
    seed: int

    def pick(self, step: int, rng: random.Random) -> int:
        """Return the number of a collage in stock, each as likely as the others."""
        return step // self.refresh_steps + rng.randrange(self.size)


@dataclass(frozen=True)
class SampleOptions:
    """How photos become samples.

    Attributes:
        resolution: side of a sample (px).
        style: the backbone's Seg-Mix values.
        segmix_prob: probability of a collage.
        segmix_start_step: first optimizer step with collages.
        num_subjects: subjects a collage.
        scales: fixed fraction of the largest scale by subject id; None draws it each time.
        center_crop: crop photos in the middle instead of at random.
        random_flip: mirror every other photo; in a collage every cut-out by its own coin.
        num_crops: evenly spread crop positions a photo; None: any pixel.
        mix: what a collage is, one of mudi.training.args.MIXES.
        pool: where mixed draws take their collages from; None composes each anew.
        caption_boxes: a collage's prompt ends in its boxes, so that each has its own.
    """

    resolution: int
    style: SegMixStyle
    segmix_prob: float = 0.3
    segmix_start_step: int = 0
    num_subjects: int = 2
    scales: dict[str, float] | None = None
    center_crop: bool = False
    random_flip: bool = False
    num_crops: int | None = None
    mix: str = "segmix"
    pool: Pool | None = None
    caption_boxes: bool = False


class Draw(NamedTuple):
    """Everything that decides a sample: index into `Subjects.pictures`, optimizer step, seed."""

    photo: int
    step: int
    seed: str


class Conditioning(NamedTuple):
    """Sizes of a sample before the crop, all in pixels (SDXL's micro-conditioning)."""

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int


@dataclass(frozen=True)
class Sample:
    """pixels (S, S, 3) uint8; mask (S, S) bool, True everywhere in an unmixed photo.

    `key` tells the pixels from all others'; None where they do not come again on purpose. `boxes`:
    a Seg-Mix collage's subjects, each by name and box (px).
    """

    pixels: np.ndarray
    mask: np.ndarray
    prompt: str
    conditioning: Conditioning
    mixed: bool
    key: tuple | None = None
    boxes: tuple[tuple[str, Box], ...] = ()


@dataclass(frozen=True)
class Batch:
    """Samples of one micro-step; with a prior set the subjects' half comes first.

    Attributes:
        pixels: (B, S, S, 3) uint8.
        mask: (B, 1, S, S) bool.
        conditioning: (B, 4) int64; see `Conditioning`.
        prompts: B texts.
        mixed: which of the B samples are collages.
        keys: of the B samples; see `Sample`.
        num_subjects: how many of the B samples show subjects; the rest are the prior's.
    """

    pixels: Tensor
    mask: Tensor
    conditioning: Tensor
    prompts: list[str]
    mixed: list[bool]
    keys: list[tuple | None]
    num_subjects: int

    def to(self, device: torch.device) -> "Batch":
        moved = {k: getattr(self, k).to(device, non_blocking=True) for k in TENSORS}
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        return replace(self, **{k: getattr(self, k).pin_memory() for k in TENSORS})


TENSORS = ("pixels", "mask", "conditioning")  # of a Batch


class SegMixDataset(Dataset):
    """Maps a `Draw` to its samples: the subject's, then, with a prior set, the prior's.

    A scene is shown whole, or a cut-out of it begins a collage. A collage takes its other subjects
    from the drawn picture's own source, so that a source's share of the draws is its share of what
    is seen; where that lacks a subject, from all.
    """

    def __init__(self, subjects: Subjects, options: SampleOptions, prior: Subjects | None = None):
        self.subjects = subjects
        self.options = options
        self.prior = prior
        self._cut_mix = options.mix == "cutmix"
        self._style = segmix.cutmix_style(options.style) if self._cut_mix else options.style
        self._pictures = subjects.pictures
        cuts = subjects.photos if self._cut_mix else subjects.cuts  # Cut-Mix shows whole photos
        self._by_source = {
            source: _by_subject(cuts, source, subjects.names) for source in _sources(subjects)
        }
        self._prior_names = prior.names if prior else {}
        self._prior_by_subject = {s: prior.photos_of(s) for s in prior.names} if prior else {}
        self._photos: LRUCache = LRUCache(CACHE_BYTES // 2, getsizeof=_photo_bytes)
        self._cutouts: LRUCache = LRUCache(CACHE_BYTES // 2, getsizeof=_cutout_bytes)
        self._collages: LRUCache = LRUCache(COLLAGE_BYTES, getsizeof=_samples_bytes)

    def __getitem__(self, draw: Draw) -> list[Sample]:
        rng = random.Random(draw.seed)
        mixed = rng.random() < self.options.segmix_prob
        mixed = mixed and draw.step >= self.options.segmix_start_step
        if mixed and self.options.pool:
            pool = self.options.pool
            return self._pooled(pool.seed, pool.pick(draw.step, rng))
        return self._drawn(draw.photo, mixed, rng)

    def _drawn(self, index: int, mixed: bool, rng: random.Random) -> list[Sample]:
        picture = self._pictures[index]
        photo = self._cut_of(picture, rng) if mixed else None
        samples = [self._mix(photo, rng) if photo else self._single(picture, rng)]
        if self.prior:
            seen = photo or picture
            subject = rng.choice(seen.subjects) if isinstance(seen, Scene) else seen.subject
            prior_photo = rng.choice(self._prior_by_subject[subject])
            mix_or_single = self._mix_prior if photo else self._single
            samples.append(mix_or_single(prior_photo, rng))
        return samples

    def _cut_of(self, picture: Photo | Scene, rng: random.Random) -> Photo | None:
        """Return what a collage begins with: the photo, or one of a scene's cut-outs, if any."""
        if isinstance(picture, Photo):
            return picture
        return rng.choice(picture.cuts) if picture.cuts and not self._cut_mix else None

    @cachedmethod(lambda self: self._collages)
    def _pooled(self, seed: int, number: int) -> list[Sample]:
        """Return the pool's collage of that number, and the prior's that goes with it.

        Its first photo is the one at that place of a row of shuffled epochs, as a draw's is.
        """
        mixable = self._mixable
        epoch, place = divmod(number, len(mixable))
        photo = mixable[_shuffled(len(mixable), f"pool {seed}", epoch)[place]]
        samples = self._drawn(photo, True, random.Random(f"pool {seed} {number}"))
        return [replace(s, key=("collage", number, half)) for half, s in enumerate(samples)]

    @cached_property
    def _mixable(self) -> list[int]:
        """The pictures that a collage can begin with."""
        rng = random.Random(0)
        return [i for i, picture in enumerate(self._pictures) if self._cut_of(picture, rng)]

    def prompts(self) -> list[str]:
        """Return every prompt that a draw can have, each once, in a fixed order.

        Without those of collages that end in boxes, which are as many as collages.
        """
        opt = self.options
        found = [caption for picture in self._pictures for caption in picture.captions]
        mixing = opt.segmix_prob > 0 and not opt.caption_boxes
        if mixing:
            found += _collage_prompts(self.subjects.names, opt.num_subjects, self._style)
        if self.prior:
            found += [caption for photo in self.prior.photos for caption in photo.captions]
        if self.prior and mixing:
            names = self._prior_names
            same = {f"{key} again": name for key, name in names.items()} if len(names) == 1 else {}
            found += _collage_prompts({**names, **same}, PRIOR_SUBJECTS, self._style)
        return list(dict.fromkeys(found))

    def _single(self, photo: Photo | Scene, rng: random.Random) -> Sample:
        size = self.options.resolution
        image, (height, width) = self._photo(photo.image)
        flipped = self.options.random_flip and rng.random() < 0.5
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = self._crop(image.width - size, image.height - size, rng)
        pixels = np.array(image.crop((left, top, left + size, top + size)))
        everywhere = np.ones((size, size), dtype=bool)
        conditioning = Conditioning(height, width, top, left)
        again = self.options.num_crops is not None
        key = (str(photo.image), left, top, flipped) if again else None
        caption = rng.choice(photo.captions) if photo.more_captions else photo.caption
        return Sample(pixels, everywhere, caption, conditioning, mixed=False, key=key)

    def _crop(self, room_x: int, room_y: int, rng: random.Random) -> tuple[int, int]:
        """Return left and top of the crop; one of the two rooms is 0."""
        if self.options.center_crop:
            return room_x // 2, room_y // 2
        if self.options.num_crops is None:
            return rng.randint(0, room_x), rng.randint(0, room_y)
        place = rng.randrange(self.options.num_crops) / max(1, self.options.num_crops - 1)
        return round(place * room_x), round(place * room_y)

    def _mix(self, photo: Photo, rng: random.Random) -> Sample:
        others = [s for s in self.subjects.names if s != photo.subject]
        added = rng.sample(others, self.options.num_subjects - 1)
        own = self._by_source[photo.source]
        photos = [photo, *(rng.choice(own[s]) for s in added)]
        scales = self.options.scales
        fractions = [scales[p.subject] for p in photos] if scales else None
        return self._collage(photos, self.subjects.names, rng, fractions)

    def _mix_prior(self, photo: Photo, rng: random.Random) -> Sample:
        others = [s for s in self._prior_by_subject if s != photo.subject] or [photo.subject]
        photos = [photo, rng.choice(self._prior_by_subject[rng.choice(others)])]
        return self._collage(photos, self._prior_names, rng, None, in_a_row=True)

    def _collage(
        self,
        photos: list[Photo],
        names: dict[str, str],
        rng: random.Random,
        scales: list[float] | None,
        in_a_row: bool = False,
    ) -> Sample:
        opt = self.options
        cutouts = [self._cutout(photo.image, photo.mask) for photo in photos]
        if opt.random_flip:
            cutouts = [segmix.flip(c) if rng.random() < 0.5 else c for c in cutouts]
        if self._cut_mix:
            collage = segmix.compose_cutmix(cutouts, rng)
        else:
            collage = segmix.compose(cutouts, opt.resolution, opt.style, rng, scales, in_a_row)
        shown = [names[photo.subject] for photo in photos]
        prompt = segmix.collage_prompt(self._style, shown, collage.background)
        boxes = () if self._cut_mix else tuple(zip(shown, collage.boxes, strict=True))
        if opt.caption_boxes:
            prompt = f"{prompt} {segmix.box_rows(boxes, opt.resolution)}"
        conditioning = Conditioning(opt.resolution, opt.resolution, 0, 0)
        pixels = np.array(collage.image)
        return Sample(pixels, collage.mask, prompt, conditioning, mixed=True, boxes=boxes)

    @cachedmethod(lambda self: self._photos)
    def _photo(self, path: Path) -> tuple[Image.Image, tuple[int, int]]:
        """Return the photo with its shorter side at the resolution, and its (height, width)."""
        image = load_rgb(path)
        scale = self.options.resolution / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        return image.resize(size, Image.Resampling.BILINEAR), (image.height, image.width)

    @cachedmethod(lambda self: self._cutouts)
    def _cutout(self, image: Path, mask: Path) -> Cutout:
        photo, where = load_rgb(image), load_mask(mask)
        if self._cut_mix:
            return segmix.cover_half(photo, where, self.options.resolution)
        cutout = segmix.cut_out(photo, where)
        return segmix.reduce_to_canvas(cutout, self.options.resolution, self.options.style)


@dataclass(frozen=True)
class DrawSchedule:
    """Yields the draws of each micro-step of one process, from first_step up to last_step.

    All draws of a run stand in one row: photos shuffled anew each epoch, epochs one after the
    other. Micro-step m of process p of P takes the batch_size draws from (m*P + p) * batch_size.
    With sources, the row takes them in turn, by `mudi.subjects.pattern`, each in epochs of its own.

    Attributes:
        num_photos: pictures of the data set.
        repeats: how often an epoch shows each photo.
        accumulation: micro-steps an optimizer step.
        sources: parts of the data set that have shares of the draws; none: all are alike.
    """

    num_photos: int
    seed: int
    batch_size: int
    first_step: int
    last_step: int
    accumulation: int = 1
    repeats: int = 1
    process: int = 0
    num_processes: int = 1
    sources: tuple[Source, ...] = ()

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Draw]]:
        for micro in range(self.first_step * self.accumulation, self.last_step * self.accumulation):
            start = (micro * self.num_processes + self.process) * self.batch_size
            step = micro // self.accumulation
            yield [self._draw(position, step) for position in range(start, start + self.batch_size)]

    def _draw(self, position: int, step: int) -> Draw:
        if self.sources:
            photo = self._photo_of_source(position)
        else:
            photo = _nth(position, self.num_photos, self.repeats, self.seed)
        return Draw(photo, step, f"draw {self.seed} {position}")

    def _photo_of_source(self, position: int) -> int:
        """Return the picture at a place of the row: the next one of the source whose turn it is."""
        turns = pattern(tuple(source.share for source in self.sources))
        cycle, place = divmod(position, len(turns))
        source = self.sources[turns[place]]
        earlier = cycle * turns.count(turns[place]) + turns[:place].count(turns[place])
        seed = f"{self.seed} {source.name}"
        return source.photos[_nth(earlier, len(source.photos), self.repeats, seed)]


def make_loader(dataset: SegMixDataset, schedule: DrawSchedule, num_workers: int) -> DataLoader:
    """Return a loader of `Batch`es, one a micro-step of the schedule."""
    return DataLoader(
        dataset,
        batch_sampler=schedule,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=on_gpu(),
    )


def collate(drawn: list[list[Sample]]) -> Batch:
    """Stack the samples of several draws: all subjects' first, then all of the prior's."""
    samples = [sample for half in zip(*drawn, strict=True) for sample in half]
    return Batch(
        pixels=torch.from_numpy(np.stack([s.pixels for s in samples])),
        mask=torch.from_numpy(np.stack([s.mask for s in samples]))[:, None],
        conditioning=torch.tensor([s.conditioning for s in samples]),
        prompts=[s.prompt for s in samples],
        mixed=[s.mixed for s in samples],
        keys=[s.key for s in samples],
        num_subjects=len(drawn),
    )


def to_float(pixels: Tensor) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float32 in [-1, 1], on the tensor's device."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _collage_prompts(names: dict[str, str], count: int, style: SegMixStyle) -> list[str]:
    return [
        segmix.collage_prompt(style, [names[s] for s in order], background)
        for order in permutations(names, count)
        for background in segmix.backgrounds(style)
    ]


def _sources(subjects: Subjects) -> set[str]:
    return {picture.source for picture in subjects.pictures}


def _by_subject(cuts: list[Photo], source: str, names: Iterable[str]) -> dict[str, list[Photo]]:
    """Return each subject's cuts of a source; of all sources where that has none."""
    found = {}
    for subject in names:
        all_cuts = [cut for cut in cuts if cut.subject == subject]
        found[subject] = [cut for cut in all_cuts if cut.source == source] or all_cuts
    return found


def _nth(number: int, count: int, repeats: int, seed: int | str) -> int:
    """Return the picture of `count` that stands at a place in the row of shuffled epochs."""
    epoch, place = divmod(number, count * repeats)
    return _shuffled(count * repeats, seed, epoch)[place] % count


@lru_cache(maxsize=32)  # a batch can straddle two epochs, of each source, and so does a pool
def _shuffled(count: int, seed: int | str, epoch: int) -> list[int]:
    return random.Random(f"epoch {seed} {epoch}").sample(range(count), count)


def _photo_bytes(entry: tuple[Image.Image, tuple[int, int]]) -> int:
    return 4 * entry[0].width * entry[0].height  # Pillow stores RGB in four bytes


def _samples_bytes(samples: list[Sample]) -> int:
    return sum(sample.pixels.nbytes + sample.mask.nbytes for sample in samples)


def _cutout_bytes(cutout: Cutout) -> int:
    return cutout.pixels.nbytes


def mixed_samples(dataset: SegMixDataset, draws: Iterable[int], seed: int) -> list[Sample]:
    """Return mixed samples of a data set (its prior's too), by their numbers."""
    options = replace(dataset.options, segmix_prob=1.0, pool=None)  # no picture twice
    same = options == dataset.options  # then what it has decoded is of use
    mixing = dataset if same else SegMixDataset(dataset.subjects, options, dataset.prior)
    mixable = mixing._mixable
    step = dataset.options.segmix_start_step
    return [
        sample
        for i in draws
        for sample in mixing[Draw(mixable[i % len(mixable)], step, f"preview {seed} {i}")]
    ]


def collage_sheet(dataset: SegMixDataset, count: int, seed: int) -> Image.Image:
    """Draw `count` mixed samples of a data set (its prior's too) on one sheet.

    Then as many of its scenes, whole, with the outlines of their masks.
    """
    samples = mixed_samples(dataset, range(count), seed)
    scenes = dataset.subjects.scenes[:count]
    tiles = [outline(s.pixels, s.mask) for s in samples] + [outlined(scene) for scene in scenes]
    return contact_sheet(tiles, [s.prompt for s in samples] + [s.caption for s in scenes])


def outlined(scene: Scene) -> Image.Image:
    """Draw the outlines of a scene's masks into it."""
    image = load_rgb(scene.image)
    for cut in scene.cuts:
        image = outline(np.asarray(image), load_mask(cut.mask))
    return image
