"""Fine-tune SDXL on several subjects at once with Seg-Mix (MuDI, arXiv 2404.04243).

    accelerate launch train_segmix_lora_sdxl.py \
        --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \
        --pretrained_vae_model_name_or_path madebyollin/sdxl-vae-fp16-fix \
        --instance_data_dir dataset/category/robot_and_teddy --output_dir output/robot_and_teddy \
        --validation_prompt "a photo of a olis robot and a hta teddy bear on a beach" \
        --train_batch_size 1 --gradient_accumulation_steps 2 --max_train_steps 2010 \
        --lr_warmup_steps 0 --rank 32 --seed 42

The LoRA lands in --output_dir; `pipeline.load_lora_weights(output_dir)` loads it. train.sh holds
the published run, README.md and --help the rest.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import Tensor, nn

from mudi import args as shared
from mudi import checks, lora, publish, runtime, saving, sdxl
from mudi.data import SegMixDataset, make_loader
from mudi.losses import dco_loss, latent_weight
from mudi.optimizers import make_lr_scheduler, make_optimizer, trainable
from mudi.segmix import SDXL_STYLE

PUBLISHED_DCO_BETA = 1000.0

logger = get_logger("mudi")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = shared.make_parser(
        __doc__, resolution=1024, output_dir="lora-dreambooth-model", mixed_precision=None
    )
    group = parser.add_argument_group("SDXL")
    group.add_argument(
        "--pretrained_vae_model_name_or_path",
        help="a VAE that is safe in half precision; unset: the base's own, in float32",
    )
    group.add_argument(
        "--dco_beta",
        type=float,
        help=f"strength of the DCO loss; 0: plain squared error; unset: {PUBLISHED_DCO_BETA:.0f}, "
        "or 0 with --with_prior_preservation",
    )
    group.add_argument(
        "--do_edm_style_training",
        action="store_true",
        help="train on EDM's continuous noise levels (always on if the base's scheduler is EDM)",
    )
    group.add_argument(
        "--snr_gamma", type=float, help="gamma of the min-SNR weights, 5 as published; unset: off"
    )
    group.add_argument("--use_dora", action="store_true", help="train a DoRA, not a plain LoRA")
    group.add_argument(
        "--real_size_conditioning",
        action="store_true",
        help="tell the network each photo's own size and crop, not a full square",
    )
    group.add_argument(
        "--output_kohya_format",
        action="store_true",
        help=f"also write {lora.KOHYA_WEIGHTS_NAME}, for ComfyUI and A1111",
    )
    group.add_argument(
        "--class_prompt",
        action=shared.RefusedFlag,
        const=shared.PRIOR_POINTER,
        help="refused; the captions stand in class_metadata.jsonl",
    )
    args = parser.parse_args(argv)
    if args.dco_beta is None:
        args.dco_beta = 0.0 if args.with_prior_preservation else PUBLISHED_DCO_BETA
    return args


def check_args(args: argparse.Namespace) -> list[str]:
    """Return everything that is wrong with the flags, one line each."""
    found = checks.check_args(args)
    if args.dco_beta < 0:
        found.append(f"--dco_beta {args.dco_beta}: must be 0 or more")
    if args.snr_gamma is not None and args.snr_gamma <= 0:
        found.append(f"--snr_gamma {args.snr_gamma}: must be above 0")
    if args.snr_gamma is not None and args.do_edm_style_training:
        found.append("--snr_gamma and --do_edm_style_training both weigh noise levels: give one")
    if args.pretrained_vae_model_name_or_path:
        found += checks.model_folder_complaints(
            "--pretrained_vae_model_name_or_path",
            args.pretrained_vae_model_name_or_path,
            "config.json",
        )
    return found


@dataclass(frozen=True)
class Models:
    """The parts of SDXL that a run uses; `adapted` are those that train, by part name."""

    denoiser: sdxl.Denoiser
    vae: AutoencoderKL
    schedule: sdxl.NoiseSchedule
    adapted: dict[str, Any]
    validator: sdxl.Validator | None


def load_models(args: argparse.Namespace, accelerator: Accelerator, prompts: list[str]) -> Models:
    """Load SDXL, encode what can be encoded beforehand, attach the adapters."""
    base = args.pretrained_model_name_or_path
    hub = {key: getattr(args, key) for key in ("revision", "variant", "cache_dir")}
    dtype, device = runtime.weight_dtype(accelerator), accelerator.device

    try:
        schedule = sdxl.load_schedule(base, args.do_edm_style_training, args.snr_gamma, **hub)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise runtime.SetupError(f"--pretrained_model_name_or_path {base}: {reason}") from error
    pipeline = sdxl.load_text_pipeline(base, dtype, **hub).to(device)
    validator = None
    if args.validation_prompt:
        validator = sdxl.Validator(pipeline, args.validation_prompt, args.train_text_encoder)
    if args.train_text_encoder:
        encoders = sdxl.text_encoders(pipeline)
        for encoder in encoders.values():
            lora.add_lora(encoder, args.rank, lora.TEXT_ENCODER_TARGETS, args.use_dora)
        encode: sdxl.PromptEncoder = partial(sdxl.encode_prompts, pipeline)
    else:
        encoders = {}
        encode = sdxl.PromptTable(pipeline, prompts)
        sdxl.free_text_encoders(pipeline)

    vae = sdxl.load_vae(base, args.pretrained_vae_model_name_or_path, dtype, **hub).to(device)
    unet = sdxl.load_unet(base, dtype, **hub).to(device)
    lora.add_lora(unet, args.rank, lora.ATTENTION_TARGETS, args.use_dora)
    if args.enable_xformers_memory_efficient_attention:
        unet.enable_xformers_memory_efficient_attention()
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        for encoder in encoders.values():
            encoder.gradient_checkpointing_enable()
    denoiser = sdxl.Denoiser(unet, encode, encoders)
    return Models(denoiser, vae, schedule, {"unet": unet, **encoders}, validator)


def training_loss(
    args: argparse.Namespace, denoiser: nn.Module, base: nn.Module, task: sdxl.DenoisingTask, n: int
) -> Tensor:
    """Return the scalar to minimise; the first n samples show subjects, the rest the prior's.

    Args:
        denoiser: the network as accelerate wrapped it.
        base: the same network unwrapped, for the pass without adapters.
    """
    if args.dco_beta > 0:
        with torch.no_grad(), lora.adapters_off(base):
            reference = sdxl.denoising_errors(base, task.first(n))  # (n,)
    errors = sdxl.denoising_errors(denoiser, task)  # (B,)
    subject = dco_loss(errors[:n], reference, args.dco_beta) if args.dco_beta > 0 else errors[:n]
    loss = subject.mean()
    if len(errors) > n:
        loss = loss + args.prior_loss_weight * errors[n:].mean()
    return loss


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    models: Models,
    dataset: SegMixDataset,
    plan: runtime.Plan,
) -> None:
    """Run the optimizer steps; everything on the way is written to --output_dir."""
    encoder_parameters = trainable(models.denoiser.text_encoders)
    parameters = trainable(models.denoiser.unet)
    optimizer = make_optimizer(args, parameters, encoder_parameters, accelerator.num_processes)
    lr_scheduler = make_lr_scheduler(args, optimizer, plan.num_steps)
    denoiser, optimizer = accelerator.prepare(models.denoiser.train(), optimizer)
    base = accelerator.unwrap_model(denoiser)
    accelerator.register_for_checkpointing(lr_scheduler)
    saving.keep_lora_in_checkpoints(accelerator, StableDiffusionXLPipeline, models.adapted)
    step = saving.restore(accelerator, plan.resume, plan.settings) if plan.resume else 0

    loader = make_loader(dataset, plan.draws(step), args.dataloader_num_workers)
    progress = runtime.progress_bar(accelerator, step, plan.num_steps)
    losses: list[Tensor] = []
    for micro_step, batch in enumerate(loader, step * args.gradient_accumulation_steps):
        batch = batch.to(accelerator.device)
        generator = runtime.step_generator(accelerator, args.seed, micro_step)
        with torch.no_grad():
            latents = sdxl.encode_images(models.vae, batch.pixels, generator)  # (B, 4, h, w)
        weight = latent_weight(batch.mask, latents.shape[-2:], args.soft_alpha)  # (B, 1, h, w)
        ids = sdxl.time_ids(batch.conditioning, args.resolution, args.real_size_conditioning)
        task = sdxl.make_task(models.schedule, latents, weight, batch.prompts, ids, generator)

        with accelerator.accumulate(denoiser):
            loss = training_loss(args, denoiser, base, task, batch.num_subjects)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters + encoder_parameters, args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if not accelerator.sync_gradients:
            continue

        step += 1
        scalars = {
            "loss": runtime.mean_loss(accelerator, losses, step, plan.output_dir),
            "lr": lr_scheduler.get_last_lr()[0],
        }
        losses.clear()
        if not accelerator.optimizer_step_was_skipped:
            lr_scheduler.step()
        progress.update()
        progress.set_postfix({key: f"{value:.3g}" for key, value in scalars.items()})
        accelerator.log(scalars, step=step)
        if step % args.save_steps == 0 and accelerator.is_main_process:
            folder = plan.output_dir / f"save-{step}"
            saving.save_step(folder, args, StableDiffusionXLPipeline, models.adapted)
        if step % args.checkpointing_steps == 0:
            saving.save_checkpoint(
                accelerator, plan.output_dir, step, plan.settings, args.checkpoints_total_limit
            )
        if step % plan.validation_steps == 0 or step == plan.num_steps:
            validate(args, accelerator, models, step)
    progress.close()


def validate(args: argparse.Namespace, accelerator: Accelerator, models: Models, step: int) -> None:
    """Make --num_validation_images of the prompt and log them."""
    if models.validator is None or not accelerator.is_main_process:
        return
    models.denoiser.eval()
    with accelerator.autocast():
        images = models.validator(
            models.denoiser.unet,
            models.vae,
            count=args.num_validation_images,
            resolution=args.resolution,
            num_steps=args.num_validation_inference_steps,
            seed=args.seed,
        )
    models.denoiser.train()
    folder = Path(args.output_dir) / "validation"
    runtime.log_images(accelerator, folder, "validation", images, step)


def main(args: argparse.Namespace) -> None:
    complaints = check_args(args) + publish.check_login(args)
    data = checks.load_data(args, SDXL_STYLE, complaints)
    accelerator = runtime.make_accelerator(args, on_gpu="fp16")
    plan = runtime.plan_run(accelerator, args, data.subjects)
    runtime.start_trackers(accelerator, args, "mudi-sdxl")

    options = runtime.sample_options(args, SDXL_STYLE, data.scales)
    dataset = SegMixDataset(data.subjects, options, data.prior)
    runtime.log_collages(accelerator, args, dataset)
    models = load_models(args, accelerator, dataset.prompts())
    train(args, accelerator, models, dataset, plan)

    if accelerator.is_main_process:
        saving.save_results(plan.output_dir, args, StableDiffusionXLPipeline, models.adapted)
        pipeline = StableDiffusionXLPipeline.__name__
        publish.write_model_card(plan.output_dir, args, data.subjects, "SDXL", pipeline)
        logger.info(f"the LoRA is {plan.output_dir / lora.WEIGHTS_NAME}")
        if args.push_to_hub:
            logger.info(f"uploaded: {publish.push(plan.output_dir, args)}")
    accelerator.end_training()


if __name__ == "__main__":
    main(parse_args())
