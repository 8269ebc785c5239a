"""What a training script sets up before its loop, and what it tells while that runs."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import default_config_file
from accelerate.logging import get_logger
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
)
from PIL import Image
from transformers import AutoTokenizer

from mudi.backbones import quantization
from mudi.backbones.table import Backbone
from mudi.data import Pool, SampleOptions, SegMixDataset, collage_sheet
from mudi.denoising import Models
from mudi.ground.devices import cpu_is_meant, on_gpu
from mudi.ground.errors import SetupError, first_line, loading
from mudi.ground.files import write_image
from mudi.ground.locks import hold
from mudi.prompt_tokens import cut_text
from mudi.segmix import SegMixStyle
from mudi.training.args import CACHED_CROPS, TrainingArgs, resolve_mixed_precision, trackers
from mudi.training.checks import Data, load_data
from mudi.training.planning import VALIDATION, Plan, plan_run
from mudi.training.publish import check_login
from mudi.training.saving import public_arguments
from mudi.training.targets import base_complaints

COLLAGES_SHOWN = 12
WANDB_TIMEOUT = 30  # seconds; wandb itself waits for up to 90
logger = get_logger("mudi")


@dataclass(frozen=True)
class Run:
    """What stands before a model is loaded."""

    accelerator: Accelerator
    plan: Plan
    dataset: SegMixDataset


def set_up(
    args: TrainingArgs,
    complaints: list[str],
    backbone: Backbone,
) -> Run:
    """Check flags and data, start accelerate and the trackers, plan the run, show the collages.

    Args:
        complaints: what is wrong with the flags.

    Raises:
        SetupError: anything is wrong; the message says all of it.
    """
    if not complaints:
        complaints = base_complaints(args, backbone)
    if args.dry_run:
        data = load_data(args, backbone.style, complaints)
        accelerator = make_dry_accelerator(args, backbone.precision)
    else:
        machine = [*check_login(args), *quantization.complaints(args.quantize_base)]
        data = load_data(args, backbone.style, complaints + machine)
        accelerator = make_accelerator(args, backbone.precision)
        hold(Path(args.output_dir), accelerator)
    for warning in cut_captions(args, backbone, data):
        logger.warning(warning)
    plan = plan_run(accelerator, args, data)
    if args.segmix_pool:
        tell_pool_use(args, plan)
    start_trackers(accelerator, args, f"mudi-{backbone.name}")
    options = sample_options(args, backbone.style, data.scales, plan.seed)
    dataset = SegMixDataset(data.subjects, options, data.prior)
    log_collages(accelerator, args, dataset, plan.seed)
    return Run(accelerator, plan, dataset)


def cut_captions(args: TrainingArgs, backbone: Backbone, data: Data) -> list[str]:
    """Say which captions are longer than the text encoder reads.

    Raises:
        SetupError: the base model's tokenizer can't be loaded.
    """
    hub = {"revision": args.revision, "cache_dir": args.cache_dir}
    with loading("--pretrained_model_name_or_path", args.base):
        tokenizer = AutoTokenizer.from_pretrained(args.base, subfolder=backbone.tokenizer, **hub)
    limit = getattr(args, "max_sequence_length", tokenizer.model_max_length)
    seen = limit - backbone.added_tokens(tokenizer)
    photos = [*data.subjects.pictures, *(data.prior.photos if data.prior else ())]
    return [
        f"{photo.place}: {told}"
        for photo in photos
        for caption in photo.captions
        if (told := cut_text(caption, tokenizer, seen))
    ]


def save_memory(args: TrainingArgs, denoiser: Any, vae: Any, encoders: dict[str, Any]) -> None:
    """Switch on what the flags say of attention, gradient checkpointing and the VAE."""
    if args.vae_slicing:
        vae.enable_slicing()
    if args.enable_xformers_memory_efficient_attention:
        denoiser.enable_xformers_memory_efficient_attention()
    if args.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
        for encoder in encoders.values():
            encoder.gradient_checkpointing_enable()


def make_accelerator(args: TrainingArgs, gpu_precision: str) -> Accelerator:
    """Start accelerate; gpu_precision is the script's default on a GPU.

    Raises:
        SetupError: the precision cannot be had on this machine.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mudi").setLevel(logging.INFO)
    if args.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    has_gpu = on_gpu()
    precision = wanted_precision(args, gpu_precision, has_gpu)
    if precision == "fp16" and not has_gpu:
        raise SetupError("--mixed_precision fp16 needs a GPU; use bf16 or no here")
    if args.use_8bit_adam and not has_gpu:
        raise SetupError("--use_8bit_adam needs a CUDA GPU; leave it out here")
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    output_dir = Path(args.output_dir)
    # the first text encoder's last layer is never used, so its adapter gets no gradient; nor do
    # learned words where no prompt of a pass has one
    some_unused = args.train_text_encoder or args.learn_words
    unused = DistributedDataParallelKwargs(find_unused_parameters=some_unused)
    return Accelerator(
        cpu=cpu_is_meant(),
        kwargs_handlers=[unused],
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=precision,
        log_with=trackers(args.report_to) or None,
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / args.logging_dir)
        ),
    )


def wanted_precision(args: TrainingArgs, gpu_precision: str, has_gpu: bool) -> str:
    """Return the flag's precision, else what accelerate was told, else the script's own."""
    precision = resolve_mixed_precision(
        args.mixed_precision, gpu_precision, has_gpu, Path(default_config_file)
    )
    return precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def make_dry_accelerator(args: TrainingArgs, usual: str) -> Accelerator:
    """Start accelerate on the CPU as it would be on a GPU, to count memory; one pass is a step.

    Half precision is bfloat16 then, whichever it is: their sizes are the same.
    """
    logging.basicConfig(format="%(message)s")
    precision = wanted_precision(args, usual, True)
    args.mixed_precision = precision
    args.report_to, args.resume_from_checkpoint, args.resume_lora = "none", None, None
    args.overwrite_output_dir = False
    return Accelerator(cpu=True, mixed_precision="no" if precision == "no" else "bf16")


def weight_dtype(accelerator: Accelerator) -> torch.dtype:
    """Return the precision in which frozen weights are kept."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(
        accelerator.mixed_precision, torch.float32
    )


def sample_options(
    args: TrainingArgs, style: SegMixStyle, scales: dict[str, float] | None, seed: int
) -> SampleOptions:
    """Return what the flags say of how photos become samples."""
    pool = None
    if args.segmix_pool:
        pool = Pool(args.segmix_pool, args.segmix_pool_refresh, seed)
    return SampleOptions(
        resolution=args.resolution,
        style=style,
        segmix_prob=args.segmix_prob,
        segmix_start_step=args.segmix_start_step,
        num_subjects=args.segmix_num_subjects,
        scales=scales,
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        num_crops=CACHED_CROPS if args.cache_latents else None,
        mix=args.mix,
        pool=pool,
        caption_boxes=args.caption_boxes,
    )


def tell_pool_use(args: TrainingArgs, plan: Plan) -> None:
    """Say how many collages a pool of that size and pace makes, and how often they are drawn."""
    steps = max(0, plan.num_steps - args.segmix_start_step)
    drawn = steps * args.gradient_accumulation_steps * args.train_batch_size * args.segmix_prob
    made = args.segmix_pool + steps / args.segmix_pool_refresh
    logger.info(
        f"--segmix_pool {args.segmix_pool}: {made:.0f} collages for about {drawn:.0f} draws "
        "of each process"
    )


def start_trackers(accelerator: Accelerator, args: TrainingArgs, name: str) -> None:
    """Start the trackers that --report_to asks for.

    Raises:
        SetupError: wandb can't log in, or can't be reached.
    """
    config = {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in public_arguments(args).items()
    }
    settings: dict[str, dict] = {}
    if "wandb" in trackers(args.report_to) and accelerator.is_main_process:
        settings["wandb"] = _wandb_settings(args)
    try:
        accelerator.init_trackers(name, config=config, init_kwargs=settings)
    except Exception as error:
        if type(error).__module__.split(".")[0] != "wandb":
            raise
        raise SetupError(
            f"--report_to wandb: wandb did not start ({first_line(error)}); "
            "set WANDB_MODE=offline to log without a network, or use --report_to tensorboard"
        ) from error


def _wandb_settings(args: TrainingArgs) -> dict[str, Any]:
    import wandb  # slow to import, and only some runs use it

    if os.environ.get("WANDB_MODE", "online") == "online":
        wandb.login(prompt=False, verify=False)  # raises at once where there is no key
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    return {
        "name": args.wandb_name,
        "dir": str(output_dir),
        "settings": wandb.Settings(init_timeout=WANDB_TIMEOUT),
    }


def step_generator(accelerator: Accelerator, seed: int, micro_step: int) -> torch.Generator:
    """Return the noise source of one micro-step: a function of its place in the run alone."""
    place = f"noise {seed} {micro_step} {accelerator.process_index}"
    digest = hashlib.sha256(place.encode()).digest()
    return torch.Generator(accelerator.device).manual_seed(int.from_bytes(digest[:7], "big"))


def log_images(
    accelerator: Accelerator, folder: Path, name: str, images: list[Image.Image], step: int
) -> None:
    """Write images as PNG into folder and hand them to the trackers; main process only."""
    for i, image in enumerate(images):
        write_image(folder / f"{name}-{step:06d}-{i}.png", image)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            stack = np.stack([np.asarray(image) for image in images])
            tracker.writer.add_images(name, stack, step, dataformats="NHWC")
        if tracker.name == "wandb":
            import wandb

            tracker.log({name: [wandb.Image(image) for image in images]}, step=step)


def log_collages(
    accelerator: Accelerator, args: TrainingArgs, dataset: SegMixDataset, seed: int
) -> None:
    """Show a sheet of training collages at the start, in --output_dir and in the trackers."""
    if args.segmix_prob > 0 and accelerator.is_main_process:
        sheet = collage_sheet(dataset, COLLAGES_SHOWN, seed)
        log_images(accelerator, Path(args.output_dir), "collages", [sheet], 0)


def validate_if_due(
    accelerator: Accelerator,
    args: TrainingArgs,
    plan: Plan,
    models: Models,
    step: int,
) -> None:
    """Every --validation_epochs and at the end, make validation images and log them."""
    if models.sample is None or not plan.validates(step) or not accelerator.is_main_process:
        return
    models.denoiser.eval()
    with accelerator.autocast():
        images = [models.sample(plan.seed + i) for i in range(args.num_validation_images)]
    models.denoiser.train()
    log_images(accelerator, plan.output_dir / VALIDATION, "validation", images, step)
