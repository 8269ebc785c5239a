"""Load LoRA files by whatever diffusers is installed, and tell what they do.

    python tests/by_hand/old_diffusers.py BASE FILE [FILE ...]
    python tests/by_hand/old_diffusers.py --full DIR

The first loads a run's files into a (tiny) SDXL or FLUX pipeline and prints, for each file, how
many layers of each part it adapts, how far the text encoders' output moves, and how far the
picture does, whose prompt's embeddings are random: two files of one LoRA must say the same. The
second converts write_loras.py's FLUX files, whose sizes diffusers knows by heart, and compares
every layer's B A. Needs diffusers, transformers and peft alone.
"""

import argparse
from pathlib import Path

import diffusers
import peft
import torch
import transformers
from diffusers import DiffusionPipeline, FluxPipeline

SUFFIXES = (
    (".lora_A.", ".lora_B."),
    (".lora_linear_layer.down.", ".lora_linear_layer.up."),
    (".lora.down.", ".lora.up."),
)
OLD_NAMES = {f".to_{x}_lora.": f".{x}_proj.lora_linear_layer." for x in ("q", "k", "v", "out")}
TOKENS = torch.arange(2, 22)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", type=Path)
    parser.add_argument("paths", nargs="*")
    args = parser.parse_args()
    versions = ", ".join(f"{m.__name__} {m.__version__}" for m in (diffusers, transformers, peft))
    print(versions)
    if args.full:
        for name in ("flux", "flux_text"):
            compare(args.full, name)
        return
    base, *files = args.paths
    plain = effects(base)
    for file in files:
        made = effects(base, file)
        moved = {
            key: f"{abs(made[key] - plain[key]).max():.6f}" for key in plain if key != "layers"
        }
        print(f"{file}: layers {made['layers']}; moves {moved}")


def effects(base: str, file: str | None = None) -> dict:
    """Return adapted layers by part, each text encoder's output, and a picture."""
    pipeline = DiffusionPipeline.from_pretrained(base, tokenizer=None, tokenizer_2=None)
    pipeline.set_progress_bar_config(disable=True)
    if file:
        folder, _, name = file.rpartition("/")
        pipeline.load_lora_weights(folder, weight_name=name)
    found: dict = {"layers": {}}
    for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        model = getattr(pipeline, part, None)
        if model is None:
            continue
        count = sum(name.endswith("lora_A") for name, _ in model.named_modules())
        found["layers"][part] = count
        if "text" in part:
            with torch.no_grad():
                found[part] = model(TOKENS)[0]
    random = torch.Generator().manual_seed(0)
    if hasattr(pipeline, "unet"):
        width = pipeline.unet.config.cross_attention_dim
        pooled = pipeline.text_encoder_2.config.projection_dim
    else:
        width = pipeline.transformer.config.joint_attention_dim
        pooled = pipeline.transformer.config.pooled_projection_dim
    embeds = {
        "prompt_embeds": torch.randn(1, 20, width, generator=random),
        "pooled_prompt_embeds": torch.randn(1, pooled, generator=random),
    }
    if hasattr(pipeline, "unet"):
        embeds |= {f"negative_{key}": torch.zeros_like(value) for key, value in embeds.items()}
    images = pipeline(
        **embeds, height=64, width=64, num_inference_steps=2, output_type="np", generator=random
    ).images
    found["picture"] = torch.from_numpy(images[0])
    return found


def compare(folder: Path, name: str) -> None:
    """Compare what diffusers makes of both files of a full-size FLUX LoRA, layer by layer."""
    ours, kohyas = (
        products(FluxPipeline.lora_state_dict(str(folder / f"{name}_{naming}.safetensors"),
                                              return_alphas=True))
        for naming in ("diffusers", "kohya")
    )  # fmt: skip
    missing = ours.keys() - kohyas.keys()
    scale = max(abs(value).max() for value in ours.values())
    worst = max(abs(ours[key] - kohyas[key]).max() / scale for key in ours.keys() & kohyas.keys())
    more = [key for key in kohyas.keys() - ours.keys() if kohyas[key].any()]
    print(
        f"{name}: {len(ours)} layers, {len(missing)} missing in kohya's, {len(more)} more with an "
        f"effect; largest error {worst:.1e} of the largest change"
    )


def products(converted: tuple) -> dict[str, torch.Tensor]:
    """Return a few rows of each layer's B A."""
    state, alphas, *_ = converted
    for old, new in OLD_NAMES.items():  # of text encoders, which diffusers takes as well
        state = {key.replace(old, new): value for key, value in state.items()}
        alphas = {key.replace(old, new): value for key, value in (alphas or {}).items()}
    found = {}
    for down_name, up_name in SUFFIXES:
        for key in state:
            if down_name in key:
                layer = key.partition(down_name)[0]
                down, up = state[key].float(), state[key.replace(down_name, up_name)].float()
                alpha = float(alphas.get(f"{layer}.alpha", len(down)))
                found[layer] = up[:64] @ down * (alpha / len(down))
    return found


if __name__ == "__main__":
    main()
