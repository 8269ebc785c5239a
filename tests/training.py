"""Runs the SDXL script inside the test's process, so that PyTorch is imported once."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import train_segmix_lora_sdxl as script
from mudi.lora import WEIGHTS_NAME

EXAMPLE = Path(__file__).parent.parent / "dataset/category/robot_and_teddy"
SMALL = (  # 64 px: the tiny SDXL's latents are 8 x 8
    "--resolution 64 --train_batch_size 1 --rank 2 --seed 7 --learning_rate 1e-3 "
    "--lr_warmup_steps 0 --report_to none --segmix_prob 0.5"
).split()


def flags(base: Path, output_dir: Path, *more: str, data: Path = EXAMPLE) -> list[str]:
    """Return a small run's command line; `more` overrides."""
    return [
        f"--pretrained_model_name_or_path={base}",
        f"--instance_data_dir={data}",
        f"--output_dir={output_dir}",
        *SMALL,
        *(word for text in more for word in text.split()),
    ]


def train(base: Path, output_dir: Path, *more: str, data: Path = EXAMPLE) -> Path:
    """Run the script as `accelerate launch` would on one CPU process; return output_dir."""
    reset_accelerate()
    torch.set_num_threads(2)
    script.main(script.parse_args(flags(base, output_dir, *more, data=data)))
    return output_dir


def reset_accelerate() -> None:
    """Forget the process-wide state of the last Accelerator."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def loaded(
    base: Path, output_dir: Path, *more: str
) -> tuple[script.argparse.Namespace, script.Models]:
    """Return the models as the script loads them, for one prompt."""
    reset_accelerate()
    args = script.parse_args(flags(base, output_dir, *more))
    torch.manual_seed(0)
    return args, script.load_models(args, Accelerator(cpu=True), ["a olis robot", "a robot"])


def lora_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_NAME)
