"""Load a run's files into an SDXL or FLUX pipeline of whatever diffusers is installed.

    python tests/by_hand/old_diffusers.py BASE FILE [FILE ...]

Prints versions and, for each file, how many layers of each part it adapts and how far the picture
moves: two files of one LoRA must say the same. Needs diffusers, transformers and peft alone.
"""

import argparse

import diffusers
import peft
import torch
import transformers
from diffusers import DiffusionPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, "
          f"peft {peft.__version__}")  # fmt: skip
    plain, _ = picture(args.base)
    for file in args.files:
        made, layers = picture(args.base, file)
        moved = made - plain
        print(f"{file}: layers {layers}; the picture moves by {abs(moved).max():.6f} at most, "
              f"{abs(moved).mean():.6f} on average")  # fmt: skip


def picture(base: str, file: str | None = None):
    """Return a picture (H, W, 3) in [0, 1] and the number of adapted layers of each part."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    if file:
        folder, _, name = file.rpartition("/")
        pipeline.load_lora_weights(folder, weight_name=name)
    layers = {}
    for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        model = getattr(pipeline, part, None)
        if model is not None:
            layers[part] = sum(name.endswith("lora_A") for name, _ in model.named_modules())
    images = pipeline(
        "a robot", height=64, width=64, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    return images[0], layers


if __name__ == "__main__":
    main()
