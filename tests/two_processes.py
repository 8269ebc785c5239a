"""Started by `accelerate launch` in test_launch.py: trains, and tells what this process saw."""

import importlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from torch import distributed

from mudi import denoising
from mudi.training import runtime


def main(name: str, folder: Path, words: list[str]) -> None:
    script = importlib.import_module(name)
    seen: dict = {"noise": [], "draws": [], "backend": None}
    errors, train = denoising.denoising_errors, script.train

    def note_errors(denoiser, task):
        seen["noise"].append(task.corrupted.network_input.sum().item())
        return errors(denoiser, task)

    def note_train(args, accelerator, models, dataset, plan: runtime.Plan):
        seen["draws"] = [draw for draws in plan.draws(0) for draw in draws]
        if distributed.is_initialized():
            seen["backend"] = distributed.get_backend()
        train(args, accelerator, models, dataset, plan)
        lora = [p.double().sum().item() for p in models.denoiser.parameters() if p.requires_grad]
        seen["lora"] = lora
        whole = replace(plan.schedule, process=0, num_processes=1)
        doubled = replace(whole, last_step=2 * whole.last_step)  # both processes' share
        alone = [draw[0] for draw in doubled]
        (folder / "alone.json").write_text(json.dumps({"draws": [d.seed for d in alone]}))

    denoising.denoising_errors = note_errors
    script.train = note_train
    script.main(script.parse_args(words))
    seen["draws"] = [draw.seed for draw in seen["draws"]]
    rank = PartialState().process_index if PartialState._shared_state else os.environ["RANK"]
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
