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

from dataclasses import dataclass

from mudi.ground.flags import flag, parse
from mudi.training.args import TrainingArgs

PUBLISHED_DCO_BETA = 1000.0


@dataclass
class SdxlArgs(TrainingArgs):
    """SDXL"""

    pretrained_vae_model_name_or_path: str | None = flag(
        None, "a VAE that is safe in half precision; unset: the base's own, in float32"
    )
    do_edm_style_training: bool = flag(
        False,
        "train on EDM's continuous noise levels (always on if the base's scheduler is EDM)",
    )
    snr_gamma: float | None = flag(
        None, "gamma of the min-SNR weights, 5 as published; unset: off", above=0
    )
    real_size_conditioning: bool = flag(
        False, "tell the network each photo's own size and crop, not a full square"
    )


def parse_args(argv: list[str] | None = None) -> SdxlArgs:
    args = parse(SdxlArgs, __doc__, argv, output_dir="lora-dreambooth-model")
    if args.dco_beta is None:
        args.dco_beta = 0.0 if args.with_prior_preservation else PUBLISHED_DCO_BETA
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionXLPipeline

from mudi import lora
from mudi.backbones import quantization, sdxl
from mudi.backbones.table import SDXL
from mudi.data import Batch, SegMixDataset, make_loader
from mudi.denoising import (
    Models,
    PromptEncoder,
    PromptTable,
    WordPrompts,
    make_task,
    training_loss,
)
from mudi.ground.errors import loading, program
from mudi.latents import LatentCache, encode_images
from mudi.learned_words import LearnedWords
from mudi.losses import latent_weight
from mudi.training import checks, dry_run, publish, runtime, saving, validation
from mudi.training.optimizers import Training, prepare_training
from mudi.training.stats import Pass, StepLog
from mudi.training.words import make_words, tell_cost, tell_lacking


def check_args(args: SdxlArgs) -> list[str]:
    """Return everything that is wrong with the flags, one line each."""
    complaints = checks.check_args(args, SDXL)
    if args.snr_gamma is not None and args.do_edm_style_training:
        complaints.append(
            "--snr_gamma and --do_edm_style_training both weigh noise levels: give one"
        )
    if args.pretrained_vae_model_name_or_path:
        complaints += checks.model_folder_complaints(
            "--pretrained_vae_model_name_or_path",
            args.pretrained_vae_model_name_or_path,
            "config.json",
        )
    return complaints


def load_models(
    args: SdxlArgs, accelerator: Accelerator, prompts: list[str], names: Iterable[str] = ()
) -> Models:
    """Load SDXL, encode what can be encoded beforehand, attach the adapters.

    Args:
        names: of the subjects, for --learn_words.
    """
    base = args.base
    hub = {key: getattr(args, key) for key in ("revision", "variant", "cache_dir")}
    dtype, device = runtime.weight_dtype(accelerator), accelerator.device

    base_flag = "--pretrained_model_name_or_path"
    with loading(base_flag, base):
        schedule = sdxl.load_schedule(base, args.do_edm_style_training, args.snr_gamma, **hub)
    half_safe = args.pretrained_vae_model_name_or_path
    vae_flag = "--pretrained_vae_model_name_or_path" if half_safe else base_flag
    with loading(vae_flag, half_safe or base):
        vae = sdxl.load_vae(base, half_safe, dtype, **hub).to(device)
    with loading(base_flag, base):
        pipeline = sdxl.load_text_pipeline(base, dtype, **hub).to(device)
    words = make_words(args, pipeline, names)
    shown = [args.validation_prompt, sdxl.NO_PROMPT] if args.validation_prompt else []
    encoders, encode = prepare_prompts(args, pipeline, words, [*prompts, *shown], device)

    with loading(base_flag, base):
        unet = sdxl.load_unet(base, dtype, args.quantize_base, **hub)
    quantization.place(unet, device)
    targets = args.lora_targets or lora.ATTENTION_TARGETS
    lora.add_lora(unet, args.rank, targets, args.use_dora)
    adapted = {"unet": unet, **(encoders if args.train_text_encoder else {})}
    lora.resume_lora(args.resume_lora, adapted)
    runtime.save_memory(args, unet, vae, encoders)
    denoiser = sdxl.Denoiser(unet, encode, encoders, words)
    draw = partial(
        sdxl.sample_image,
        encode=encode,
        prompt=args.validation_prompt or "",
        resolution=args.resolution,
        num_steps=args.num_validation_inference_steps,
        guidance_scale=args.validation_guidance_scale,
    )
    sample, drawn = validation.make_sample(
        args, accelerator, pipeline, {"unet": unet}, vae, targets, sdxl.load_unet, draw
    )
    return Models(denoiser, vae, schedule, adapted, sample, words, drawn)


def prepare_prompts(
    args: SdxlArgs,
    pipeline: StableDiffusionXLPipeline,
    words: LearnedWords | None,
    prompts: list[str],
    device: torch.device,
) -> tuple[dict[str, Any], PromptEncoder]:
    """Encode beforehand what no step changes; return the encoders that stay, and how to encode."""
    encode: PromptEncoder = partial(sdxl.encode_prompts, pipeline)
    encoders = sdxl.text_encoders(pipeline)
    if args.train_text_encoder:
        for encoder in encoders.values():
            lora.add_lora(encoder, args.rank, lora.TEXT_ENCODER_TARGETS, args.use_dora)
        return encoders, encode
    if words is not None:
        for encoder in encoders.values():
            encoder.requires_grad_(False)
        tell_cost(words, encoders.values(), prompts)
        return encoders, WordPrompts(words, encode, prompts, device)
    table = PromptTable(encode, prompts, device)
    sdxl.free_text_encoders(pipeline)
    return {}, table


def run_pass(
    args: SdxlArgs,
    accelerator: Accelerator,
    models: Models,
    training: Training,
    batch: Batch,
    generator: torch.Generator,
    cache: LatentCache | None,
) -> Pass:
    """Turn a batch into a loss, add its gradients; with a step's last pass, step the optimizer."""
    batch = batch.to(accelerator.device)
    with torch.no_grad():
        latents = encode_images(models.vae, batch.pixels, generator, cache, batch.keys)
    weight = latent_weight(batch.mask, latents.shape[-2:], args.soft_alpha)  # (B, 1, h, w)
    sizes = sdxl.size_conditions(
        batch.conditioning, args.resolution, args.real_size_conditioning
    )  # (B, 6)
    task = make_task(models.schedule, latents, weight, batch.prompts, sizes, generator)

    with accelerator.accumulate(training.denoiser):
        networks = (training.denoiser, training.base)
        weights = (args.dco_beta or 0.0, args.prior_loss_weight)
        loss = training_loss(*networks, task, batch.num_subjects, *weights)
        norm = training.step(accelerator, loss, args.max_grad_norm)
    return Pass(loss.detach(), norm)


def train(
    args: SdxlArgs,
    accelerator: Accelerator,
    models: Models,
    dataset: SegMixDataset,
    plan: runtime.Plan,
) -> None:
    """Run the optimizer steps; everything on the way is written to --output_dir."""
    training = prepare_training(accelerator, args, plan, StableDiffusionXLPipeline, models)
    step = training.first_step
    loader = make_loader(dataset, plan.draws(step), args.dataloader_num_workers)
    log = StepLog(accelerator, args, plan, step)
    cache = LatentCache() if args.cache_latents or args.segmix_pool else None
    passes: list[Pass] = []
    for micro_step, batch in enumerate(loader, step * args.gradient_accumulation_steps):
        generator = runtime.step_generator(accelerator, plan.seed, micro_step)
        passes.append(run_pass(args, accelerator, models, training, batch, generator, cache))
        if not accelerator.sync_gradients:
            continue

        step += 1
        log.add(step, passes, training.lr_scheduler.get_last_lr()[0])
        passes.clear()
        if not accelerator.optimizer_step_was_skipped:
            training.lr_scheduler.step()
        parts = (StableDiffusionXLPipeline, models.adapted)
        with log.paused():
            saving.save_if_due(accelerator, args, plan.record, *parts, step, models.words)
            runtime.validate_if_due(accelerator, args, plan, models, step)
    log.close()


@program
def main(args: SdxlArgs) -> None:
    run = runtime.set_up(args, check_args(args), SDXL)
    subjects = run.dataset.subjects
    if args.learn_words:
        tell_lacking(subjects)
    load = partial(load_models, names=subjects.names.values())
    if args.dry_run:
        return dry_run.tell(args, run, SDXL, check_args, load, run_pass)
    models = load(args, run.accelerator, run.dataset.prompts())
    train(args, run.accelerator, models, run.dataset, run.plan)
    parts = (StableDiffusionXLPipeline, models.adapted, run.plan.num_steps)
    publish.finish(args, run.accelerator, subjects, *parts, words=models.words)


if __name__ == "__main__":
    main(ARGS)
