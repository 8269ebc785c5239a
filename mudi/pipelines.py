"""Whole diffusers pipelines for making pictures, as flags describe them."""

import argparse
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from mudi.checks import MODEL_INDEX, SetupError, model_folder_complaints, told_in_one_line

BASE_FLAG, VAE_FLAG = "--pretrained_model_name_or_path", "--pretrained_vae_model_name_or_path"
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KINDS = {"StableDiffusionXLPipeline": "sdxl", "FluxPipeline": "flux"}
ON_GPU = {"sdxl": torch.float16, "flux": torch.bfloat16}


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


def pipeline_kind(args: argparse.Namespace) -> str:
    """Return "sdxl" or "flux", whichever --pretrained_model_name_or_path is; loads no weights.

    Raises:
        SetupError: it can't be reached, or is of another kind.
    """
    base = args.pretrained_model_name_or_path
    with told_in_one_line(BASE_FLAG, base):
        config = DiffusionPipeline.load_config(
            base, revision=args.revision, cache_dir=args.cache_dir
        )
    name = config["_class_name"]
    if name not in KINDS:
        raise SetupError(f"{BASE_FLAG} {base}: a {name}; {' and '.join(KINDS)} are known here")
    return KINDS[name]


def load_pipeline(args: argparse.Namespace, kind: str, device: torch.device) -> DiffusionPipeline:
    """Load a pipeline as `add_pipeline_flags` describes it; `place` it before it is used.

    Args:
        kind: see `pipeline_kind`.

    Raises:
        SetupError: it can't be loaded.
    """
    dtype = torch.float32 if device.type == "cpu" else ON_GPU[kind]
    if args.dtype:
        dtype = DTYPES[args.dtype]
    parts: dict[str, Any] = {}
    vae = args.pretrained_vae_model_name_or_path
    if vae:
        with told_in_one_line(VAE_FLAG, vae):
            parts["vae"] = AutoencoderKL.from_pretrained(vae, dtype=dtype, cache_dir=args.cache_dir)
    base = args.pretrained_model_name_or_path
    with told_in_one_line(BASE_FLAG, base):
        pipeline = DiffusionPipeline.from_pretrained(
            base,
            dtype=dtype,
            revision=args.revision,
            variant=args.variant,
            cache_dir=args.cache_dir,
            **parts,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def place(pipeline: DiffusionPipeline, args: argparse.Namespace, device: torch.device) -> None:
    """Put a pipeline on a device, as a whole or with --cpu_offload the part that is at work."""
    if args.cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
