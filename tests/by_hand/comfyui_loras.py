"""Load write_loras.py's files as ComfyUI loads them, and compare each change of a weight with B A.

    python tests/by_hand/comfyui_loras.py COMFYUI DIR

COMFYUI is a checkout, and Python one that has its requirements. The networks are ComfyUI's own, on
the meta device. It prints a line a file: layers changed, keys left over, the largest error.
"""

import argparse
import logging
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SDXL_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "use_spatial_transformer": True,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
    "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential",
    "num_head_channels": 64, "num_heads": -1, "legacy": False, "use_temporal_attention": False,
    "use_temporal_resblock": False, "dtype": torch.float32,
}  # fmt: skip
FLUX_TRANSFORMER = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [], "dtype": torch.float32,
}  # fmt: skip

ZIMAGE_TRANSFORMER = {  # as ComfyUI's model_detection fills it in at width 3840
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "n_layers": 30,
    "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "qk_norm": True,
    "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32, "dtype": torch.float32,
}  # fmt: skip


def networks(family: str) -> tuple[Any, Any]:
    """Return ComfyUI's denoiser and its text encoders, without weights; None: not adapted."""
    from comfy import sdxl_clip, supported_models
    from comfy.text_encoders import flux

    if family == "sdxl":
        model = supported_models.SDXL(SDXL_UNET).get_model({}, device="meta")
        return model, sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float32)
    if family == "zimage":
        return supported_models.ZImage(ZIMAGE_TRANSFORMER).get_model({}, device="meta"), None
    model = supported_models.Flux(FLUX_TRANSFORMER).get_model({}, device="meta")
    clip = flux.FluxClipModel(device="meta", dtype=torch.float32, dtype_t5=torch.float32)
    return model, clip


def wanted_changes(family: str, truth: dict[str, torch.Tensor], config: dict) -> dict:
    """Return {ComfyUI's weight: [(rows before it, B A), ...]} by ComfyUI's own table of names."""
    import comfy.utils

    if family == "sdxl":
        table = {k: (v, 0) for k, v in comfy.utils.unet_to_diffusers(config).items()}
    else:
        to_diffusers = {
            "flux": comfy.utils.flux_to_diffusers,
            "zimage": comfy.utils.z_image_to_diffusers,
        }
        table = {}
        for k, v in to_diffusers[family](config).items():
            target, offset = (v, None) if isinstance(v, str) else v[:2]
            table[k] = target, offset[1] if offset else 0
    changes: dict[str, list] = defaultdict(list)
    for key in truth:
        for down, up in (("lora.down", "lora.up"), ("lora_A", "lora_B"),
                         ("lora_linear_layer.down", "lora_linear_layer.up")):  # fmt: skip
            if not key.endswith(f".{down}.weight"):
                continue
            part, _, layer = key.removesuffix(f".{down}.weight").partition(".")
            product = truth[key.replace(f".{down}.", f".{up}.")], truth[key]
            if part in ("unet", "transformer"):
                name, first = table[f"{layer}.weight"]
                changes[f"diffusion_model.{name}"].append((first, *product))
            else:
                clip = "clip_l" if part == "text_encoder" else "clip_g"
                changes[f"{clip}.transformer.{layer}.weight"].append((0, *product))
    return changes


def try_file(file: Path, family: str, truth: dict[str, torch.Tensor]) -> None:
    import comfy.lora
    import comfy.lora_convert

    model, clip = networks(family)
    keys = comfy.lora.model_lora_keys_unet(model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip, keys)
    left: list[str] = []
    logging.getLogger().addFilter(lambda record: left.append(record.getMessage()) or False)
    given = comfy.lora_convert.convert_lora(load_file(file))
    patches = comfy.lora.load_lora(given, keys)
    logging.getLogger().filters.clear()
    shapes = {
        k: v.shape for network in (model, clip) if network for k, v in network.state_dict().items()
    }
    by_weight: dict[str, list] = defaultdict(list)
    for target, patch in patches.items():
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        by_weight[key].append((1.0, patch, 1.0, offset, None))
    changes = wanted_changes(family, truth, model.model_config.unet_config)
    worst = 0.0
    for key, listed in by_weight.items():
        zero = torch.zeros(shapes[key])
        made = comfy.lora.calculate_weight(listed, zero, key)
        for first, up, down in changes[key]:
            made[first : first + len(up)] -= up @ down
        scale = max(float((up @ down).abs().max()) for _, up, down in changes[key])
        worst = max(worst, float(made.abs().max()) / scale)
    lost = len(changes.keys() - by_weight.keys())
    unread = sum("not loaded" in line.lower() for line in left)
    print(
        f"{file.name}: {len(given)} keys, {unread} not consumed; {len(by_weight)} weights changed, "
        f"{lost} not; largest error {worst:.1e} of the largest change",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(args.comfyui))
    from comfy.cli_args import args as settings

    settings.cpu = True
    for family, names in (
        ("sdxl", ("sdxl", "sdxl_text")),
        ("flux", ("flux", "flux_text")),
        ("zimage", ("zimage",)),
    ):
        for name in names:
            truth = load_file(args.folder / f"{name}_diffusers.safetensors")
            for naming in ("kohya", "diffusers"):
                try_file(args.folder / f"{name}_{naming}.safetensors", family, truth)


if __name__ == "__main__":
    main()
