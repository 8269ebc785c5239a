"""The flags that all training scripts have, and what they mean. Knows no torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mudi.ground.flags import FIXED, FREE, flag
from mudi.ground.lora_names import DORA_ERROR, DORA_RANK

CACHED_CROPS = 4  # positions a photo, so that a crop comes again
MIXES = ("segmix", "cutmix")
MAX_SEED = 2**32 - 1  # numpy's
OPTIMIZERS = ("adamw", "adafactor", "prodigy")
SAVE_PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "float32": "float32"}  # torch's words
QUANTIZED = ("none", "nf4", "int8")
WEIGHTING_SCHEMES = ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none")
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


@dataclass
class Model:
    """model"""

    pretrained_model_name_or_path: str | None = flag(None, "base model: folder or hub id")
    revision: str | None = flag(None, "git revision of the base model on the hub")
    variant: str | None = flag(None, 'weight files to load, e.g. "fp16"')
    cache_dir: str | None = flag(None, "where downloads from the hub are kept", on_resume=FREE)
    rank: int = flag(4, "rank of the LoRA; alpha is the same", at_least=1, on_resume=FIXED)
    lora_targets: list[str] | None = flag(
        None,
        "linear layers of the denoiser that the LoRA adapts, in place of the script's own: ends of "
        "names, as to_q, or whole ones",
        nargs="+",
        metavar="NAME",
        on_resume=FIXED,
    )
    use_dora: bool = flag(False, "train a DoRA, not a plain LoRA", on_resume=FIXED)
    resume_lora: str | None = flag(
        None,
        "start from this LoRA (a file, or a run's folder; several in one: python -m "
        "mudi.merge_lora) with a new optimizer; a checkpoint of --resume_from_checkpoint wins",
        metavar="FILE",
    )
    train_text_encoder: bool = flag(False, "adapt the text encoder(s) as well", on_resume=FIXED)
    learn_words: bool = flag(
        False,
        "SDXL: learn each subject's whole name as new tokens, started from its noun's, in place of "
        "the rare word; go on writing the names",
        on_resume=FIXED,
    )
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "attention by xformers instead of PyTorch's own"
    )

    @property
    def base(self) -> str:
        """The base model's folder or hub id; no run that has none passes the checks."""
        return self.pretrained_model_name_or_path or ""


@dataclass
class Data:
    """data"""

    instance_data_dir: str | None = flag(
        None, "folder with metadata.jsonl, photos and masks of the subjects"
    )
    caption_column: str = flag("text", "key of the captions in the metadata's lines")
    class_data_dir: str | None = flag(None, "folder with class_metadata.jsonl (the prior set)")
    resolution: int = flag(1024, "side of the training images (px)")
    center_crop: bool = flag(False, "crop photos in the middle, not at random")
    random_flip: bool = flag(
        False, "mirror photos with their masks, and every cut-out of a collage by its own coin"
    )
    repeats: int = flag(1, "times an epoch shows each photo", at_least=1)
    dataloader_num_workers: int = flag(
        0, "processes that prepare samples", at_least=0, on_resume=FREE
    )
    cache_latents: bool = flag(
        False,
        "keep what the VAE makes of plain photos, in host memory; a photo then has 4 crops "
        "instead of any. Flips, collages and the VAE's own sampling noise stay random; for "
        "collages there is --segmix_pool",
    )


@dataclass
class SegMix:
    """Seg-Mix"""

    mix: str = flag(
        "segmix",
        "what a collage is: subjects cut out on a plain background, or, the baseline, two whole "
        "photos side by side (Cut-Mix; pictures then want the negative prompt "
        "mudi.segmix.CUTMIX_NEGATIVE_PROMPT)",
        choices=MIXES,
    )
    segmix_prob: float = flag(
        0.3,
        "probability that a photo becomes a collage (the published runs' value); 0: off",
        at_least=0,
        at_most=1,
    )
    segmix_start_step: int = flag(0, "first optimizer step with collages", at_least=0)
    segmix_pool: int = flag(
        0,
        "draw collages from a stock of this many, whose VAE encodings are kept in host memory; "
        "the VAE's own sampling noise stays random. 0: each collage is new",
        at_least=0,
    )
    segmix_pool_refresh: int = flag(
        10,
        "optimizer steps after which one collage of the stock makes room for a new one; in the "
        "long run each is used this many times the collages of a step",
        at_least=1,
    )
    segmix_num_subjects: int = flag(2, "subjects a collage", at_least=2)
    relative_scale: float = flag(
        0.0,
        "fixed sizes of two subjects, as fractions of the largest that fits: r > 0 gives (1, r), "
        "r < 0 gives (|r|, 1), in the metadata's order; 0: random",
        at_least=-1,
        at_most=1,
    )
    subject_scales: list[str] | None = flag(
        None,
        "fixed size of every subject, as a fraction in (0, 1] of the largest that fits",
        nargs="+",
        metavar="ID=SCALE",
    )
    caption_boxes: bool = flag(
        False,
        "an experiment, untried on real weights: a collage's prompt ends in its subjects' boxes, "
        "as models read layouts; the text encoder then stays loaded and encodes every collage's "
        "prompt anew (FLUX.2-klein, Z-Image)",
    )
    soft_alpha: float = flag(
        1.0,
        "weight of a collage's background in the loss, 0 (subjects only) to 1 (no masking)",
        at_least=0,
        at_most=1,
    )


@dataclass
class Loss:
    """loss"""

    dco_beta: float | None = flag(
        None,
        "strength of the DCO loss, which ties the subjects to the base model; 0: plain squared "
        "error; unset: the script's own (SDXL: 1000, or 0 with prior preservation; else 0)",
        at_least=0,
    )
    with_prior_preservation: bool = flag(False, "train half of every step on class pictures")
    prior_loss_weight: float = flag(1.0, "weight of the class pictures' loss", at_least=0)
    num_class_images: int = flag(100, "class pictures used, over all classes", at_least=1)


@dataclass
class Training:
    """training"""

    seed: int | None = flag(
        None, "of all chance, below 2^32; unset: a new one", at_least=0, at_most=MAX_SEED
    )
    train_batch_size: int = flag(4, "photos a process and pass", at_least=1)
    gradient_accumulation_steps: int = flag(1, "passes an optimizer step", at_least=1)
    num_train_epochs: int = flag(1, "times over all photos", at_least=1, on_resume=FREE)
    max_train_steps: int | None = flag(
        None, "optimizer steps; set, it overrides the epochs", at_least=1, on_resume=FREE
    )
    gradient_checkpointing: bool = flag(
        False, "less memory for about a third more time", on_resume=FREE
    )
    quantize_base: str = flag(
        "none",
        "keep the frozen denoiser in 4 bits (nf4: bitsandbytes, needs a CUDA GPU) or 8 (int8: "
        "torchao); the LoRA stays in float32",
        choices=QUANTIZED,
    )
    vae_slicing: bool = flag(
        False, "encode a batch's pictures one after the other: less memory where it has several"
    )
    mixed_precision: str | None = flag(
        None,
        "unset: what accelerate was told, else the script's own on a GPU and no on a CPU",
        choices=("no", "fp16", "bf16"),
    )
    allow_tf32: bool = flag(False, "TF32 matrix products (Ampere on)")
    local_rank: int = flag(-1, "set by older launchers", on_resume=FREE)
    dry_run: bool = flag(
        False,
        "stop before weights are loaded and tell how much GPU memory the run needs",
        on_resume=FREE,
    )
    fits: float | None = flag(
        None,
        "with --dry_run: exit code 1 if a card of that size is too small, and what would help",
        metavar="GB",
        on_resume=FREE,
    )


@dataclass
class Optimizer:
    """optimizer"""

    optimizer: str = flag("AdamW", "AdamW, adafactor or prodigy", on_resume=FIXED)
    use_8bit_adam: bool = flag(False, "AdamW's states in 8 bits", on_resume=FIXED)
    learning_rate: float = flag(0.0001, "of the denoiser's LoRA", above=0)
    text_encoder_lr: float = flag(5e-06, "learning rate of the text encoders", above=0)
    word_learning_rate: float = flag(
        5e-06, "of --learn_words, as DCO's authors have it (prodigy: its own)", above=0
    )
    scale_lr: bool = flag(
        False, "multiply --learning_rate by accumulation, batch size and number of processes"
    )
    lr_scheduler: str = flag(
        "constant",
        "linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup",
    )
    lr_warmup_steps: int = flag(500, "optimizer steps", at_least=0)
    lr_num_cycles: int = flag(1, "of cosine_with_restarts", at_least=1)
    lr_power: float = flag(1.0, "of polynomial", above=0)
    adam_beta1: float = flag(0.9, "of AdamW and prodigy", at_least=0, below=1)
    adam_beta2: float = flag(0.999, "of AdamW and prodigy", at_least=0, below=1)
    adam_weight_decay: float = flag(0.0001, "of the LoRA", at_least=0)
    adam_weight_decay_text_encoder: float = flag(0.001, "of the text encoders", at_least=0)
    adam_epsilon: float = flag(1e-08, "of AdamW and prodigy", above=0)
    max_grad_norm: float = flag(1.0, "gradients are clipped to", above=0)
    prodigy_beta3: float | None = flag(None, "unset: the root of beta2", at_least=0, below=1)
    prodigy_decouple: bool = flag(True, "of prodigy")
    prodigy_use_bias_correction: bool = flag(True, "of prodigy")
    prodigy_safeguard_warmup: bool = flag(True, "of prodigy")


@dataclass
class Output:
    """output"""

    output_dir: str = flag("", "where everything is written", on_resume=FREE)
    overwrite_output_dir: bool = flag(
        False,
        "remove another run's checkpoint-* and save-* from --output_dir, once models and data are"
        " loaded; without it a fresh run refuses a folder that holds checkpoints",
        on_resume=FREE,
    )
    save_steps: int = flag(500, "steps between LoRA files", at_least=1, on_resume=FREE)
    checkpointing_steps: int = flag(
        500, "steps between resumable states", at_least=1, on_resume=FREE
    )
    checkpoints_total_limit: int | None = flag(
        None, "resumable states kept; unset: all", at_least=1, on_resume=FREE
    )
    resume_from_checkpoint: str | None = flag(
        None, "a checkpoint-<step> folder", metavar="PATH|latest", on_resume=FREE
    )
    output_kohya_format: bool = flag(
        True,
        "also write the LoRA as ComfyUI, Forge, A1111, InvokeAI and sd-scripts load it",
        on_resume=FREE,
    )
    save_precision: str | None = flag(
        None,
        "of the LoRA files, not of resumable states; unset: fp16 for SDXL, else bf16",
        choices=tuple(SAVE_PRECISIONS),
        on_resume=FREE,
    )
    dora_as_lora_rank: int = flag(
        DORA_RANK,
        "a DoRA means another thing to each program but diffusers, so the file for the others has "
        "a plain LoRA of this rank that comes near it",
        at_least=1,
        on_resume=FREE,
    )
    dora_as_lora_error: float = flag(
        DORA_ERROR,
        "no such file where more than this part of the DoRA would be lost",
        at_least=0,
        on_resume=FREE,
    )
    validation_prompt: str | None = flag(
        None, "prompt of the images made while training", on_resume=FREE
    )
    validation_model: str | None = flag(
        None,
        "model that the LoRA will be used on, as a distilled one (folder or hub id, of the base's "
        "kind): images are made with it, and its denoiser stays loaded beside the one that trains",
        on_resume=FREE,
    )
    validation_guidance_scale: float | None = flag(
        None, "of those images, as distilled models want it; unset: the script's", on_resume=FREE
    )
    num_validation_images: int = flag(4, "images each time", at_least=1, on_resume=FREE)
    validation_epochs: int = flag(
        50, "epochs between images, from the first on", at_least=1, on_resume=FREE
    )
    num_validation_inference_steps: int = flag(
        25, "sampler steps an image", at_least=1, on_resume=FREE
    )
    report_to: str = flag("tensorboard", "tensorboard, wandb, all, none, or a,b", on_resume=FREE)
    logging_steps: int = flag(
        10,
        "optimizer steps between readings of loss and gradient norm, for which the GPU is waited "
        "for; each step's are logged all the same",
        at_least=1,
        on_resume=FREE,
    )
    logging_dir: str = flag("logs", "tracker files, inside --output_dir", on_resume=FREE)
    wandb_name: str | None = flag(None, "name of the run in Weights & Biases", on_resume=FREE)
    push_to_hub: bool = flag(False, "upload the result at the end", on_resume=FREE)
    hub_model_id: str | None = flag(
        None, "repository; unset: the name of --output_dir", on_resume=FREE
    )


@dataclass
class Refused:
    """refused, with what to use instead"""

    hub_token: str | None = flag(None, "refused", refused=NO_TOKENS)
    dataset_name: str | None = flag(None, "refused", refused=NO_DATASETS)
    dataset_config_name: str | None = flag(None, "refused", refused=NO_DATASETS)
    class_prompt: str | None = flag(None, "refused", refused=PRIOR_POINTER)
    prior_generation_precision: str | None = flag(None, "refused", refused=PRIOR_POINTER)
    sample_batch_size: int = flag(4, "refused", refused=PRIOR_POINTER)
    image_column: str = flag("image", "only its default; a line's photo is its file_name")
    refused: list[str] = field(default_factory=list)


@dataclass
class TrainingArgs(Model, Data, SegMix, Loss, Training, Optimizer, Output, Refused):
    """What all training scripts take."""


@dataclass
class FlowMatching:
    """flow matching"""

    weighting_scheme: str = flag(
        "none",
        "which noise levels are drawn more often, or weighed more",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float = flag(0.0, "of logit_normal's normal")
    logit_std: float = flag(1.0, "of logit_normal's normal", above=0)
    mode_scale: float = flag(1.29, "of the mode scheme")


@dataclass
class Qwen:
    """Qwen3"""

    max_sequence_length: int = flag(
        512, "tokens of a prompt for Qwen3, its chat template's included", at_least=1
    )
    encode_on_cpu: bool = flag(
        False,
        "run Qwen3 on the CPU at the start, where the GPU has no 9 GB for it (slow)",
        on_resume=FREE,
    )


def density(args: FlowMatching) -> tuple[str, float, float, float]:
    """Return what `mudi.backbones.flow.FlowSchedule` takes."""
    return args.weighting_scheme, args.logit_mean, args.logit_std, args.mode_scale


def trackers(report_to: str) -> list[str]:
    """Split --report_to into tracker names; blanks between them do no harm."""
    report_to = report_to.strip()
    if report_to == "none":
        return []
    return list(TRACKERS) if report_to == "all" else [word.strip() for word in report_to.split(",")]


class FixedScales(Protocol):
    """The flags that fix the subjects' relative sizes."""

    relative_scale: float
    subject_scales: list[str] | None


def subject_scales(args: FixedScales, names: dict[str, str]) -> dict[str, float] | None:
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
