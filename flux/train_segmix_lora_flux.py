"""Fine-tune FLUX on several subjects at once with Seg-Mix (MuDI, arXiv 2404.04243).

    accelerate launch flux/train_segmix_lora_flux.py \
        --pretrained_model_name_or_path black-forest-labs/FLUX.1-dev \
        --instance_data_dir dataset/category/robot_and_teddy --output_dir output_flux/robot_and_teddy \
        --validation_prompt "a photo of a olis robot and a hta teddy bear on a beach" \
        --train_batch_size 1 --gradient_accumulation_steps 4 --max_train_steps 2010 \
        --learning_rate 3e-4 --lr_warmup_steps 0 --guidance_scale 1 --rank 32 --seed 42

The LoRA lands in --output_dir; `pipeline.load_lora_weights(output_dir)` loads it. flux/example.sh
holds the published run, README.md and --help the rest. On a small GPU add --quantize_base nf4
--gradient_checkpointing --encode_on_cpu.
"""  # noqa: E501

from dataclasses import dataclass

from mudi.ground.flags import FREE, flag, parse
from mudi.training.args import FlowMatching, TrainingArgs, density


@dataclass
class FluxArgs(TrainingArgs, FlowMatching):
    """FLUX"""

    guidance_scale: float = flag(
        3.5, "what a guidance-distilled transformer is told while training; published: 1"
    )
    max_sequence_length: int = flag(512, "tokens of a prompt for T5", at_least=1)
    encode_on_cpu: bool = flag(
        False,
        "run T5 on the CPU at the start, where the GPU has no 10 GB for it (slow)",
        on_resume=FREE,
    )
    upcast_before_saving: bool = flag(
        False,
        "the same as --save_precision float32",
        on_resume=FREE,
    )


def parse_args(argv: list[str] | None = None) -> FluxArgs:
    return parse(
        FluxArgs,
        __doc__,
        argv,
        resolution=512,
        output_dir="flux-dreambooth-lora",
        checkpointing_steps=20000,
        caption_column=None,
        dco_beta=0.0,
    )


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import FluxPipeline

from mudi import lora
from mudi.backbones import flow, flux, quantization
from mudi.backbones.table import FLUX
from mudi.data import Batch, SegMixDataset, make_loader
from mudi.denoising import Models, PromptEncoder, PromptTable, make_task, training_loss
from mudi.ground.errors import loading, program
from mudi.latents import LatentCache, encode_images
from mudi.losses import latent_weight
from mudi.training import checks, dry_run, publish, runtime, saving, validation
from mudi.training.optimizers import Training, prepare_training
from mudi.training.stats import Pass, StepLog

SAMPLER_GUIDANCE = 3.5  # what FLUX.1-dev is used with, whatever it is trained with


def check_args(args: FluxArgs) -> list[str]:
    """Return everything that is wrong with the flags, one line each."""
    complaints = checks.check_args(args, FLUX)
    if args.upcast_before_saving and args.save_precision not in (None, "float32"):
        complaints.append(
            f"--upcast_before_saving means float32, and --save_precision {args.save_precision} "
            "does not: leave one out"
        )
    if args.encode_on_cpu and args.train_text_encoder:
        complaints.append("--encode_on_cpu does not go with --train_text_encoder, which needs CLIP")
    return complaints


def load_models(args: FluxArgs, accelerator: Accelerator, prompts: list[str]) -> Models:
    """Load FLUX, encode the prompts, free T5, then load the transformer and adapt it."""
    base = args.base
    hub = {key: getattr(args, key) for key in ("revision", "variant", "cache_dir")}
    dtype, device = runtime.weight_dtype(accelerator), accelerator.device

    base_flag = "--pretrained_model_name_or_path"
    with loading(base_flag, base):
        schedule = flow.FlowSchedule(flow.load_scheduler(base, **hub), *density(args))
        vae = flux.load_vae(base, **hub).to(device)
        pipeline = flux.load_text_pipeline(base, dtype, **hub)
    pipeline.to("cpu" if args.encode_on_cpu else device)
    shown = [args.validation_prompt] if args.validation_prompt else []
    encode: PromptEncoder = partial(flux.encode_prompts, pipeline, args.max_sequence_length)
    encode = PromptTable(encode, [*prompts, *shown], device)
    encoders: dict[str, Any] = {}
    if args.train_text_encoder:
        encoders = {"text_encoder": pipeline.text_encoder}
        lora.add_lora(pipeline.text_encoder, args.rank, lora.TEXT_ENCODER_TARGETS, args.use_dora)
        encode = flux.LiveClip(pipeline, encode)
    flux.free_text_encoders(pipeline, keep_clip=args.train_text_encoder)

    with loading(base_flag, base):
        transformer = flux.load_transformer(base, dtype, args.quantize_base, **hub)
    quantization.place(transformer, device)
    targets = args.lora_targets or lora.ATTENTION_TARGETS
    lora.add_lora(transformer, args.rank, targets, args.use_dora)
    adapted = {"transformer": transformer, **encoders}
    lora.resume_lora(args.resume_lora, adapted)
    runtime.save_memory(args, transformer, vae, encoders)
    denoiser = flux.Denoiser(transformer, encode, encoders, args.guidance_scale)
    guidance = args.validation_guidance_scale
    draw = partial(
        flux.sample_image,
        encode=encode,
        prompt=args.validation_prompt or "",
        resolution=args.resolution,
        num_steps=args.num_validation_inference_steps,
        guidance_scale=SAMPLER_GUIDANCE if guidance is None else guidance,
    )
    network = {"transformer": transformer}
    sample, drawn = validation.make_sample(
        args, accelerator, pipeline, network, vae, targets, flux.load_transformer, draw
    )
    return Models(denoiser, vae, schedule, adapted, sample, drawn=drawn)


def run_pass(
    args: FluxArgs,
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
    nothing = latents.new_empty(len(latents), 0)
    task = make_task(models.schedule, latents, weight, batch.prompts, nothing, generator)

    with accelerator.accumulate(training.denoiser):
        networks = (training.denoiser, training.base)
        weights = (args.dco_beta or 0.0, args.prior_loss_weight)
        loss = training_loss(*networks, task, batch.num_subjects, *weights)
        norm = training.step(accelerator, loss, args.max_grad_norm)
    return Pass(loss.detach(), norm)


def train(
    args: FluxArgs,
    accelerator: Accelerator,
    models: Models,
    dataset: SegMixDataset,
    plan: runtime.Plan,
) -> None:
    """Run the optimizer steps; everything on the way is written to --output_dir."""
    training = prepare_training(accelerator, args, plan, FluxPipeline, models)
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
        with log.paused():
            saving.save_if_due(accelerator, args, plan.record, FluxPipeline, models.adapted, step)
            runtime.validate_if_due(accelerator, args, plan, models, step)
    log.close()


@program
def main(args: FluxArgs) -> None:
    complaints = check_args(args)
    if args.upcast_before_saving:
        args.save_precision = "float32"
    run = runtime.set_up(args, complaints, FLUX)
    if args.dry_run:
        return dry_run.tell(args, run, FLUX, check_args, load_models, run_pass)
    models = load_models(args, run.accelerator, run.dataset.prompts())
    train(args, run.accelerator, models, run.dataset, run.plan)
    parts = (FluxPipeline, models.adapted)
    publish.finish(args, run.accelerator, run.dataset.subjects, *parts, run.plan.num_steps)


if __name__ == "__main__":
    main(ARGS)
