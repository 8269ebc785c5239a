"""Pictures of several subjects from mean-shifted noise, by stock pipelines.

sampler = Sampler(pipeline, sampling, subjects)
pictures = sampler.draw([Shot("a photo of a olis robot and a hta teddy bear", seed=0)])
sheet = start_sheet(pictures)
"""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from itertools import groupby
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image, ImageDraw
from torch import Tensor

from mudi.backbones.table import BUILT_IN, backbone_of
from mudi.ground.errors import SetupError
from mudi.ground.sheets import COLOURS, contact_sheet
from mudi.images import load_mask, load_rgb
from mudi.init_noise import (
    Layout,
    Scene,
    compose_layout,
    gamma_map,
    latent_masks,
    mean_shifted_noise,
    random_layout,
    reference_gamma,
    starts_without_signal,
    subject_latents,
)
from mudi.learned_words import attached
from mudi.metadata import Photo, Subjects
from mudi.pictures.reward import reward_guidance, reward_map
from mudi.pictures.shot_args import named_subjects
from mudi.segmix import Cutout, cut_out
from mudi.texts import class_noun, folded, replace_names

SCHEDULERS: dict[str, Any] = {
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
KEPT_CUTOUTS = 32  # a 12-megapixel photo's can take 50 MB


class SamplingError(SetupError):
    """A picture can't be made as it was asked for; the message says what to change."""


@dataclass(frozen=True)
class Sampling:
    """How a pipeline is called; None leaves it to the pipeline.

    Attributes:
        size: (width, height) in pixels.
    """

    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Shot:
    """A picture to be made.

    Attributes:
        seed: of its noise, its random layout and the choice of photos.
        gamma: strength of the mean shift, one number or one by subject id.
        layout: of the subjects that the prompt names, in the data folder's order; None: random.
        scales: relative sizes by subject id for a random layout; None: random.
        reward_guidance: one number, or one by subject id where gamma is not 0; None: ordinary.
    """

    prompt: str
    seed: int
    gamma: float | dict[str, float] = 0.0
    layout: Layout | None = None
    scales: dict[str, float] | None = None
    reward_guidance: float | dict[str, float] | None = None


@dataclass(frozen=True)
class Start:
    """What a picture starts from: which subjects, which of their photos, where."""

    names: tuple[str, ...]
    photos: tuple[Photo, ...]
    layout: Layout
    scene: Scene


@dataclass(frozen=True)
class Picture:
    """A finished picture with what it came from; no start where there are no subjects."""

    shot: Shot
    image: Image.Image
    start: Start | None


class Stage:
    """Lays out the subjects that a prompt names, each cut out of one of its photos.

    Args:
        size: (width, height) of the canvas in pixels.
    """

    def __init__(self, subjects: Subjects, size: tuple[int, int]):
        self.subjects, self.size = subjects, size
        self._cutout = lru_cache(KEPT_CUTOUTS)(_cutout)

    def start(self, shot: Shot) -> Start:
        """Lay out the subjects of a shot.

        Raises:
            SamplingError: the prompt names no subject, or the layout is for other ones.
        """
        ids = named_subjects(shot.prompt, self.subjects.names)
        if not ids:
            known = ", ".join(f'"{name}"' for name in self.subjects.names.values())
            raise SamplingError(f'"{shot.prompt}" names no subject; there are {known}')
        rng = random.Random(f"layout {shot.seed}")
        photos = [self.subjects.photos_of(subject) for subject in ids]
        chosen = [rng.choice(own) for own in photos]
        layout = shot.layout
        if layout is None:
            scales = [shot.scales[subject] for subject in ids] if shot.scales else None
            layout = random_layout(len(ids), rng, scales, self.size[0] / self.size[1])
        if len(layout.boxes) != len(ids):
            raise SamplingError(
                f'"{shot.prompt}" names {len(ids)} subjects, its layout has {len(layout.boxes)}'
            )
        for i, name in enumerate(layout.photos):
            if name is not None:
                chosen[i] = photo_named(name, photos[i], self.subjects.folder)
        cutouts = [self._cutout(photo) for photo in chosen]
        scene = compose_layout(cutouts, layout, self.size)
        names = tuple(self.subjects.names[subject] for subject in ids)
        return Start(names, tuple(chosen), layout, scene)


class Sampler:
    """Makes pictures; each is a function of its shot alone.

    Args:
        pipeline: of a backbone in the table. Make the sampler before CPU offload is switched on.
        sampling: how it is called.
        subjects: whose cut-outs the pictures start from; None: every picture starts from noise.
        device: where collages are encoded; None: the pipeline's.
        nouns: by name, for the base of reward guidance; None: the names without their first words.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        sampling: Sampling,
        subjects: Subjects | None = None,
        device: torch.device | None = None,
        nouns: Mapping[str, str] | None = None,
    ):
        self.pipeline = pipeline
        self.backbone = backbone_of(type(pipeline).__name__)
        # Z-Image's pipeline does not say; all draw 1024 px
        side = getattr(pipeline, "default_sample_size", 128) * pipeline.vae_scale_factor
        self.size = sampling.size or (side, side)
        unit = self.backbone.size_unit
        if any(length % unit for length in self.size):
            raise SamplingError(f"{self.size[0]}x{self.size[1]}: both must be multiples of {unit}")
        width, height = (length // pipeline.vae_scale_factor for length in self.size)
        self._space = self.backbone.module.SPACE
        channels = pipeline.vae.config.latent_channels
        self._latent_shape = self._space.shape(channels, (height, width))
        if sampling.negative_prompt and not self.backbone.negative_prompt:
            raise SamplingError(f"{self.backbone.title} takes no negative prompt; leave it out")
        settings = {
            "num_inference_steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
        }
        self._settings = {key: value for key, value in settings.items() if value is not None}
        self._negative_prompt = sampling.negative_prompt
        own = signature(type(pipeline).__call__).parameters["guidance_scale"].default
        self._guidance_scale: float = self._settings.get("guidance_scale", own)
        names = subjects.names.values() if subjects else ()
        self._nouns = {name: class_noun(name) for name in names} if nouns is None else nouns
        self._denoiser = getattr(pipeline, self.backbone.denoiser)
        self.stage = Stage(subjects, self.size) if subjects else None
        if subjects:
            # SDXL's own VAE overflows in half precision; CPU offload would move it behind our back
            self._vae = copy.deepcopy(pipeline.vae).float().to(device or pipeline.device)

    def draw(
        self,
        shots: Sequence[Shot],
        batch_size: int = 1,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Iterator[Picture]:
        """Make pictures, batch_size at a time; each batch when its first picture is asked for.

        Args:
            on_step: is told how many denoising steps of a batch are done, and of how many.

        Raises:
            SamplingError: a shot can't be laid out.
        """
        for _, group in groupby(shots, lambda shot: shot.reward_guidance is None):
            alike = list(group)
            for first in range(0, len(alike), batch_size):
                yield from self._draw(alike[first : first + batch_size], on_step)

    def noise(self, shot: Shot) -> Tensor:
        """Return what a picture starts from before the scheduler scales it: (1, C, h, w), CPU.

        Raises:
            SamplingError: the shot can't be laid out.
        """
        generator = torch.Generator().manual_seed(shot.seed)
        return self._noise(shot, self._start(shot), generator)

    def _start(self, shot: Shot) -> Start | None:
        return self.stage.start(shot) if self.stage and shot.gamma != 0 else None

    def _draw(
        self, shots: Sequence[Shot], on_step: Callable[[int, int], None] | None
    ) -> list[Picture]:
        generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
        starts = [self._start(shot) for shot in shots]
        noise = torch.cat(
            [
                self._noise(shot, start, generator)
                for shot, start, generator in zip(shots, starts, generators, strict=True)
            ]
        )
        more: dict[str, Any] = dict(self._settings)
        if self._negative_prompt:
            more["negative_prompt"] = [self._negative_prompt] * len(shots)
        if on_step is not None:
            more["callback_on_step_end"] = _telling(on_step)
        with self._guidance(shots, starts):
            images = self.pipeline(
                prompt=[shot.prompt for shot in shots],
                width=self.size[0],
                height=self.size[1],
                latents=self.backbone.module.to_pipeline(noise),
                generator=generators,
                **more,
            ).images
        return [Picture(*made) for made in zip(shots, images, starts, strict=True)]

    def base_prompt(self, prompt: str) -> str:
        """Return what reward guidance asks the base for, in a prompt's place."""
        tokens = {w.token: w.noun for words in attached(self.pipeline) for w in words.words}
        return replace_names(prompt, {**tokens, **self._nouns})

    def _guidance(
        self, shots: Sequence[Shot], starts: Sequence[Start | None]
    ) -> AbstractContextManager[None]:
        """Guide by the reward inside, if these shots want it."""
        if shots[0].reward_guidance is None:
            return nullcontext()
        rewards = torch.cat([self._rewards(*made) for made in zip(shots, starts, strict=True)])
        return reward_guidance(
            self.pipeline,
            self.backbone.module.to_pipeline(rewards),
            [self.base_prompt(shot.prompt) for shot in shots],
            self._guidance_scale,
            self._negative_prompt and self.base_prompt(self._negative_prompt),
        )

    def _rewards(self, shot: Shot, start: Start | None) -> Tensor:
        """Return a shot's reward (1, C, h, w)."""
        reward: Any = shot.reward_guidance
        if isinstance(reward, dict):
            if start is None:
                raise SamplingError("a reward for each subject needs their places: give a gamma")
            masks = latent_masks(start.scene.visible, self._latent_shape[-2:])
            elsewhere = 1.0
            if self.backbone.guidance != BUILT_IN:
                elsewhere += self._guidance_scale - self.backbone.unguided
            reward = reward_map([reward[p.subject] for p in start.photos], masks, elsewhere)
        return torch.zeros(self._latent_shape) + reward

    def _noise(self, shot: Shot, start: Start | None, generator: torch.Generator) -> Tensor:
        """Return what the pipeline starts from (1, C, h, w), on the CPU."""
        latents = torch.zeros(self._latent_shape)
        mask = torch.zeros_like(latents[:, :1])
        gamma: float | Tensor = 0.0
        if start is not None:
            latents = subject_latents(self._vae, [start.scene.image], self._space).cpu()
            masks = latent_masks(start.scene.visible, self._latent_shape[-2:])
            mask = masks.sum(0)[None, None]
            gamma = _gamma(shot, start, masks)
        dtype = torch.float32 if self.backbone.float_noise else self._denoiser.dtype
        return mean_shifted_noise(latents.to(dtype), mask, gamma, generator)


def _telling(on_step: Callable[[int, int], None]) -> Callable[..., dict[str, Any]]:
    """Return what a pipeline calls after each step: it tells the step, and changes nothing."""

    def tell(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, len(pipeline.scheduler.timesteps))
        return values

    return tell


def _gamma(shot: Shot, start: Start, masks: Tensor) -> float | Tensor:
    if isinstance(shot.gamma, dict):
        return gamma_map([shot.gamma[photo.subject] for photo in start.photos], masks)
    return shot.gamma


def _cutout(photo: Photo) -> Cutout:
    return cut_out(load_rgb(photo.image), load_mask(photo.mask))


def photo_named(name: str, photos: list[Photo], folder: Path) -> Photo:
    """Return the photo of a subject that a layout names by its path in the data folder.

    The path's last part alone is good if no other photo of the subject has it.

    Raises:
        SamplingError: there is none, or more than one.
    """
    wanted = folded(normpath(name))
    by_path = {
        folded(normpath(photo.image.relative_to(folder).as_posix())): photo for photo in photos
    }
    if wanted in by_path:
        return by_path[wanted]
    named = [path for path in by_path if PurePosixPath(path).name == wanted]
    if len(named) == 1:
        return by_path[named[0]]
    listed = ", ".join(named or by_path)
    has = f"could be {listed}; write it so" if named else f"is none of the subject's: {listed}"
    raise SamplingError(f'the layout wants the photo "{name}", which {has}')


def set_scheduler(pipeline: DiffusionPipeline, name: str) -> None:
    """Give an SDXL pipeline another of SCHEDULERS, with the noise levels of its own.

    Raises:
        SamplingError: it is of flow matching, which has one scheduler only.
    """
    backbone = backbone_of(type(pipeline).__name__)
    if backbone.flow:
        raise SamplingError(f"{backbone.title} has its own scheduler; leave --scheduler out")
    pipeline.scheduler = SCHEDULERS[name].from_config(pipeline.scheduler.config)


def signal_unit(scheduler: Any, steps: int) -> float | None:
    """Return the gamma that equals a scheduler's own signal at the first of `steps`.

    See `reference_gamma`; None for flow matching.
    """
    if starts_without_signal(scheduler):
        return None
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    return reference_gamma(scheduler)


def layout_picture(start: Start) -> Image.Image:
    """Draw a layout's boxes, the front ones over those behind them."""
    image = Image.new("RGB", start.scene.image.size, "white")
    pen = ImageDraw.Draw(image)
    width, height = image.size
    for i in reversed(start.layout.front_to_back):
        left, top, right, bottom = start.layout.boxes[i]
        corners = (left * width, top * height, right * width, bottom * height)
        colour = COLOURS[i % len(COLOURS)]
        pen.rectangle(corners, fill="#f4f4f4", outline=colour, width=max(2, width // 100))
        pen.text(corners[:2], f" {start.names[i]}", fill=colour, font_size=max(8, width // 20))
    return image


def start_sheet(pictures: Iterable[Picture]) -> Image.Image:
    """Lay layout, starting collage and result side by side, a row for each picture."""
    images, captions = [], []
    for picture in pictures:
        start, shot = picture.start, picture.shot
        blank = Image.new("RGB", picture.image.size, "white")
        images += [layout_picture(start), start.scene.image] if start else [blank, blank]
        images.append(picture.image)
        captions += ["layout", "starting collage"] if start else ["", "noise alone"]
        reward = "" if shot.reward_guidance is None else f", reward {shot.reward_guidance}"
        captions.append(f"seed {shot.seed}, gamma {shot.gamma}{reward}: {shot.prompt}")
    return contact_sheet(images, captions, columns=3)
