"""Resumable states: `checkpoint-<step>/` folders, complete or absent, each with its digests.

Knows no torch; what is inside is written and read by .saving.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

STATE_NAME = "state.json"
DIGESTS_NAME = "digests.json"  # SHA-256 of every other file, so that one flipped bit is noticed
_NAME = re.compile(r"checkpoint-(\d+)")
_SAVE = re.compile(r"save-(\d+)")


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


def resolve_resume(output_dir: Path, wish: str, warnings: list[str] | None = None) -> Path | None:
    """Return the checkpoint that --resume_from_checkpoint means; None: "latest" and none there.

    A wish other than "latest" is a path, or the name of a folder in output_dir. "latest" passes
    over damaged checkpoints.

    Args:
        warnings: takes what is wrong with the checkpoints passed over, and with this one.

    Raises:
        ValueError: there is no such checkpoint, or none that is intact.
    """
    warnings = [] if warnings is None else warnings
    found = checkpoints(output_dir)
    if wish == "latest":
        return _newest_intact(found, warnings) if found else None
    for path in (Path(wish), output_dir / wish):
        if path.is_dir() and _NAME.fullmatch(path.resolve().name):
            if why := damage(path):
                raise ValueError(f"{wish}: damaged, {why}; take another, or latest")
            warnings += _unproven(path)
            return path.resolve()
        if (path / STATE_NAME).is_file():
            step_of(path.resolve())
    there = ", ".join(p.name for p in found) or "none"
    raise ValueError(f"{wish}: no such checkpoint; {output_dir} has {there}")


def _newest_intact(found: list[Path], warnings: list[str]) -> Path:
    damaged: list[str] = []
    for path in reversed(found):
        why = damage(path)
        if why is None:
            warnings += [f"{told}; going on from {path.name}" for told in damaged]
            warnings += _unproven(path)
            return path
        damaged.append(f"{path} is damaged, {why}")
    raise ValueError(f"no checkpoint is intact: {'; '.join(damaged)}")


def _unproven(checkpoint: Path) -> list[str]:
    if (checkpoint / DIGESTS_NAME).is_file():
        return []
    return [f"{checkpoint}: of an earlier version, without digests; damage would not be noticed"]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what the run that wrote the checkpoint said of itself."""
    return json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))


def write_digests(folder: Path) -> None:
    """Write DIGESTS_NAME over all else that a folder holds."""
    others = (path for path in folder.rglob("*") if path.name != DIGESTS_NAME)
    files = sorted(path for path in others if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    (folder / DIGESTS_NAME).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, or return None.

    One without digests, as earlier versions wrote them, is only looked at for its state.
    """
    try:
        state = read_state(checkpoint)
        if not isinstance(state["settings"], dict):
            raise TypeError("settings")
    except OSError:
        return f"{STATE_NAME} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{STATE_NAME} is broken"
    if not (checkpoint / DIGESTS_NAME).is_file():
        return f"{DIGESTS_NAME} is missing" if "run" in state else None
    try:
        digests = dict(json.loads((checkpoint / DIGESTS_NAME).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return f"{DIGESTS_NAME} is broken"
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} is not what was written"
    return None if STATE_NAME in digests else f"{DIGESTS_NAME} is broken"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_of(checkpoint: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint; None: it has none, or is damaged."""
    try:
        return read_state(checkpoint).get("run")
    except (OSError, ValueError, AttributeError):
        return None


def other_runs(output_dir: Path, resume: Path | None) -> list[Path]:
    """Return the checkpoints in output_dir that a later "latest" could mistake for the run's own.

    Args:
        resume: the checkpoint that the run goes on from; None for a fresh run.
    """
    found = checkpoints(output_dir)
    if resume is None:
        return found
    newer = [p for p in found if step_of(p) > step_of(resume) and damage(p) is None]
    if resume.parent.resolve() == output_dir.resolve():
        return newer
    run = run_of(resume)
    return [p for p in found if p in newer or run is None or run_of(p) != run]


def overwritten(output_dir: Path, resume: Path | None) -> list[Path]:
    """Return the folders that --overwrite_output_dir removes: other runs' checkpoints and saves."""
    inside = resume is not None and resume.parent.resolve() == output_dir.resolve()
    kept = step_of(resume) if resume is not None and inside else -1
    later = [path for step, path in saves(output_dir).items() if step > kept]
    return [*other_runs(output_dir, resume), *later]


def saves(output_dir: Path) -> dict[int, Path]:
    """Return a run's `save-<step>` folders by step, oldest first."""
    named = [(_SAVE.fullmatch(p.name), p) for p in output_dir.glob("save-*") if p.is_dir()]
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def beyond_limit(output_dir: Path, written: Path, limit: int | None) -> list[Path]:
    """Return a run's checkpoints, older than the one just written, for which there is no room.

    Args:
        limit: how many the run keeps; None: all.
    """
    run = run_of(written)
    if limit is None or run is None:
        return []
    older = [
        path
        for path in checkpoints(output_dir)
        if step_of(path) < step_of(written) and run_of(path) == run
    ]
    return older[: max(0, len(older) + 1 - limit)]
