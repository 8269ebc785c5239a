"""Whole diffusers pipelines for making pictures, as flags describe them."""

from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from mudi.backbones.parts import heed_bars
from mudi.backbones.table import Backbone, backbone_of
from mudi.ground.devices import on_gpu
from mudi.ground.errors import SetupError, loading
from mudi.ground.flags import DTYPES, MODEL_INDEX, model_folder_complaints, text_complaints
from mudi.pictures.args import PipelineArgs

BASE_FLAG, VAE_FLAG = "--pretrained_model_name_or_path", "--pretrained_vae_model_name_or_path"


def pipeline_complaints(args: PipelineArgs) -> list[str]:
    """Say what is wrong with the flags that can be seen without loading anything."""
    complaints = text_complaints(args)
    complaints += model_folder_complaints(
        BASE_FLAG, args.pretrained_model_name_or_path, MODEL_INDEX
    )
    if args.pretrained_vae_model_name_or_path:
        vae = args.pretrained_vae_model_name_or_path
        complaints += model_folder_complaints(VAE_FLAG, vae, "config.json")
    if args.cpu_offload and not on_gpu():
        complaints.append("--cpu_offload needs a CUDA GPU; leave it out here")
    return complaints


def pipeline_settings(args: PipelineArgs) -> dict[str, Any]:
    """Return what `load_pipeline` takes, from the flags."""
    return {
        "base": args.pretrained_model_name_or_path,
        "vae": args.pretrained_vae_model_name_or_path,
        "dtype": args.dtype and getattr(torch, DTYPES[args.dtype]),
        "revision": args.revision,
        "variant": args.variant,
        "cache_dir": args.cache_dir,
    }


def pipeline_backbone(
    base: str, revision: str | None = None, cache_dir: str | None = None
) -> Backbone:
    """Return the backbone that a folder or hub id is of; loads no weights.

    Raises:
        SetupError: it can't be reached, or is of another kind.
    """
    with loading(BASE_FLAG, base):
        config = _config(base, revision, cache_dir)
    try:
        return backbone_of(config["_class_name"])
    except SetupError as error:
        raise SetupError(f"{BASE_FLAG} {base}: {error}") from error


def base_scheduler(base: str, revision: str | None = None, cache_dir: str | None = None) -> Any:
    """Return the scheduler of a folder or hub id; loads no weights.

    Raises:
        SetupError: it can't be loaded.
    """
    hub = {"revision": revision, "cache_dir": cache_dir}
    with loading(BASE_FLAG, base):
        _, name = _config(base, **hub)["scheduler"]
        return getattr(diffusers, name).from_pretrained(base, subfolder="scheduler", **hub)


def _config(base: str, revision: str | None, cache_dir: str | None) -> dict[str, Any]:
    return DiffusionPipeline.load_config(base, revision=revision, cache_dir=cache_dir)


def default_dtype(backbone: Backbone, device: torch.device) -> torch.dtype:
    """Return the precision in which weights run where no flag says it."""
    return torch.float32 if device.type == "cpu" else getattr(torch, DTYPES[backbone.precision])


def load_pipeline(
    base: str,
    vae: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
) -> DiffusionPipeline:
    """Load a backbone's pipeline into host memory; see `place`.

    Args:
        base: folder or hub id.
        vae: another VAE than the base's own.
        device: where it is going to run.
        dtype: None: float32 on a CPU, else the backbone's.

    Raises:
        SetupError: it can't be loaded.
    """
    backbone = pipeline_backbone(base, revision, cache_dir)
    if dtype is None:
        dtype = default_dtype(backbone, torch.device(device))
    parts: dict[str, Any] = {}
    if vae:
        with loading(VAE_FLAG, vae):
            kind = getattr(diffusers, _config(base, revision, cache_dir)["vae"][1])
            parts["vae"] = kind.from_pretrained(vae, dtype=dtype, cache_dir=cache_dir)
    hub = {"revision": revision, "variant": variant, "cache_dir": cache_dir}
    heed_bars()
    with loading(BASE_FLAG, base):
        pipeline = DiffusionPipeline.from_pretrained(base, dtype=dtype, **hub, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def place(
    pipeline: DiffusionPipeline, device: str | torch.device, cpu_offload: bool = False
) -> None:
    """Put a pipeline on a device: as a whole, or at any time only the part that is at work."""
    if cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
