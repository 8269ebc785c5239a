"""One run at a time in a folder."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from mudi.ground.errors import RefusedError, at_end

LOCK = ".lock"

logger = logging.getLogger("mudi")


class InUseError(RefusedError):
    """Another run writes to the folder."""


@contextmanager
def locked(folder: Path, state: PartialState | None = None) -> Iterator[None]:
    """Keep other runs out of a folder, which is made if need be; a killed run's lock is none.

    The main process of a launch holds the lock for all of them; all must come here. A file system
    without locks costs a warning.

    Args:
        state: accelerate's; None: there is this process only.

    Raises:
        InUseError: another run holds the lock. All processes raise.
    """
    with ExitStack() as held:
        complaint = None
        if state is None or state.is_main_process:
            complaint = _take(folder, held)
        if state is not None:
            complaint = broadcast_object_list([complaint])[0]
        if complaint:
            raise InUseError(complaint)
        yield


def hold(folder: Path, state: PartialState | None = None) -> None:
    """Keep other runs out of a folder until the program that is running ends; see `locked`."""
    at_end().enter_context(locked(folder, state))


def _take(folder: Path, held: ExitStack) -> str | None:
    """Take the lock until `held` closes, or say who has it."""
    path = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return f"{folder}: {_holder(path)} writes here; wait for it, or take another folder"
    except (OSError, NotImplementedError) as error:
        logger.warning(f"{folder} can't be locked ({error}); let no other run write here")
        return None
    held.callback(lock.release)
    held.callback(path.unlink, missing_ok=True)  # before the release: whoever waits looks anew
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return None


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another run"
    except OSError:  # it has just ended, or the system forbids to read what is locked
        return "another run"
