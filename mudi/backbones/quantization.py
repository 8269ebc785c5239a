"""A frozen base in fewer bits, by diffusers' own quantization configs; and its size by formula."""

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mudi.ground.devices import on_gpu

BITS = {"nf4": 4, "int8": 8}
NF4_BLOCK = 64  # weights that share one float32 scale (bitsandbytes' default)
_PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}


def complaints(kind: str) -> list[str]:
    """Say why a kind of quantization can't be had on this machine, one line each."""
    package = _PACKAGES.get(kind)
    if package is None:
        return []
    complaints = []
    if find_spec(package) is None:
        complaints.append(f'--quantize_base {kind}: not installed; pip install -e ".[quantize]"')
    if kind == "int8" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DDP broadcasts the frozen weights too, which torchao 0.18's tensors do not allow
        complaints.append("--quantize_base int8 runs in one process only; use nf4 for several")
    if kind == "nf4" and not on_gpu():
        complaints.append("--quantize_base nf4 needs a CUDA GPU; int8 runs on the CPU too")
    return complaints


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


def follow_autocast(model: nn.Module) -> nn.Module:
    """Let the linear layers round what they get as autocast does for those of full precision.

    Autocast does not know products with few-bit weights: they answer in their input's precision,
    and what follows would compute in float32.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_round_input)
    return model


def _round_input(_layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = given
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return (x, *rest)


def place(model: Any, device: torch.device) -> None:
    """Move a loaded network to the device; bitsandbytes has put it on the GPU by itself."""
    if model.device.type != device.type:
        model.to(device)


class FewBitLinear(nn.Linear):
    """A linear layer in few bits, for tensors without data: its sizes are right, nothing else.

    The weight is unpacked to the input's precision for each product, forward and backward, and
    given back after it.
    """

    packed: Tensor

    def __init__(self, layer: nn.Linear, kind: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._dtype = layer.weight.dtype
        count = layer.weight.numel()
        scales = layer.out_features if kind == "int8" else -(-count // NF4_BLOCK)
        packed = torch.empty(count * BITS[kind] // 8, dtype=torch.uint8, device="meta")
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.float32, device="meta"))
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, unpacked."""
        shape = (self.out_features, self.in_features)
        return torch.empty(shape, dtype=self._dtype, device=self.packed.device)

    def forward(self, x: Tensor) -> Tensor:
        return _FewBitProduct.apply(x, self.bias, (self.out_features, self.in_features))


class _FewBitProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, shape):
        ctx.shape = shape
        bias = bias if bias is None else bias.to(x.dtype)
        return nn.functional.linear(x, x.new_empty(shape), bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ gradient.new_empty(ctx.shape), None, None


def formula(model: nn.Module, kind: str) -> nn.Module:
    """Put layers of the right size in place of the linear ones; "none" leaves them."""
    if kind != "none":
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                model.set_submodule(name, FewBitLinear(layer, kind))
    return model
