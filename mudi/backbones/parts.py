"""Load a base model's networks, frozen; or build them by their configurations, without weights."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub.utils import are_progress_bars_disabled
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from mudi.backbones import quantization
from mudi.ground.flags import MODEL_INDEX

_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Let the loaders read `config.json` files only; meant for tensors without data."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def heed_bars() -> None:
    """Have diffusers' loading show no bar where HF_HUB_DISABLE_PROGRESS_BARS asks for none.

    The hub and transformers heed that variable themselves.
    """
    if are_progress_bars_disabled():
        diffusers.utils.logging.disable_progress_bar()


def only_shapes() -> bool:
    """Say whether loaders read configurations only; see `shapes_only`."""
    return _shapes_only.get()


def load_part(
    kind: Any,
    base: str,
    subfolder: str | None,
    dtype: torch.dtype,
    quantize: str = "none",
    **hub: Any,
) -> Any:
    """Load a diffusers model, frozen.

    Args:
        kind: its class.
        base: folder or hub id.
        quantize: "none", "nf4" or "int8", for linear layers.
        hub: revision, variant, cache_dir.

    Raises:
        OSError: there is no such model, or it can't be reached.
    """
    if _shapes_only.get():
        config = kind.load_config(base, subfolder=subfolder)
        model = _built(lambda: kind.from_config(config), dtype)
        model = quantization.formula(model, quantize).to_empty(device="cpu")
    else:
        config = quantization.config(quantize, dtype)
        model = kind.from_pretrained(
            base, subfolder=subfolder, dtype=dtype, quantization_config=config, **hub
        )
    if quantize != "none":
        quantization.follow_autocast(model)
    return model.requires_grad_(False)


def load_text_pipeline(
    kind: Any, base: str, dtype: torch.dtype, without: tuple[str, ...], **hub: Any
) -> Any:
    """Load a pipeline but for the parts named: tokenizers, text encoders, the sampler's scheduler.

    Raises:
        OSError: there is no such model, or it can't be reached.
    """
    parts: dict[str, Any] = dict.fromkeys(without)
    if _shapes_only.get():
        index = json.loads((Path(base) / MODEL_INDEX).read_text(encoding="utf-8"))
        parts["scheduler"] = load_scheduler(getattr(diffusers, index["scheduler"][1]), base)
        for name in index:
            if name.startswith("text_encoder") and name not in without:
                encoder: Any = getattr(transformers, index[name][1])
                config = encoder.config_class.from_pretrained(base, subfolder=name)
                with torch.device("meta"):
                    model = encoder._from_config(config, dtype=dtype)
                parts[name] = model.to_empty(device="cpu").eval()
    heed_bars()
    return kind.from_pretrained(base, dtype=dtype, **parts, **hub)


def complete(text: Any, **networks: Any) -> Any:
    """Return a pipeline of the same kind and settings as another, with these networks in it."""
    settings = {
        name: text.config[name]
        for name in signature(type(text).__init__).parameters
        if name in text.config and name not in text.components
    }
    return type(text)(**{**text.components, **networks}, **settings)


def skeleton(base: str, subfolder: str, **hub: Any) -> nn.Module:
    """Build a base's network by its configuration, on the meta device, without weights.

    Raises:
        OSError: there is no such model, or it can't be reached.
    """
    kind = getattr(diffusers, DiffusionPipeline.load_config(base, **hub)[subfolder][1])
    config = kind.load_config(base, subfolder=subfolder, **hub)
    return _built(lambda: kind.from_config(config), torch.float32)


def load_scheduler(kind: Any, base: str, **hub: Any) -> Any:
    """Load a pipeline's scheduler; its few numbers are real even where nothing else is.

    Raises:
        OSError: there is no such model, or it can't be reached.
    """
    with unset_fake_temporarily():
        return kind.from_pretrained(base, subfolder="scheduler", **hub)


def _built(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Build a network in a precision, on the meta device: it costs nothing, not even in count."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            return build()
    finally:
        torch.set_default_dtype(before)
