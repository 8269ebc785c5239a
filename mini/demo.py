"""The whole method in one command, on the CPU: `make demo`, or

    python -m mini.demo --output output/demo

Trains a Seg-Mix LoRA for a few steps on the example pair, loads it into a stock diffusers
pipeline and writes a sheet. The base model has random weights, so its pictures are noise: what the
sheet shows is the training collages and that the LoRA changes the picture.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from mini.tiny import tiny_sdxl
from mudi.files import write_image
from mudi.lora import WEIGHTS_NAME
from mudi.preview import contact_sheet

ROOT = Path(__file__).parent.parent
PAIR = ROOT / "dataset/category/robot_and_teddy"
PROMPT = "a photo of a olis robot and a hta teddy bear"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "output/demo", help="folder to write")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    parser.add_argument("--resolution", type=int, default=256, help="side of the pictures (px)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    base, lora = args.output / "base", args.output / "lora"
    print(f"1/3 building a random SDXL in {base}")
    tiny_sdxl().save_pretrained(base)

    print(f"2/3 training: accelerate launch train_segmix_lora_sdxl.py, {args.steps} steps")
    train(base, lora, args)

    print("3/3 loading the LoRA into a stock pipeline")
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    plain = sample(pipeline, args.resolution)
    pipeline.load_lora_weights(lora)
    adapted = sample(pipeline, args.resolution)
    sheet = contact_sheet(
        [Image.open(lora / "collages-000000-0.png"), plain, adapted],
        ["collages that it trains on", "base model (random weights)", "the same with the LoRA"],
        columns=3,
        tile=640,
    )
    path = write_image(args.output / "sheet.png", sheet)
    print(f"the LoRA:  {lora / WEIGHTS_NAME}\nthe sheet: {path}")


def train(base: Path, output_dir: Path, args: argparse.Namespace) -> None:
    """Run the training script as a user would."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
    flags = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": PAIR,
        "output_dir": output_dir,
        "resolution": args.resolution,
        "max_train_steps": args.steps,
        "validation_prompt": PROMPT,
        "num_validation_inference_steps": 5,
        "num_validation_images": 1,
        "train_batch_size": 1,
        "lr_warmup_steps": 0,
        "learning_rate": 1e-3,
        "rank": 4,
        "seed": 42,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run([*launch, str(ROOT / "train_segmix_lora_sdxl.py"), *words], check=True)


def sample(pipeline: StableDiffusionXLPipeline, resolution: int) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        PROMPT,
        height=resolution,
        width=resolution,
        num_inference_steps=10,
        generator=generator,
    ).images[0]


if __name__ == "__main__":
    main(parse_args())
