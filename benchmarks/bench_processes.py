r"""Training throughput of two processes against one, and what limits it.

    python -m benchmarks.bench_processes --size mini

Launches bench_step by `accelerate launch`: alone with one thread, alone with a thread a core, and
as two processes that share the gradients (DDP, gloo on a CPU) with one thread each. Pictures a
second count all processes. If two are less than twice as fast, what they lose is split in two: how
much slower the bare floor gets when both do it at once (they share memory, caches and cores), and
what the step adds beyond that (exchanging gradients, waiting for the slower one).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.bench_step import STEPS
from benchmarks.common import FAMILIES, OUTPUT, ROOT, BenchArgs, finish, settle_device, table
from mudi.ground.errors import SetupError, program
from mudi.ground.flags import flag, parse

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


@dataclass
class ProcessesArgs(BenchArgs):
    """processes"""

    family: str = flag("sdxl", "whose script", choices=FAMILIES)
    turns: int | None = flag(None, "of bench_step; unset: by the size")
    steps: int = flag(STEPS, "a turn, of bench_step")
    processes: int = flag(2, "against one")
    script_flags: list[str] = field(default_factory=list)  # the training script's own


def parse_args(argv: list[str] | None = None) -> ProcessesArgs:
    return parse(ProcessesArgs, __doc__, argv, rest="script_flags", json=OUTPUT / "processes.json")


@program
def main(args: ProcessesArgs) -> None:
    device = settle_device(args)
    cores = os.cpu_count() or 1
    cases = [(1, 1), (1, cores), (args.processes, 1)] if device.type == "cpu" else [
        (1, 1), (args.processes, 1)
    ]  # fmt: skip
    rows = [launch(args, processes, threads) for processes, threads in dict.fromkeys(cases)]
    for row in rows:
        row["against_one"] = row["pictures_a_second"] / rows[0]["pictures_a_second"]
        row["floor_slower"] = row["floor"] / rows[0]["floor"]
        row["step_slower"] = row["step"] / rows[0]["step"]
    finish(args, device, rows, show)


def launch(args: ProcessesArgs, processes: int, threads: int) -> dict[str, Any]:
    """Run bench_step in that many processes and return what the first one measured.

    Raises:
        SetupError: the launch failed.
    """
    several = ["--multi_gpu", "--main_process_port=0"] if processes > 1 else []
    with TemporaryDirectory(prefix="bench-") as folder:
        result = Path(folder) / "step.json"
        words = [*LAUNCH, f"--num_processes={processes}", *several, "--module"]
        words += ["benchmarks.bench_step", f"--family={args.family}", f"--size={args.size}"]
        words += [f"--device={args.device}", "--variant=default", f"--json={result}"]
        words += [f"--steps={args.steps}", *args.script_flags]
        words += [f"--turns={args.turns}"] * (args.turns is not None)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise SetupError(f"bench_step failed in {processes} processes; see above")
        measured = json.loads(result.read_text())["rows"][0]
    pictures = measured["batch_size"] * measured["passes_a_step"] * processes
    return {
        "processes": processes,
        "threads": threads,
        "pictures_a_second": pictures / measured["step"],
        **{key: measured[key] for key in ("step", "floor", "ratio", "parts", "floor_parts")},
    }


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the throughputs, and say what the last case loses and to what."""
    headers = ["processes", "threads", "pictures/s", "against one", "step/ms", "floor/ms"]
    lines = [
        [
            row["processes"],
            row["threads"],
            row["pictures_a_second"],
            row["against_one"],
            1e3 * row["step"],
            1e3 * row["floor"],
        ]
        for row in rows
    ]
    last = rows[-1]
    beyond = last["step_slower"] / last["floor_slower"]
    told = (
        f"{last['processes']} processes: {last['against_one']:.2f} times one with one thread. A "
        f"step takes {last['step_slower']:.2f} times as long: the bare floor "
        f"{last['floor_slower']:.2f} times (shared memory, caches and cores), the rest "
        f"{beyond:.2f} times (exchange of gradients and waiting)"
    )
    return f"{table(headers, lines)}\n\n{told}"


if __name__ == "__main__":
    main(parse_args())
