"""Splits what a program does among named parts, so that every moment counts once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

REST = "rest"
GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """What a stretch of the program took.

    Attributes:
        seconds: of wall-clock time.
        busy: seconds of processor time of this process, all its threads together.
        peak: most memory in use within it (bytes); 0 where memory is not read.
        left: memory in use at its end (bytes).
    """

    seconds: float = 0.0
    busy: float = 0.0
    peak: int = 0
    left: int = 0

    def then(self, later: "Cost") -> "Cost":
        """Return the cost of this stretch and a later one together."""
        peak = max(self.peak, later.peak)
        return Cost(self.seconds + later.seconds, self.busy + later.busy, peak, later.left)


class Meter:
    """Reads the cost since the last reading, with the device idle at both ends.

    Memory is what PyTorch has allocated on a GPU; on a CPU the process' resident memory, whose
    high-water mark Linux lets a process reset.

    Args:
        memory: read memory too; on a CPU that takes some 0.1 ms.
    """

    def __init__(self, device: torch.device, memory: bool = False):
        self._cuda = device.type == "cuda"
        self._memory = memory
        self._last = time.perf_counter(), time.process_time()
        self.read()

    def read(self) -> Cost:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        seconds, busy = now[0] - self._last[0], now[1] - self._last[1]
        peak, left = self._read_memory() if self._memory else (0, 0)
        self._last = time.perf_counter(), time.process_time()  # reading belongs to no part
        return Cost(seconds, busy, peak, left)

    def _read_memory(self) -> tuple[int, int]:
        return gpu_memory() if self._cuda else host_memory()


def gpu_memory() -> tuple[int, int]:
    """Return the most bytes allocated since the last call, and those allocated now."""
    peak, now = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak, now


def host_memory() -> tuple[int, int]:
    """Return the most bytes resident since the last call, and those resident now (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; man proc_pid_clear_refs
    return int(kilobytes["VmHWM"]) << 10, int(kilobytes["VmRSS"]) << 10


class Parts:
    """Charges every moment to the innermost part that is at work, or to `REST`.

    Args:
        meter: None counts nothing, and wrapped functions run as they are, until one is set.
    """

    def __init__(self, meter: Meter | None = None):
        self.meter = meter
        self._open: list[str] = []
        self._costs: dict[str, Cost] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what happens inside to name."""
        if self.meter is None:
            yield
            return
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def wrap(self, name: str | Callable[[], str], function: Callable) -> Callable:
        """Return a function that is charged to name; a callable gives the name at each call."""

        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            if self.meter is None:
                return function(*args, **kwargs)
            with self.part(name() if callable(name) else name):
                return function(*args, **kwargs)

        return charged

    def lap(self) -> dict[str, Cost]:
        """Return what each part cost since the last lap, in the order of their beginning."""
        self._charge()
        costs, self._costs = self._costs, {}
        return costs

    def _charge(self) -> None:
        if self.meter is not None:
            name = self._open[-1] if self._open else REST
            self._costs[name] = self._costs.get(name, Cost()).then(self.meter.read())


@contextmanager
def swapped(owner: Any, **replacements: Any) -> Iterator[None]:
    """Replace attributes of a module or class inside, and put the old ones back.

    Raises:
        AttributeError: the owner has no such attribute.
    """
    before = {name: getattr(owner, name) for name in replacements}
    for name, value in replacements.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
