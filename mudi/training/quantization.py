"""A frozen base in fewer bits, by diffusers' own quantization configs."""

import os
from importlib.util import find_spec
from typing import Any

import torch

from mudi.ground.devices import on_gpu

KINDS = ("none", "nf4", "int8")
_PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def complaints(kind: str) -> list[str]:
    """Say why a kind of quantization can't be had on this machine, one line each."""
    package = _PACKAGES.get(kind)
    if package is None:
        return []
    found = []
    if find_spec(package) is None:
        found.append(f'--quantize_base {kind}: not installed; pip install -e ".[quantize]"')
    if kind == "int8" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DDP broadcasts the frozen weights too, which torchao 0.18's tensors do not allow
        found.append("--quantize_base int8 runs in one process only; use nf4 for several")
    if kind == "nf4" and not on_gpu():
        found.append("--quantize_base nf4 needs a CUDA GPU; int8 runs on the CPU too")
    return found


def config(kind: str, dtype: torch.dtype) -> Any:
    """Return diffusers' quantization config, None for "none"; dtype is that of the products."""
    if kind == "nf4":
        from diffusers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if kind == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return None
