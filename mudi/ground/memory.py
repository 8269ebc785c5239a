"""How much memory tensors take, counted as they come and go; also of tensors without any data."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes; CUDA's allocator rounds up to these

# What autocast computes in float32 on CUDA and not on a CPU, as far as the networks here use it
# (PyTorch, "Automatic Mixed Precision", the lists of ops).
_FLOAT32_ON_CUDA = ("layer_norm", "group_norm", "softmax.int", "pow.Tensor_Scalar", "rsqrt", "exp")


class StorageMeter(TorchDispatchMode):
    """Counts the bytes of all storages made while it is on, and forgets those that are freed.

    What a kernel takes and gives back within itself is not seen.

    Attributes:
        now: bytes that live.
        peak: the most that lived since `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def reset_peak(self) -> int:
        """Return the peak and start a new one."""
        before, self.peak = self.peak, self.now
        return before

    def count(self, tensor: Tensor) -> None:
        """Count the storage of a tensor that was made while the meter was off; once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._known[key] = weakref.finalize(storage, self._forget, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and not value.is_meta:
                self.count(value)
        return result


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Let a CPU's autocast choose precisions inside as CUDA's does."""
    library = torch.library.Library("aten", "IMPL")
    for name in _FLOAT32_ON_CUDA:
        packet, overload = (*name.split("."), "default")[:2]
        library.impl(
            name, _in_float32(getattr(getattr(torch.ops.aten, packet), overload)), "AutocastCPU"
        )
    try:
        yield
    finally:
        library._destroy()


def _in_float32(operator: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            kwargs = {key: _float32(value) for key, value in kwargs.items()}
            return operator(*map(_float32, args), **kwargs)

    return run


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Make tensors inside that have shapes and no data; real ones are taken as such, too."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # a remembered tensor has a weak reference, and one that has can't be swapped by Module.to
    mode.fake_tensor_converter.set_tensor_memo = lambda t, v: None  # type: ignore
    with mode:
        yield mode
