"""The flags that both training scripts have, and what they mean. Knows no torch."""

import argparse
import os
from pathlib import Path
from typing import Any

from mudi.ground.flags import BooleanFlag, Parser, RefusedFlag

CACHED_CROPS = 4  # positions a photo, so that a crop comes again
MIXES = ("segmix", "cutmix")
OPTIMIZERS = ("adamw", "adafactor", "prodigy")
QUANTIZED = ("none", "nf4", "int8")
TRACKERS = ("tensorboard", "wandb")
NO_TOKENS = (
    "arguments are seen by process lists, launchers and trackers: set HF_TOKEN or run "
    "`hf auth login`, and revoke this token"
)
PRIOR_POINTER = (
    "training does not sample class pictures; make them once with "
    'generate_prior.py --gen_class a="<class>" b="<class>" --out_dir DIR, '
    "then pass --class_data_dir DIR"
)
NO_DATASETS = (
    "data sets from the hub carry no masks, which Seg-Mix needs; "
    "put photos and masks into a folder with a metadata.jsonl and pass --instance_data_dir"
)


def make_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with all shared flags; `defaults` are the script's own."""
    parser = Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(refused=[])
    _add_model_flags(parser)
    _add_data_flags(parser)
    _add_segmix_flags(parser)
    _add_loss_flags(parser)
    _add_training_flags(parser)
    _add_optimizer_flags(parser)
    _add_output_flags(parser)
    _add_refused_flags(parser)
    parser.set_defaults(**defaults)
    return parser


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model_name_or_path", help="base model: folder or hub id")
    group.add_argument("--revision", help="git revision of the base model on the hub")
    group.add_argument("--variant", help='weight files to load, e.g. "fp16"')
    group.add_argument("--cache_dir", help="where downloads from the hub are kept")
    group.add_argument("--rank", type=int, default=4, help="rank of the LoRA; alpha is the same")
    group.add_argument("--use_dora", action="store_true", help="train a DoRA, not a plain LoRA")
    group.add_argument(
        "--resume_lora",
        metavar="FILE",
        help="start from this LoRA (a file, or a run's folder; several in one: python -m "
        "mudi.merge_lora) with a new optimizer; a checkpoint of --resume_from_checkpoint wins",
    )
    group.add_argument(
        "--train_text_encoder", action="store_true", help="adapt the text encoder(s) as well"
    )
    group.add_argument(
        "--enable_xformers_memory_efficient_attention",
        action="store_true",
        help="attention by xformers instead of PyTorch's own",
    )


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--instance_data_dir", help="folder with metadata.jsonl, photos and masks of the subjects"
    )
    group.add_argument(
        "--caption_column", default="text", help="key of the captions in the metadata's lines"
    )
    group.add_argument("--class_data_dir", help="folder with class_metadata.jsonl (the prior set)")
    group.add_argument("--resolution", type=int, help="side of the training images (px)")
    group.add_argument(
        "--center_crop", action="store_true", help="crop photos in the middle, not at random"
    )
    group.add_argument(
        "--random_flip",
        action="store_true",
        help="mirror photos with their masks, and every cut-out of a collage by its own coin",
    )
    group.add_argument("--repeats", type=int, default=1, help="times an epoch shows each photo")
    group.add_argument(
        "--dataloader_num_workers", type=int, default=0, help="processes that prepare samples"
    )
    group.add_argument(
        "--cache_latents",
        action="store_true",
        help="keep what the VAE makes of plain photos, in host memory; a photo then has "
        f"{CACHED_CROPS} crops instead of any. Flips, collages and the VAE's own sampling noise "
        "stay random; for collages there is --segmix_pool",
    )


def _add_segmix_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Seg-Mix")
    group.add_argument(
        "--mix",
        choices=MIXES,
        default="segmix",
        help="what a collage is: subjects cut out on a plain background, or, the baseline, two "
        "whole photos side by side (Cut-Mix; pictures then want the negative prompt "
        "mudi.segmix.CUTMIX_NEGATIVE_PROMPT)",
    )
    group.add_argument(
        "--segmix_prob",
        type=float,
        default=0.3,
        help="probability that a photo becomes a collage (the published runs' value); 0: off",
    )
    group.add_argument(
        "--segmix_start_step", type=int, default=0, help="first optimizer step with collages"
    )
    group.add_argument(
        "--segmix_pool",
        type=int,
        default=0,
        help="draw collages from a stock of this many, whose VAE encodings are kept in host "
        "memory; the VAE's own sampling noise stays random. 0: each collage is new",
    )
    group.add_argument(
        "--segmix_pool_refresh",
        type=int,
        default=10,
        help="optimizer steps after which one collage of the stock makes room for a new one; in "
        "the long run each is used this many times the collages of a step",
    )
    group.add_argument("--segmix_num_subjects", type=int, default=2, help="subjects a collage")
    group.add_argument(
        "--relative_scale",
        type=float,
        default=0.0,
        help="fixed sizes of two subjects, as fractions of the largest that fits: "
        "r > 0 gives (1, r), r < 0 gives (|r|, 1), in the metadata's order; 0: random",
    )
    group.add_argument(
        "--subject_scales",
        nargs="+",
        metavar="ID=SCALE",
        help="fixed size of every subject, as a fraction in (0, 1] of the largest that fits",
    )
    group.add_argument(
        "--soft_alpha",
        type=float,
        default=1.0,
        help="weight of a collage's background in the loss, 0 (subjects only) to 1 (no masking)",
    )


def _add_loss_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--dco_beta",
        type=float,
        help="strength of the DCO loss, which ties the subjects to the base model; 0: plain "
        "squared error; unset: the script's own (SDXL: 1000, or 0 with prior preservation; "
        "FLUX: 0)",
    )
    group.add_argument(
        "--with_prior_preservation",
        action="store_true",
        help="train half of every step on class pictures",
    )
    group.add_argument(
        "--prior_loss_weight", type=float, default=1.0, help="weight of the class pictures' loss"
    )
    group.add_argument(
        "--num_class_images", type=int, default=100, help="class pictures used, over all classes"
    )


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--seed", type=int, help="of all chance, below 2^32; unset: a new one")
    group.add_argument("--train_batch_size", type=int, default=4, help="photos a process and pass")
    group.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="passes an optimizer step"
    )
    group.add_argument("--num_train_epochs", type=int, default=1, help="times over all photos")
    group.add_argument(
        "--max_train_steps", type=int, help="optimizer steps; set, it overrides the epochs"
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="less memory for about a third more time",
    )
    group.add_argument(
        "--quantize_base",
        choices=QUANTIZED,
        default="none",
        help="keep the frozen denoiser in 4 bits (nf4: bitsandbytes, needs a CUDA GPU) or 8 (int8: "
        "torchao); the LoRA stays in float32",
    )
    group.add_argument(
        "--vae_slicing",
        action="store_true",
        help="encode a batch's pictures one after the other: less memory where it has several",
    )
    group.add_argument(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        help="unset: what accelerate was told, else the script's own on a GPU and no on a CPU",
    )
    group.add_argument("--allow_tf32", action="store_true", help="TF32 matrix products (Ampere on)")
    group.add_argument("--local_rank", type=int, default=-1, help="set by older launchers")
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="stop before weights are loaded and tell how much GPU memory the run needs",
    )
    group.add_argument(
        "--fits",
        type=float,
        metavar="GB",
        help="with --dry_run: exit code 1 if a card of that size is too small, and what would help",
    )


def _add_optimizer_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument("--optimizer", default="AdamW", help="AdamW, adafactor or prodigy")
    group.add_argument("--use_8bit_adam", action="store_true", help="AdamW's states in 8 bits")
    group.add_argument("--learning_rate", type=float, default=1e-4, help="of the denoiser's LoRA")
    group.add_argument(
        "--text_encoder_lr", type=float, default=5e-6, help="learning rate of the text encoders"
    )
    group.add_argument(
        "--scale_lr",
        action="store_true",
        help="multiply --learning_rate by accumulation, batch size and number of processes",
    )
    group.add_argument(
        "--lr_scheduler",
        default="constant",
        help="linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup",
    )
    group.add_argument("--lr_warmup_steps", type=int, default=500, help="optimizer steps")
    group.add_argument("--lr_num_cycles", type=int, default=1, help="of cosine_with_restarts")
    group.add_argument("--lr_power", type=float, default=1.0, help="of polynomial")
    group.add_argument("--adam_beta1", type=float, default=0.9, help="of AdamW and prodigy")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="of AdamW and prodigy")
    group.add_argument("--adam_weight_decay", type=float, default=1e-4, help="of the LoRA")
    group.add_argument(
        "--adam_weight_decay_text_encoder", type=float, default=1e-3, help="of the text encoders"
    )
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="of AdamW and prodigy")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to")
    group.add_argument("--prodigy_beta3", type=float, help="unset: the root of beta2")
    for name in ("decouple", "use_bias_correction", "safeguard_warmup"):
        group.add_argument(f"--prodigy_{name}", action=BooleanFlag, default=True, help="of prodigy")


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", help="where everything is written")
    group.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="remove another run's checkpoint-* and save-* from --output_dir, once models and data "
        "are loaded; without it a fresh run refuses a folder that holds checkpoints",
    )
    group.add_argument("--save_steps", type=int, default=500, help="steps between LoRA files")
    group.add_argument(
        "--checkpointing_steps", type=int, default=500, help="steps between resumable states"
    )
    group.add_argument(
        "--checkpoints_total_limit", type=int, help="resumable states kept; unset: all"
    )
    group.add_argument(
        "--resume_from_checkpoint", metavar="PATH|latest", help="a checkpoint-<step> folder"
    )
    group.add_argument(
        "--output_kohya_format",
        action="store_true",
        help="also write the LoRA under the key names that ComfyUI and A1111 load",
    )
    group.add_argument("--validation_prompt", help="prompt of the images made while training")
    group.add_argument("--num_validation_images", type=int, default=4, help="images each time")
    group.add_argument(
        "--validation_epochs", type=int, default=50, help="epochs between images, from the first on"
    )
    group.add_argument(
        "--num_validation_inference_steps", type=int, default=25, help="sampler steps an image"
    )
    group.add_argument(
        "--report_to", default="tensorboard", help="tensorboard, wandb, all, none, or a,b"
    )
    group.add_argument(
        "--logging_steps",
        type=int,
        default=10,
        help="optimizer steps between readings of the loss, for which the GPU is waited for; each "
        "step's loss is logged all the same",
    )
    group.add_argument("--logging_dir", default="logs", help="tracker files, inside --output_dir")
    group.add_argument("--wandb_name", help="name of the run in Weights & Biases")
    group.add_argument("--push_to_hub", action="store_true", help="upload the result at the end")
    group.add_argument("--hub_model_id", help="repository; unset: the name of --output_dir")


def _add_refused_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("refused, with what to use instead")
    refused: list[tuple[str, type, Any, str]] = [
        ("--hub_token", str, None, NO_TOKENS),
        ("--dataset_name", str, None, NO_DATASETS),
        ("--dataset_config_name", str, None, NO_DATASETS),
        ("--class_prompt", str, None, PRIOR_POINTER),
        ("--prior_generation_precision", str, None, PRIOR_POINTER),
        ("--sample_batch_size", int, 4, PRIOR_POINTER),
    ]
    for flag, kind, default, why in refused:
        group.add_argument(
            flag, type=kind, default=default, action=RefusedFlag, const=why, help="refused"
        )
    group.add_argument(
        "--image_column", default="image", help="only its default; a line's photo is its file_name"
    )


def trackers(report_to: str) -> list[str]:
    """Split --report_to into tracker names; blanks between them do no harm."""
    report_to = report_to.strip()
    if report_to == "none":
        return []
    return list(TRACKERS) if report_to == "all" else [word.strip() for word in report_to.split(",")]


def subject_scales(args: argparse.Namespace, names: dict[str, str]) -> dict[str, float] | None:
    """Return the fixed scale of every subject id, or None where scales are drawn.

    Raises:
        ValueError: the flags do not fit the subjects.
    """
    if args.relative_scale:
        if len(names) != 2:
            raise ValueError(
                f"--relative_scale is for two subjects, the metadata has {len(names)}; "
                "use --subject_scales"
            )
        r = args.relative_scale
        return dict(zip(names, (1.0, r) if r > 0 else (abs(r), 1.0), strict=True))
    if not args.subject_scales:
        return None
    pairs = [text.partition("=")[::2] for text in args.subject_scales]
    try:
        scales = {subject: float(value) for subject, value in pairs}
    except ValueError as error:
        raise ValueError(f"--subject_scales takes ID=NUMBER: {error}") from error
    once = len(scales) == len(pairs)
    if not once or set(scales) != set(names) or not all(0 < c <= 1 for c in scales.values()):
        raise ValueError(
            f"--subject_scales must give one number in (0, 1] for each of {', '.join(names)}"
        )
    return scales


def resolve_mixed_precision(
    flag: str | None, gpu_precision: str, has_gpu: bool, accelerate_config: Path | None
) -> str | None:
    """Return the precision to hand to `Accelerator`; None leaves it to accelerate.

    `accelerate launch` sets ACCELERATE_MIXED_PRECISION=no by itself when nothing is configured,
    so that value says something only where a saved `accelerate config` file exists.

    Args:
        flag: --mixed_precision.
        gpu_precision: the script's own default on a GPU.
        accelerate_config: the saved configuration file, existing or not.
    """
    if flag is not None:
        return flag
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if told != "no" or (accelerate_config is not None and accelerate_config.is_file()):
        return None
    return gpu_precision if has_gpu else "no"
