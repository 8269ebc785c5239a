"""What is trained, and its checkpoint: safetensors and JSON, no pickles."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from mudi.ground.errors import SetupError
from mudi.ground.files import write_text

TENSORS, NUMBERS = "state.safetensors", "state.json"
MODEL, MEANS, OPTIMIZER, RANDOM = "model", "means", "optimizer", "random"


@dataclass(frozen=True)
class Learner:
    """A model, what optimizes it, and its parameters' running means."""

    model: Any
    optimizers: tuple[torch.optim.Optimizer, ...]
    ema: EMAModel


def save_learner(learner: Learner, folder: Path) -> None:
    """Write the learner and the CPU's random state to an existing folder."""
    tensors = {RANDOM: torch.get_rng_state()}
    tensors |= {f"{MODEL}.{name}": t for name, t in learner.model.state_dict().items()}
    tensors |= {f"{MEANS}.{i}": t for i, t in enumerate(learner.ema.shadow_params)}
    for i, optimizer in enumerate(learner.optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{OPTIMIZER}.{i}.{number}.{name}": t for name, t in state.items()}
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / TENSORS)
    write_text(folder / NUMBERS, json.dumps({"steps_of_means": learner.ema.optimization_step}))


def load_learner(learner: Learner, folder: Path) -> None:
    """Continue from what `save_learner` wrote.

    Raises:
        SetupError: the folder is no such checkpoint.
    """
    if not (folder / TENSORS).is_file():
        raise SetupError(f"{folder}: no {TENSORS}; delete this folder, or name another --state_dir")
    tensors = load_file(folder / TENSORS)
    torch.set_rng_state(tensors[RANDOM])
    learner.model.load_state_dict(_part(tensors, MODEL))
    for i, mean in enumerate(learner.ema.shadow_params):
        mean.copy_(tensors[f"{MEANS}.{i}"])
    steps = json.loads((folder / NUMBERS).read_text())
    learner.ema.optimization_step = steps["steps_of_means"]
    for i, optimizer in enumerate(learner.optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _part(tensors, f"{OPTIMIZER}.{i}").items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]  # of this session's flags
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix, by the rest of their names."""
    start = f"{prefix}."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
