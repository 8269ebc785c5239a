"""Validation images: drawn with the network that trains, or with another that wears its LoRA."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import nn

from mudi import lora
from mudi.backbones import parts, quantization
from mudi.ground.errors import loading
from mudi.training.args import TrainingArgs
from mudi.training.runtime import weight_dtype

Draw = Callable[..., Image.Image]  # (pipeline, seed=...) -> a picture


def make_sample(
    args: TrainingArgs,
    accelerator: Accelerator,
    text: Any,
    trained: dict[str, nn.Module],
    vae: nn.Module,
    targets: Sequence[str],
    load: Callable[..., Any],
    draw: Draw,
) -> tuple[Callable[[int], Image.Image] | None, nn.Module | None]:
    """Return what makes a validation image from a seed, and --validation_model's network.

    That one stays loaded, beside the network that trains, and gets its LoRA before every image.

    Args:
        text: pipeline of the base model without networks, but for text encoders that train.
        trained: the adapted denoiser, by its part's name.
        load: loads a denoiser, as the backbone's file has it.

    Raises:
        SetupError: the model can't be loaded, or has other layers.
    """
    if not args.validation_prompt:
        return None, None
    [(part, network)] = trained.items()
    if not args.validation_model:
        own = parts.complete(text, **{part: network, "vae": vae})
        return partial(_draw, own, draw), None
    dtype, hub = weight_dtype(accelerator), {"cache_dir": args.cache_dir}
    with loading("--validation_model", args.validation_model):
        encoders = [name for name in text.components if name.startswith("text_encoder")]
        settings = parts.load_text_pipeline(
            type(text), args.validation_model, dtype, (part, "vae", *encoders), **hub
        )
        other = load(args.validation_model, dtype, args.quantize_base, **hub)
    quantization.place(other, accelerator.device)
    lora.add_lora(other, args.rank, list(targets), args.use_dora)
    other.requires_grad_(False)
    whole = parts.complete(settings, **{part: other, "vae": vae})

    refresh = partial(lora.copy_lora, network, other)
    return partial(_draw, whole, draw, refresh=refresh), other


def _draw(
    pipeline: Any, draw: Draw, seed: int, refresh: Callable[[], None] | None = None
) -> Image.Image:
    if refresh is not None:
        refresh()
    return draw(pipeline, seed=seed)
