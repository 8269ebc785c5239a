"""What only a base model's files tell of the flags: its kind, and --lora_targets' layers."""

from typing import Any

from diffusers import DiffusionPipeline

from mudi import lora
from mudi.backbones import parts
from mudi.backbones.table import Backbone
from mudi.ground.errors import SetupError, loading
from mudi.ground.lora_families import family_of
from mudi.ground.lora_names import kohya_layers
from mudi.training.args import TrainingArgs


def base_complaints(args: TrainingArgs, backbone: Backbone) -> list[str]:
    """Complain about models of another kind and about targets that are not there.

    Raises:
        SetupError: a model can't be reached.
    """
    complaints = []
    for flag in ("pretrained_model_name_or_path", "validation_model"):
        name = getattr(args, flag)
        if name and (kind := _kind(f"--{flag}", name, _hub(args, flag))) != backbone.pipeline:
            complaints.append(f"--{flag} {name}: a {kind}; this script trains {backbone.pipeline}s")
    return complaints or target_complaints(args, backbone)


def _hub(args: TrainingArgs, flag: str) -> dict[str, Any]:
    of_base = flag == "pretrained_model_name_or_path"
    return {"revision": args.revision if of_base else None, "cache_dir": args.cache_dir}


def _kind(flag: str, name: str, hub: dict[str, Any]) -> str:
    with loading(flag, name):
        return DiffusionPipeline.load_config(name, **hub)["_class_name"]


def target_complaints(args: TrainingArgs, backbone: Backbone) -> list[str]:
    """Complain about --lora_targets that stand for no layer, or that kohya has no name for."""
    if args.lora_targets is None:
        return []
    hub = _hub(args, "pretrained_model_name_or_path")
    with loading("--pretrained_model_name_or_path", args.base):
        network = parts.skeleton(args.base, backbone.denoiser, **hub)
    try:
        layers = lora.adapted_layers(network, args.lora_targets)
    except SetupError as error:
        return [f"--lora_targets: {error}"]
    if not args.output_kohya_format:
        return []
    family = family_of(pipeline=backbone.pipeline)
    original = lora.has_original_names({backbone.denoiser: network})
    try:
        kohya_layers(backbone.denoiser, layers, original, family)
    except ValueError as error:
        return [f"--lora_targets: {error}; leave it out or pass --no-output_kohya_format"]
    return []
