r"""Train the miniature's AutoencoderKL: 64-pixel pictures to 16 x 16 latents of 8 channels.

    python -m mini.training.vae --output output/mini/vae --minutes 120

The same command continues where the last one stopped. The result are the running means of the
weights, in fp16, as any diffusers VAE is saved. A new encoder makes a base worthless that was
trained on the old one's latents; a new decoder doesn't:

    python -m mini.training.vae --start_from output/mini/vae --freeze_encoder \
        --state_dir ~/.cache/mudi-mini2/decoder --output output/mini/vae-2 --minutes 120
"""

import json
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from mini.training.checkpoint import Learner
from mini.training.state import (
    STATE_DIR,
    LearnArgs,
    Run,
    learn,
    make_accelerator,
    prepare,
)
from mini.training.stream import SceneBatch, held_out_scenes, scene_loader
from mini.world import SIZE
from mudi.ground.errors import program, refuse
from mudi.ground.files import finish_folder, temporary_folder, write_image, write_text
from mudi.ground.flags import flag, parse

KL_WEIGHT = 5e-4  # of the mean over latents; keeps them near a unit normal
THING_WEIGHT = 3.0  # of a thing's pixels against the background's, which is the easier part
NUM_STATISTICS = 512  # held-out scenes that latents and errors are measured on
NUM_SHOWN = 24  # on the sheet


def new_vae(channels: tuple[int, ...], latent_channels: int = 8) -> AutoencoderKL:
    """Build an untrained VAE; each entry of channels but the last halves the picture's side."""
    return AutoencoderKL(
        sample_size=SIZE,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )


def vae_loss(
    vae: AutoencoderKL, batch: SceneBatch, generator: torch.Generator, kl_weight: float
) -> Tensor:
    """Return the scalar loss: weighted L1 + L2 of the picture, and the latents' KL divergence."""
    latents = vae.encode(batch.pixels).latent_dist
    noise = torch.randn(latents.mean.shape, generator=generator).to(latents.mean.device)
    decoded = vae.decode(latents.mean + noise * latents.std).sample.float()

    error = decoded - batch.pixels
    weight = 1 + (THING_WEIGHT - 1) * batch.things.float()
    distortion = (weight * (error.abs() + error.square())).sum() / (weight.sum() * 3)
    divergence = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar).float().mean()
    return distortion + kl_weight * divergence


@dataclass
class VaeArgs(LearnArgs):
    """VAE"""

    channels: list[int] = flag([16, 32, 64], "of each resolution", nargs="+")
    latent_channels: int = flag(8, "of the latents", at_least=1)
    kl_weight: float = flag(KL_WEIGHT, "of the latents' KL")
    freeze_encoder: bool = flag(False, "keep the latents: train the decoder only")


def parse_args(argv: list[str] | None = None) -> VaeArgs:
    return parse(VaeArgs, __doc__, argv, state_dir=STATE_DIR / "vae")


def complaints(args: VaeArgs) -> list[str]:
    """Complain about flags that contradict each other."""
    if args.freeze_encoder and not args.start_from:
        return ["--freeze_encoder needs --start_from"]
    if args.freeze_encoder and args.state_dir == STATE_DIR / "vae":
        return ["--freeze_encoder needs a --state_dir of its own"]
    return []


@program
def main(args: VaeArgs) -> None:
    refuse(complaints(args))
    accelerator = make_accelerator(args)
    start = args.start_from
    if start:
        vae = AutoencoderKL.from_pretrained(start)
    else:
        vae = new_vae(tuple(args.channels), args.latent_channels)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(not args.freeze_encoder)
    learner = prepare(accelerator, vae)

    identity = f"a VAE of channels {list(vae.config.block_out_channels)}"
    with Run(accelerator, learner, args, identity) as run:
        train(accelerator, learner, run, args)

    mean_error = save(learner, run, args)
    print(f"{args.output}: squared error {mean_error:.5f} after {run.progress.pictures} pictures")


def train(accelerator: Accelerator, learner: Learner, run: Run, args: VaeArgs) -> None:
    first = run.progress.pictures
    for batch in scene_loader(args.seed, first, args.batch_size, args.num_workers):
        if run.finished:
            break
        batch = batch.to(accelerator.device)
        generator = torch.Generator().manual_seed(args.seed + run.progress.step)

        with accelerator.autocast():
            loss = vae_loss(learner.model, batch, generator, args.kl_weight)
        learn(loss, learner, run)

        run.count(len(batch.pixels), loss.detach())
        if run.sheet_due():
            save(learner, run, args)


@torch.no_grad()
def save(learner: Learner, run: Run, args: VaeArgs) -> float:
    """Write the running means, their latents normalised unless they are frozen, and a sheet.

    Returns:
        The mean squared error on held-out scenes, pixels from -1 to 1.
    """
    device = next(learner.model.parameters()).device
    result = AutoencoderKL.from_config(learner.model.config).to(device)
    learner.ema.copy_to(result.parameters())
    batch = held_out_scenes(NUM_STATISTICS).to(device)
    latents = torch.cat([result.encode(part).latent_dist.mean for part in batch.pixels.split(32)])
    decoded = torch.cat([result.decode(part).sample for part in latents.split(32)])
    error = (decoded - batch.pixels).square().mean().item()

    if not args.freeze_encoder:
        normalise(result, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
    output = args.output
    folder = temporary_folder(output)
    result.half().save_pretrained(folder)
    report = {"pictures": run.progress.pictures, "minutes": run.progress.seconds / 60}
    write_text(folder / "report.json", json.dumps({**report, "squared_error": error}))
    finish_folder(output)
    sheet = reconstruction_sheet(batch.pixels[:NUM_SHOWN], decoded[:NUM_SHOWN])
    write_image(run.folder / f"sheet-{run.progress.pictures:08d}.png", sheet)
    return error


def normalise(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change the VAE's weights so that its latents have mean 0 and variance 1, and nothing else.

    `StableDiffusionXLPipeline` takes means from a VAE's config for four channels only.

    Args:
        mean, std: (C,) of the latents as they are.
    """
    channels = len(mean)
    for rows, shift in ((slice(channels), mean), (slice(channels, None), 2 * std.log())):
        vae.quant_conv.bias[rows] -= shift
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] /= std
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= std[None, :, None, None]
    vae.register_to_config(latents_mean=None, latents_std=None)  # of an earlier VAE


def reconstruction_sheet(originals: Tensor, decoded: Tensor, columns: int = 8) -> Image.Image:
    """Lay pictures (B, 3, S, S), -1 to 1, in rows, each row of decoded ones below its originals."""
    rows = []
    for first in range(0, len(originals), columns):
        rows += [torch.cat(list(x[first : first + columns]), dim=-1) for x in (originals, decoded)]
    pixels = torch.cat(rows, dim=-2).permute(1, 2, 0)
    image = Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main(parse_args())
