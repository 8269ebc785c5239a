"""Whole diffusers pipelines for making pictures, as flags describe them."""

import argparse
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from mudi.checks import MODEL_INDEX, SetupError, model_folder_complaints, told_in_one_line

BASE_FLAG, VAE_FLAG = "--pretrained_model_name_or_path", "--pretrained_vae_model_name_or_path"
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ON_GPU = {"StableDiffusionXLPipeline": torch.float16, "FluxPipeline": torch.bfloat16}


def add_pipeline_flags(parser: argparse.ArgumentParser, base: str | None) -> None:
    """Add the flags that `load_pipeline` reads; `base` is the script's default."""
    group = parser.add_argument_group("model")
    group.add_argument(BASE_FLAG, default=base, required=base is None, help="folder or hub id")
    group.add_argument(VAE_FLAG, help="another VAE, as one that is safe in half precision")
    group.add_argument("--revision", help="git revision of the model on the hub")
    group.add_argument("--variant", help='weight files to load, e.g. "fp16"')
    group.add_argument("--cache_dir", help="where downloads from the hub are kept")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="unset: fp32 on a CPU, else fp16 for SDXL and bf16 for FLUX",
    )
    group.add_argument(
        "--cpu_offload", action="store_true", help="keep on the GPU only the part that is at work"
    )


def pipeline_complaints(args: argparse.Namespace) -> list[str]:
    """Say what is wrong with the flags that can be seen without loading anything."""
    found = model_folder_complaints(BASE_FLAG, args.pretrained_model_name_or_path, MODEL_INDEX)
    if args.pretrained_vae_model_name_or_path:
        vae = args.pretrained_vae_model_name_or_path
        found += model_folder_complaints(VAE_FLAG, vae, "config.json")
    if args.cpu_offload and not torch.cuda.is_available():
        found.append("--cpu_offload needs a CUDA GPU; leave it out here")
    return found


def load_pipeline(args: argparse.Namespace, device: torch.device) -> DiffusionPipeline:
    """Load an SDXL or FLUX pipeline, whichever the folder is.

    Raises:
        SetupError: it can't be loaded, or is of another kind.
    """
    base, vae = args.pretrained_model_name_or_path, args.pretrained_vae_model_name_or_path
    hub = {"revision": args.revision, "cache_dir": args.cache_dir}
    with told_in_one_line(BASE_FLAG, base):
        kind = DiffusionPipeline.load_config(base, **hub)["_class_name"]
    if kind not in ON_GPU:
        raise SetupError(f"{BASE_FLAG} {base}: a {kind}; {' and '.join(ON_GPU)} are known here")
    dtype = torch.float32 if device.type == "cpu" else ON_GPU[kind]
    if args.dtype:
        dtype = DTYPES[args.dtype]

    parts: dict[str, Any] = {}
    if vae:
        with told_in_one_line(VAE_FLAG, vae):
            parts["vae"] = AutoencoderKL.from_pretrained(vae, dtype=dtype, cache_dir=args.cache_dir)
    with told_in_one_line(BASE_FLAG, base):
        pipeline = DiffusionPipeline.from_pretrained(
            base, dtype=dtype, variant=args.variant, **hub, **parts
        )
    pipeline.set_progress_bar_config(disable=True)
    if args.cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)
