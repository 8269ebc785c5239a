"""How well a base reads: is its error lower with the right word than with a wrong one?

    python -m mini.training.right_word --base output/mini/sdxl

The cheap measure on the way to the gates of mini/weights/README.md: no picture is made. Held-out
scenes of one thing are noised to a level, and the noise is predicted with their own caption and
with the same caption in which one word is exchanged: the colour, the class, or a character's name
for that of another character of its class.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from torch import Tensor

from mini.art import COLOURS, KINDS, Thing, named_paint
from mini.cast import CAST, CAST_OF, NAMES
from mini.training.base_model import denoiser_of, load_pipeline
from mini.training.latents import encode
from mini.training.stream import HELD_OUT_SEED
from mini.world import arrange, describe
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.flags import MODEL_INDEX, flag, parse, range_complaints
from mudi.segmix import SDXL_STYLE

LEVELS = (500, 800, 950)  # timesteps; below there is little that a word could tell
BATCH = 64  # pairs of captions
NOISES = 2  # of each scene and level, the same for both captions


@dataclass(frozen=True)
class Choice:
    """A thing on white, its caption, and the caption with a wrong word."""

    thing: Thing
    right: str
    wrong: str


def colour_choice(rng: np.random.Generator) -> Choice:
    """Exchange the colour."""
    noun, (colour, other) = _noun(rng), rng.choice(list(COLOURS), 2, replace=False)
    thing = Thing(noun, named_paint(str(colour), rng))
    wrong = replace(thing, paint=named_paint(str(other), rng))
    return Choice(thing, _caption(describe(thing)), _caption(describe(wrong)))


def class_choice(rng: np.random.Generator) -> Choice:
    """Exchange the class."""
    noun, other = rng.choice(list(KINDS), 2, replace=False)
    thing = Thing(str(noun), named_paint(str(rng.choice(list(COLOURS))), rng))
    wrong = replace(thing, noun=str(other))
    return Choice(thing, _caption(describe(thing)), _caption(describe(wrong)))


def name_choice(rng: np.random.Generator) -> Choice:
    """Exchange a character's name for that of another of its class."""
    thing = CAST[str(rng.choice(list(CAST)))]
    others = [other for other in CAST_OF[thing.noun] if other != thing]
    other = others[int(rng.integers(len(others)))]
    wrong = f"{NAMES[other]} {other.noun}"
    return Choice(thing, _caption(describe(thing)), _caption(wrong))


CHOICES: dict[str, Callable[[np.random.Generator], Choice]] = {
    "colour": colour_choice,
    "class": class_choice,
    "name": name_choice,
}


def _noun(rng: np.random.Generator) -> str:
    return str(rng.choice(list(KINDS)))


def _caption(name: str) -> str:
    return SDXL_STYLE.template.format(subjects=f"a {name}")


@torch.no_grad()
def right_word(pipeline: StableDiffusionXLPipeline, word: str, count: int) -> dict[int, float]:
    """Return the share of scenes in which the right word gives the lower error, by level.

    Args:
        pipeline: a miniature.
        word: of CHOICES.
        count: scenes.
    """
    right = {level: 0 for level in LEVELS}
    levels = DDPMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        draws = [np.random.default_rng([HELD_OUT_SEED, number]) for number in numbers]
        choices = [CHOICES[word](rng) for rng in draws]
        pictures = [
            arrange([choice.thing], "white", rng)[0]
            for choice, rng in zip(choices, draws, strict=True)
        ]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
        latents = encode(pipeline.vae, pixels, generator)
        for level in LEVELS:
            steps = torch.full((len(latents),), level)
            gain = torch.zeros(len(latents))
            for _ in range(NOISES):
                noise = torch.randn(latents.shape, generator=generator)
                noisy = levels.add_noise(latents, noise, steps)
                gain += _error(pipeline, noisy, steps, noise, [c.wrong for c in choices])
                gain -= _error(pipeline, noisy, steps, noise, [c.right for c in choices])
            right[level] += int((gain > 0).sum())
    return {level: hits / count for level, hits in right.items()}


def _error(
    pipeline: StableDiffusionXLPipeline,
    noisy: Tensor,
    steps: Tensor,
    noise: Tensor,
    captions: list[str],
) -> Tensor:
    """Return the squared error of the predicted noise with these captions: (B,)."""
    ids = pipeline.tokenizer(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    predicted = denoiser_of(pipeline)(noisy, steps, ids)
    return (predicted - noise).square().mean(dim=(1, 2, 3))


@dataclass
class RightWordArgs:
    """right word"""

    base: Path = flag(Path(), "folder of a miniature", required=True)
    count: int = flag(256, "scenes for each word", at_least=1)


def parse_args(argv: list[str] | None = None) -> RightWordArgs:
    return parse(RightWordArgs, __doc__, argv)


@program
def main(args: RightWordArgs) -> None:
    """Print the shares as JSON: word -> level -> share."""
    refuse(range_complaints(args))
    if not (args.base / MODEL_INDEX).is_file():
        raise SetupError(f"--base {args.base}: no pipeline there (no {MODEL_INDEX})")
    pipeline = load_pipeline(args.base)
    shares = {word: right_word(pipeline, word, args.count) for word in CHOICES}
    print(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main(parse_args())
