"""Long lists of work: split over processes, noted as they are done, continued after a stop.

state = join_processes()
journal = Journal(output / "scores.jsonl", "image", state)
for item in share([item for item in items if item.name not in journal.done], state):
    journal.add({"image": item.name, ...})
records = journal.finish(order=[item.name for item in items])
"""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState

from mudi.ground.devices import cpu_is_meant
from mudi.ground.files import room_for, write_text

Item = TypeVar("Item")

CHECKSUM = "checksum"  # the last key of a journal's line: of what stands before it

logger = logging.getLogger("mudi")

LONGEST_WAIT = timedelta(days=7)  # for the slowest process's share; the usual limit is 10 minutes


def join_processes() -> PartialState:
    """Return accelerate's state, joined to the other processes of the launch."""
    return PartialState(cpu=cpu_is_meant(), timeout=LONGEST_WAIT)


def share(items: Sequence[Item], state: PartialState) -> list[Item]:
    """Return this process's part of the work: every n-th piece, so that no two get the same."""
    return list(items[state.process_index :: state.num_processes])


class Journal:
    """A file of JSON lines, one a finished piece of work, that several processes add to.

    While they run, each adds to a part of its own, `<name>.part<process>`, so that a kill costs at
    most the line that was being written; the parts are put together when the next run begins and
    when this one ends. All processes must make and finish the journal together.

    A line ends with its checksum. One that is damaged is told and counts as not done.

    Args:
        path: the finished file.
        key: what names a piece in its record; unique among the pieces.
        state: accelerate's.

    Attributes:
        done: the records of finished pieces by key, earlier runs' when the journal is made.
    """

    def __init__(self, path: Path, key: str, state: PartialState):
        self.path, self._key, self._state = path, key, state
        path.parent.mkdir(parents=True, exist_ok=True)
        if state.is_main_process:
            self._gather()
        state.wait_for_everyone()
        self.done: dict[str, dict[str, Any]] = self._read(path)
        self._part = path.with_name(f"{path.name}.part{state.process_index}")

    def add(self, record: dict[str, Any]) -> None:
        """Note a finished piece; it is on its way to the disk when this returns."""
        self.done[record[self._key]] = record
        line = _line(record).encode()
        with room_for(self._part, wanted=len(line)), self._part.open("ab") as file:
            file.write(line)

    def finish(self, order: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Write the whole file and return its records, those that order names first, in its order.

        The other processes return when it is written.
        """
        self._state.wait_for_everyone()
        if self._state.is_main_process:
            self._gather(order)
        self._state.wait_for_everyone()
        return list(self._read(self.path).values())

    def _gather(self, order: Sequence[str] = ()) -> None:
        parts = sorted(self.path.parent.glob(f"{self.path.name}.part*"))
        records = self._read(self.path)
        for part in parts:
            records |= self._read(part)
        names = dict.fromkeys([*order, *records])
        if records or self.path.is_file():
            lines = [_line(records[name]) for name in names if name in records]
            write_text(self.path, "".join(lines))
        for part in parts:
            part.unlink()

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        """Return a file's records by key; a line cut off by a kill is left out, to be done anew."""
        data = path.read_bytes() if path.is_file() else b""
        old = f'"{CHECKSUM}"'.encode() not in data  # of a version that wrote none
        records = {}
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            record = _record(line, old)
            if record is not None and isinstance(record.get(self._key), str):
                records[record[self._key]] = record
            elif line.strip():
                logger.warning("%s:%d: the line is damaged; its work is done anew", path, number)
        return records


def _line(record: Mapping[str, Any]) -> str:
    text = json.dumps({**record, CHECKSUM: _checksum(record)}, ensure_ascii=False)
    return text + "\n"


def _record(line: bytes, old: bool) -> dict[str, Any] | None:
    """Return a line's record without its checksum; None if it is damaged.

    Args:
        old: there are no checksums.
    """
    try:
        record = json.loads(line.decode())
        if not isinstance(record, dict):
            return None
        checksum = _checksum({key: record[key] for key in record if key != CHECKSUM})
        return record if record.pop(CHECKSUM, checksum if old else None) == checksum else None
    except (ValueError, RecursionError):
        return None


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, ensure_ascii=False).encode()):08x}"
