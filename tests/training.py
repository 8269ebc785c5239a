"""Runs the training scripts inside the test's process, so that PyTorch is imported once."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers import (
    Flux2KleinPipeline,
    FluxPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from safetensors.torch import load_file

import train_segmix_lora_flux
import train_segmix_lora_klein
import train_segmix_lora_sdxl
import train_segmix_lora_zimage
from mudi.lora import WEIGHTS_NAME

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

EXAMPLE = Path(__file__).parent.parent / "dataset/category/robot_and_teddy"
SMALL = (  # 64 px: the tiny models' latents are 8 x 8
    "--resolution 64 --train_batch_size 1 --rank 2 --seed 7 --learning_rate 1e-3 "
    "--lr_warmup_steps 0 --report_to none --segmix_prob 0.5 --save_precision float32"
).split()


@dataclass(frozen=True)
class Backbone:
    """A training script with the tiny model that it is tried on."""

    script: ModuleType
    base: Path
    pipeline_class: Any
    denoiser: str  # the part that always trains
    named_layer: str  # of it, that the script's own targets do not name
    text_encoders: tuple[str, ...]  # that can be trained
    more: str = ""  # flags that keep it quick
    samples_latents: bool = True  # of the VAE's distribution, not its mean

    def flags(self, output_dir: Path, *more: str, data: Path = EXAMPLE) -> list[str]:
        """Return a small run's command line; `more` overrides.

        A base whose text encoders are not trained goes without --train_text_encoder.
        """
        words = [
            f"--pretrained_model_name_or_path={self.base}",
            f"--instance_data_dir={data}",
            f"--output_dir={output_dir}",
            *SMALL,
            *self.more.split(),
            *(word for text in more for word in text.split()),
        ]
        unknown = {"--train_text_encoder"} if not self.text_encoders else set()
        return [word for word in words if word not in unknown]

    def run(self, words: list[str]) -> Namespace:
        """Run the script as `accelerate launch` would on one CPU process."""
        reset_accelerate()
        args = self.script.parse_args(words)
        self.script.main(args)
        return args

    def train(self, output_dir: Path, *more: str, data: Path = EXAMPLE) -> Path:
        """Run a small training; return output_dir."""
        self.run(self.flags(output_dir, *more, data=data))
        return output_dir

    def loaded(self, output_dir: Path, *more: str) -> tuple[Namespace, Any]:
        """Return the arguments and the models as the script loads them, for two prompts."""
        reset_accelerate()
        args = self.script.parse_args(self.flags(output_dir, *more))
        torch.manual_seed(0)
        prompts = ["a olis robot", "a robot"]
        return args, self.script.load_models(args, Accelerator(cpu=True), prompts)


def sdxl_on(base: Path) -> Backbone:
    script, kind = train_segmix_lora_sdxl, StableDiffusionXLPipeline
    encoders = ("text_encoder", "text_encoder_2")
    return Backbone(script, base, kind, "unet", "time_embedding.linear_1", encoders)


def flux_on(base: Path) -> Backbone:
    script, encoders = train_segmix_lora_flux, ("text_encoder",)
    return Backbone(script, base, FluxPipeline, "transformer", "proj_out", encoders)


def klein_on(base: Path) -> Backbone:
    script, more = train_segmix_lora_klein, "--max_sequence_length 128"
    kind = Flux2KleinPipeline
    return Backbone(script, base, kind, "transformer", "proj_out", (), more, samples_latents=False)


def zimage_on(base: Path) -> Backbone:
    script, more = train_segmix_lora_zimage, "--max_sequence_length 128"
    kind, layer = ZImagePipeline, "layers.0.feed_forward.w1"
    return Backbone(script, base, kind, "transformer", layer, (), more, samples_latents=False)


def reset_accelerate() -> None:
    """Forget the process-wide state of the last Accelerator."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def lora_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_NAME)


def move_weights(models: Any) -> None:
    """Take the adapters away from their start, as training would."""
    generator = torch.Generator().manual_seed(5)
    for model in models.adapted.values():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
