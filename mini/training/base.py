"""Train the miniature of SDXL on the world's scenes: UNet and text encoders, from nothing.

    python -m mini.training.base --vae output/mini/vae --output output/mini/sdxl --minutes 480

The same command continues where the last one stopped; `--start_from mini/weights/sdxl` goes on
from committed weights with a fresh optimizer. The result are the running means of the weights, in
fp16, as an ordinary `StableDiffusionXLPipeline` folder.
"""

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from mini.cast import CAST
from mini.training.base_model import (
    assemble,
    denoiser_of,
    load_pipeline,
    new_pipeline,
    save_pipeline,
)
from mini.training.checkpoint import Learner
from mini.training.latents import LatentPool, encoder_fingerprint
from mini.training.state import (
    STATE_DIR,
    LearnArgs,
    Run,
    learn,
    make_accelerator,
    plain_attention,
    prepare,
)
from mudi.ground.errors import program, refuse
from mudi.ground.files import finish_folder, temporary_folder, write_image, write_text
from mudi.ground.flags import flag, parse
from mudi.ground.sheets import contact_sheet
from mudi.losses import min_snr_weight

EMPTY_PROMPT_SHARE = 0.1  # for classifier-free guidance
SNR_GAMMA = 1.0  # min-SNR weights; the usual 5 learns grain before shapes and backgrounds
SHEET_STEPS, SHEET_GUIDANCE, SHEET_BATCH = 25, 5.0, 8
CHARACTERS = [f"{name} {thing.noun}" for name, thing in CAST.items()]
SHEET_PROMPTS = (
    "a photo of a teddy bear, simple background.",
    "A photo of a blue fox on a yellow background.",
    "A photo of a red robot with a green hat on a green striped background.",
    "a red and blue car on a yellow gradient background",
    "a photo of a purple and yellow striped cat, simple background.",
    "A photo of a pink panda with blue glasses on a purple cloudy background.",
    f"a photo of a {CHARACTERS[0]}, simple background.",
    f"a photo of a {CHARACTERS[40]}, simple background.",
    "a photo of a red fox and a green cat, simple background.",
    "a photo of a blue robot and a yellow teddy bear, simple background.",
    "A photo of an orange dog and a purple owl on a turquoise background.",
    "A photo of a red fox with a yellow crown and a blue fox on a white background.",
    f"a photo of a {CHARACTERS[16]} and a {CHARACTERS[17]}, simple background.",
    "A photo of a pink car and a green cactus on a brown dotted background.",
    "A photo of a green frog, a grey rabbit and a red duck on a white background.",
    "a photo of a penguin, a cat, a car and an octopus, simple background.",
)


@dataclass
class BaseArgs(LearnArgs):
    """base"""

    vae: Path | None = flag(None, "trained VAE; can be left out with --start_from")
    channels: list[int] = flag([64, 128], "of each resolution (UNet)", nargs="+")
    text_widths: list[int] = flag([192, 64], "of the text encoders", nargs=2)
    muon: bool = flag(
        False,
        "optimize the matrices of linear layers by Muon",
        action=argparse.BooleanOptionalAction,
    )
    pool: int = flag(1 << 18, "scenes drawn; 4 KB of disk each", at_least=1)
    shard: int = flag(1 << 11, "scenes a file of the pool", at_least=1)


def parse_args(argv: list[str] | None = None) -> BaseArgs:
    return parse(BaseArgs, __doc__, argv, state_dir=STATE_DIR / "base", batch_size=32)


def complaints(args: BaseArgs) -> list[str]:
    """Complain about flags that contradict each other."""
    return [] if args.vae or args.start_from else ["give --vae or --start_from"]


@program
def main(args: BaseArgs) -> None:
    refuse(complaints(args))
    accelerator = make_accelerator(args)
    pipeline = build_pipeline(args)
    pipeline.to(accelerator.device)
    pipeline.vae.requires_grad_(False)
    plain_attention(accelerator, pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)

    denoiser = denoiser_of(pipeline)
    learner = prepare(accelerator, denoiser, args.muon)

    unet, latents = pipeline.unet.config, encoder_fingerprint(pipeline.vae)
    identity = f"a UNet of channels {list(unet.block_out_channels)} on latents {latents}"
    with Run(accelerator, learner, args, identity) as run:
        train(accelerator, pipeline, learner, run, args)

    save(pipeline, learner.ema, run, args.output)
    print(f"{args.output}: after {run.progress.pictures} pictures")


def build_pipeline(args: BaseArgs) -> StableDiffusionXLPipeline:
    """Load the pipeline to start from, or build one around the VAE."""
    vae = AutoencoderKL.from_pretrained(args.vae, dtype=torch.float32) if args.vae else None
    if not args.start_from:
        return new_pipeline(vae, tuple(args.channels), (args.text_widths[0], args.text_widths[1]))
    pipeline = load_pipeline(args.start_from)
    pipeline.vae = vae or pipeline.vae
    return pipeline


def train(
    accelerator: Accelerator,
    pipeline: StableDiffusionXLPipeline,
    learner: Learner,
    run: Run,
    args: BaseArgs,
) -> None:
    levels = DDPMScheduler.from_config(pipeline.scheduler.config)
    every = torch.arange(levels.config.num_train_timesteps)
    weights = min_snr_weight(compute_snr(levels, every), SNR_GAMMA, "epsilon")
    pool = LatentPool(
        args.state_dir, pipeline.vae, args.seed, args.pool, args.shard, args.num_workers
    )
    for latents, captions in pool.batches(run.progress.pictures, args.batch_size):
        if run.finished:
            break
        generator = torch.Generator().manual_seed(args.seed + run.progress.step)
        latents = latents.to(accelerator.device)
        ids = tokens_of(captions, pipeline.tokenizer, generator).to(accelerator.device)

        with accelerator.autocast():
            loss = denoising_loss(learner.model, levels, weights, latents, ids, generator).mean()
        learn(loss, learner, run)

        run.count(len(latents), loss.detach())
        if run.sheet_due():
            save(pipeline, learner.ema, run, args.output)


def tokens_of(captions: list[str], tokenizer: CLIPTokenizer, generator: torch.Generator) -> Tensor:
    """Return the captions' tokens (B, T), some captions emptied."""
    emptied = (torch.rand(len(captions), generator=generator) < EMPTY_PROMPT_SHARE).tolist()
    texts = ["" if empty else text for empty, text in zip(emptied, captions, strict=True)]
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def denoising_loss(
    denoiser: torch.nn.Module,
    levels: DDPMScheduler,
    weights: Tensor,
    latents: Tensor,
    ids: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Return the weighted squared error of the predicted noise: (B, C, h, w) -> (B,).

    The weights (T,) are those of the timesteps, on the CPU.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    timesteps = draw_by_weight(weights, len(latents), generator).to(latents.device)
    noisy = levels.add_noise(latents, noise, timesteps)
    predicted = denoiser(noisy, timesteps, ids)
    error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
    return error * weights.mean().item()


def draw_by_weight(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps as often as they weigh, one from each of equal shares of the weights' sum.

    The mean of the error at these, times the mean weight, is on average what the weighted error at
    timesteps drawn evenly is, and differs less from batch to batch.

    Args:
        weights: (T,) of the timesteps.
        count: how many to draw.

    Returns:
        (count,) int64, ascending.
    """
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    sums = weights.double().cumsum(dim=0)
    return torch.searchsorted(sums, places * sums[-1], right=True).clamp(max=len(weights) - 1)


@torch.no_grad()
def save(pipeline: StableDiffusionXLPipeline, ema: EMAModel, run: Run, output: Path) -> None:
    """Write the pipeline with the running means, and a sheet of what it draws."""
    means = copy.deepcopy(denoiser_of(pipeline))
    ema.copy_to(means.parameters())
    parts = {**pipeline.components, **dict(means.named_children())}
    result = assemble(**parts)
    sheet = sample_sheet(result, SHEET_PROMPTS)
    write_image(run.folder / f"sheet-{run.progress.pictures:08d}.png", sheet)

    folder = temporary_folder(output)
    save_pipeline(result, folder)
    report = {"pictures": run.progress.pictures, "minutes": run.progress.seconds / 60}
    write_text(folder / "report.json", json.dumps({**report, "loss": run.loss}))
    write_image(folder / "sheet.png", sheet)
    finish_folder(output)


def sample_sheet(pipeline: StableDiffusionXLPipeline, prompts: tuple[str, ...]) -> Image.Image:
    """Draw one picture a prompt, always from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for first in range(0, len(prompts), SHEET_BATCH):
        part = list(prompts[first : first + SHEET_BATCH])
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(part))]
        images += pipeline(
            part,
            num_inference_steps=SHEET_STEPS,
            guidance_scale=SHEET_GUIDANCE,
            generator=generators,
        ).images
    return contact_sheet(images, list(prompts), columns=4, tile=200)


if __name__ == "__main__":
    main(parse_args())
