"""Runs the training script in a process of its own, apart from a launch's other processes."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

import train_segmix_lora_sdxl
from experiments.interventions import collages_of

# What makes a process one of a launch: a training in it would train with all the others
LAUNCH_VARIABLES = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT"
).split()


def training_process(device: torch.device, log: Path) -> ProcessPoolExecutor:
    """Return a process that starts with its first training and stays for the next ones.

    Importing the libraries takes longer than training a small LoRA, so not one process for each. It
    ends with the process that asked for it, also if that is killed.

    Args:
        device: what it trains on.
        log: file that takes what the trainings print.
    """
    settings = (device.type, device.index, log)
    return ProcessPoolExecutor(1, get_context("spawn"), _leave_launch, settings)


def train(words: list[str], collages: str | None = None) -> None:
    """Run the training script with a command line; see `interventions.collages_of`."""
    with collages_of(collages):
        train_segmix_lora_sdxl.main(train_segmix_lora_sdxl.parse_args(words))


def run_stage(words: Sequence[str]) -> None:
    """Run a script's path, or -m and a module, with its flags, as a launch of its own would."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    name, flags = (words[1], words[2:]) if words[0] == "-m" else (Path(words[0]).stem, words[1:])
    script = import_module(name)
    script.main(script.parse_args(list(flags)))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _leave_launch(kind: str, index: int | None, log: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in LAUNCH_VARIABLES:
        os.environ.pop(name, None)
    os.environ["ACCELERATE_USE_CPU"] = str(kind == "cpu")
    if kind == "cuda" and index is not None:
        torch.cuda.set_device(index)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
