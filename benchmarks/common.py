"""What the benchmarks share: their flags, the machine's record, tables and JSON files."""

import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mudi.backbones.table import BACKBONES
from mudi.ground.devices import on_gpu
from mudi.ground.errors import SetupError
from mudi.ground.files import write_text
from mudi.ground.flags import flag

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "output/benchmarks"
EXAMPLE = ROOT / "dataset/category/robot_and_teddy"
SIZES = ("tiny", "mini", "real")
FAMILIES = tuple(BACKBONES)
_PACKAGES = "torch diffusers transformers accelerate peft numpy pillow".split()


@dataclass
class BenchArgs:
    """all benchmarks"""

    size: str = flag(
        "mini",
        "tiny: random weights, seconds; mini: the miniature's size; real: full size",
        choices=SIZES,
    )
    device: str | None = flag(None, "unset: accelerate's choice", choices=("cpu", "cuda"))
    json: Path = flag(OUTPUT, "file for the result")


def settle_device(args: BenchArgs) -> torch.device:
    """Give args.device a value and return it; accelerate takes the same one from then on."""
    if args.device is None:
        args.device = "cuda" if on_gpu() else "cpu"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SetupError("--device cuda: there is no CUDA GPU here")
    os.environ["ACCELERATE_USE_CPU"] = str(args.device == "cpu").lower()
    return torch.device(args.device)


def import_script(family: str) -> ModuleType:
    """Import a family's training script, which is no package."""
    path = ROOT / BACKBONES[family].script
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def is_main_process() -> bool:
    """Say whether this is the process that tells; `accelerate launch` numbers them."""
    return os.environ.get("RANK", "0") == "0"


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on besides the settings.

    `load` is the average number of running processes of the last minute and of the last five; a
    quiet machine's is near 0 before the first benchmark.
    """
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()[:2]],
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """Return a GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table: the first column to the left, numbers to the right."""
    cells = [list(headers), *([_told(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _told(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 100 else _whole(value)


def _whole(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def finish(
    args: BenchArgs,
    device: torch.device,
    rows: Sequence[dict[str, Any]],
    show: Callable[[Sequence[dict[str, Any]]], str],
) -> None:
    """Print the rows and write them, with the settings and the machine, to --json."""
    if not is_main_process():
        return
    settings = {key: _plain(value) for key, value in vars(args).items() if key != "json"}
    told = machine(device)
    print(f"\n{told['device']}, torch {told['torch']}, load {told['load'][0]}, {told['date']}")
    print(show(rows))
    record = {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "settings": settings,
        "machine": told,
        "rows": list(rows),
    }
    write_text(args.json, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {args.json}")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
