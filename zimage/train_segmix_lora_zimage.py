"""Fine-tune Z-Image on several subjects at once with Seg-Mix (MuDI, arXiv 2404.04243).

    accelerate launch zimage/train_segmix_lora_zimage.py \
        --pretrained_model_name_or_path Tongyi-MAI/Z-Image \
        --instance_data_dir dataset/category/robot_and_teddy --output_dir output_zimage/robot_and_teddy \
        --validation_prompt "a photo of a olis robot and a hta teddy bear on a beach" \
        --train_batch_size 1 --gradient_accumulation_steps 4 --max_train_steps 2010 \
        --lr_warmup_steps 0 --rank 32 --seed 42 --gradient_checkpointing

The LoRA lands in --output_dir; `pipeline.load_lora_weights(output_dir)` loads it. Train on the base;
--validation_model Tongyi-MAI/Z-Image-Turbo --num_validation_inference_steps 8 shows what the LoRA
does on the distilled model. zimage/example.sh holds a run, README.md and --help the rest. On a small
GPU add --quantize_base nf4 --encode_on_cpu. Not tried on the real weights yet.
"""  # noqa: E501

from dataclasses import dataclass

from mudi.ground.flags import parse
from mudi.training.args import FlowMatching, Qwen, TrainingArgs, density


@dataclass
class ZImageArgs(TrainingArgs, FlowMatching, Qwen):
    """Z-Image"""


def parse_args(argv: list[str] | None = None) -> ZImageArgs:
    return parse(
        ZImageArgs,
        __doc__,
        argv,
        resolution=512,
        output_dir="z-image-dreambooth-lora",
        dco_beta=0.0,
    )


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

from functools import partial

import torch
from accelerate import Accelerator
from diffusers import ZImagePipeline

from mudi import lora
from mudi.backbones import flow, quantization, zimage
from mudi.backbones.table import ZIMAGE
from mudi.data import Batch, SegMixDataset, make_loader
from mudi.denoising import LivePrompts, Models, PromptTable, make_task, training_loss
from mudi.ground.errors import loading, program
from mudi.latents import LatentCache, encode_images
from mudi.losses import latent_weight
from mudi.training import checks, dry_run, publish, runtime, saving, validation
from mudi.training.optimizers import Training, prepare_training
from mudi.training.stats import Pass, StepLog

# s of pos + s (pos - neg): what the base is used with (4 to 6), and a distilled model
BASE_GUIDANCE, TURBO_GUIDANCE = 4.0, 0.0


def check_args(args: ZImageArgs) -> list[str]:
    """Return everything that is wrong with the flags, one line each."""
    return checks.check_args(args, ZIMAGE)


def load_models(args: ZImageArgs, accelerator: Accelerator, prompts: list[str]) -> Models:
    """Load Z-Image, encode the prompts, free Qwen3, load the transformer and adapt it."""
    base = args.base
    hub = {key: getattr(args, key) for key in ("revision", "variant", "cache_dir")}
    dtype, device = runtime.weight_dtype(accelerator), accelerator.device

    base_flag = "--pretrained_model_name_or_path"
    with loading(base_flag, base):
        schedule = flow.FlowSchedule(flow.load_scheduler(base, **hub), *density(args))
        vae = zimage.load_vae(base, **hub).to(device)
        pipeline = zimage.load_text_pipeline(base, dtype, **hub)
    pipeline.to("cpu" if args.encode_on_cpu else device)
    shown = [args.validation_prompt, zimage.NO_PROMPT] if args.validation_prompt else []
    live = partial(zimage.encode_prompts, pipeline, args.max_sequence_length)
    table = PromptTable(live, [*prompts, *shown], device)
    encode = LivePrompts(table, live) if args.caption_boxes else table
    if not args.caption_boxes:
        zimage.free_text_encoders(pipeline)

    with loading(base_flag, base):
        transformer = zimage.load_transformer(base, dtype, args.quantize_base, **hub)
    quantization.place(transformer, device)
    targets = args.lora_targets or lora.ATTENTION_TARGETS
    lora.add_lora(transformer, args.rank, targets, args.use_dora)
    adapted = {"transformer": transformer}
    lora.resume_lora(args.resume_lora, adapted)
    runtime.save_memory(args, transformer, vae, {})
    denoiser = zimage.Denoiser(transformer, encode)
    guidance = args.validation_guidance_scale
    usual = TURBO_GUIDANCE if args.validation_model else BASE_GUIDANCE
    draw = partial(
        zimage.sample_image,
        encode=encode,
        prompt=args.validation_prompt or "",
        resolution=args.resolution,
        num_steps=args.num_validation_inference_steps,
        guidance_scale=usual if guidance is None else guidance,
    )
    sample, drawn = validation.make_sample(
        args, accelerator, pipeline, adapted, vae, targets, zimage.load_transformer, draw
    )
    return Models(denoiser, vae, schedule, adapted, sample, drawn=drawn)


def run_pass(
    args: ZImageArgs,
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
        latents = encode_images(models.vae, batch.pixels, None, cache, batch.keys, zimage.SPACE)
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
    args: ZImageArgs,
    accelerator: Accelerator,
    models: Models,
    dataset: SegMixDataset,
    plan: runtime.Plan,
) -> None:
    """Run the optimizer steps; everything on the way is written to --output_dir."""
    training = prepare_training(accelerator, args, plan, ZImagePipeline, models)
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
            saving.save_if_due(accelerator, args, plan.record, ZImagePipeline, models.adapted, step)
            runtime.validate_if_due(accelerator, args, plan, models, step)
    log.close()


@program
def main(args: ZImageArgs) -> None:
    run = runtime.set_up(args, check_args(args), ZIMAGE)
    if args.dry_run:
        return dry_run.tell(args, run, ZIMAGE, check_args, load_models, run_pass)
    models = load_models(args, run.accelerator, run.dataset.prompts())
    train(args, run.accelerator, models, run.dataset, run.plan)
    parts = (ZImagePipeline, models.adapted)
    publish.finish(args, run.accelerator, run.dataset.subjects, *parts, run.plan.num_steps)


if __name__ == "__main__":
    main(ARGS)
