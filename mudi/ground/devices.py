"""Which device a process works on: the one that accelerate takes."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def accelerate_device() -> torch.device:
    """Return the device that accelerate has taken in this process, or will take; starts nothing.

    A GPU may stand in the machine and yet not be meant: `accelerate launch --cpu`, or
    ACCELERATE_USE_CPU.
    """
    if PartialState._shared_state:
        return PartialState().device
    if name := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        return torch.device(name)
    meant = not cpu_is_meant() and torch.cuda.is_available()
    return torch.device("cuda" if meant else "cpu")


def cpu_is_meant() -> bool:
    """Say whether accelerate is to take the CPU: it was told to, or the machine has nothing else.

    It must be told in either case: where no GPU is found, it takes the CPU by itself, but then
    each process of a launch thinks that it is alone.
    """
    has_other = torch.cuda.is_available() or torch.accelerator.is_available()
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not has_other


def on_gpu() -> bool:
    """Say whether this process works on a CUDA GPU."""
    return accelerate_device().type == "cuda"
