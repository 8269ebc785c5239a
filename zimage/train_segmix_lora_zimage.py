"""Fine-tune Z-Image on several subjects at once with Seg-Mix (MuDI, arXiv 2404.04243).

    accelerate launch zimage/train_segmix_lora_zimage.py \
        --pretrained_model_name_or_path Tongyi-MAI/Z-Image \
        --instance_data_dir dataset/category/robot_and_teddy --output_dir output_zimage/robot_and_teddy \
        --validation_prompt "a photo of a olis robot and a hta teddy bear on a beach" \
        --resolution 1024 --train_batch_size 1 --gradient_accumulation_steps 4 \
        --gradient_checkpointing --max_train_steps 2000 --lr_warmup_steps 0 --rank 32 --seed 42

The LoRA lands in --output_dir; `pipeline.load_lora_weights(output_dir)` loads it, into the base and
into Z-Image-Turbo. zimage/example.sh holds a run, README.md and --help the rest. On a small GPU add
--quantize_base nf4 --encode_on_cpu. No default has been tried on the real weights.
"""  # noqa: E501

from dataclasses import dataclass

from mudi.ground.flags import FREE, flag, parse
from mudi.training.args import TrainingArgs

WEIGHTING_SCHEMES = ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none")


@dataclass
class ZImageArgs(TrainingArgs):
    """Z-Image"""

    max_sequence_length: int = flag(512, "tokens of a prompt in its chat template", at_least=1)
    weighting_scheme: str = flag(
        "none",
        "which noise levels are drawn more often, or weighed more",
        choices=WEIGHTING_SCHEMES,
    )
    logit_mean: float = flag(0.0, "of logit_normal's normal")
    logit_std: float = flag(1.0, "of logit_normal's normal", above=0)
    mode_scale: float = flag(1.29, "of the mode scheme")
    encode_on_cpu: bool = flag(
        False,
        "run Qwen3 on the CPU at the start, where the GPU has no 8 GB for it (slow)",
        on_resume=FREE,
    )
    upcast_before_saving: bool = flag(
        False,
        "the same as --save_precision float32",
        on_resume=FREE,
    )


def parse_args(argv: list[str] | None = None) -> ZImageArgs:
    return parse(
        ZImageArgs,
        __doc__,
        argv,
        resolution=512,
        output_dir="z-image-dreambooth-lora",
        caption_column=None,
        dco_beta=0.0,
    )


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ZImagePipeline

from mudi import lora
from mudi.backbones import quantization, zimage
from mudi.backbones.table import ZIMAGE
from mudi.data import Batch, SegMixDataset, make_loader
from mudi.denoising import Models, PromptEncoder, PromptTable, make_task, training_loss
from mudi.ground.errors import loading, program
from mudi.latents import LatentCache, encode_images
from mudi.losses import latent_weight
from mudi.training import checks, dry_run, publish, runtime, saving
from mudi.training.optimizers import Training, prepare_training
from mudi.training.stats import Pass, StepLog

SAMPLER_GUIDANCE = 4.0  # s of pos + s (pos - neg): 4 to 6 are usual with the base, 0 with Turbo
