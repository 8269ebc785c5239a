"""Resumable states: `checkpoint-<step>/` folders, complete or absent.

Knows no torch; what is inside is written by `accelerate` and `mudi.lora` (see .runtime).
"""

import json
import re
from pathlib import Path
from typing import Any

STATE_NAME = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest step first."""
    found = [p for p in output_dir.glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps done, from the folder's name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint}: a checkpoint folder is named checkpoint-<step>")
    return int(match.group(1))


def resolve_resume(output_dir: Path, wish: str) -> Path | None:
    """Return the checkpoint that --resume_from_checkpoint means; None: "latest" and none there.

    A wish other than "latest" is a path, or the name of a folder in output_dir.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if wish == "latest":
        found = checkpoints(output_dir)
        return found[-1] if found else None
    for path in (Path(wish), output_dir / wish):
        if (path / STATE_NAME).is_file():
            step_of(path.resolve())
            return path.resolve()
    there = ", ".join(p.name for p in checkpoints(output_dir)) or "none"
    raise ValueError(f"{wish}: no such checkpoint; {output_dir} has {there}")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what the run that wrote the checkpoint said of itself."""
    return json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
