"""What ends a program with lines for its user, not with a traceback."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from comfyui.basics import SetupError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FULL = (errno.ENOSPC, errno.EDQUOT)  # what the system says of a full disk

_at_end: ContextVar[ExitStack] = ContextVar("at_end")


class RefusedError(SetupError):
    """A `SetupError` that every process of a launch meets alike: the first alone tells it."""


def program(main: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a script's main: a `SetupError` ends it with the message and exit code 1.

    So does a full disk, whoever wrote to it. What `at_end` returns is closed at the end.
    """

    @wraps(main)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            with ExitStack() as held, _as_end(held):
                return main(*args, **kwargs)
        except RefusedError as error:
            is_first = int(os.environ.get("LOCAL_RANK", "0")) <= 0
            raise SystemExit(str(error) if is_first else 1) from error
        except SetupError as error:
            raise SystemExit(str(error)) from error
        except OSError as error:
            if error.errno not in FULL:
                raise
            place = error.filename or "a file (of a tracker, say)"
            raise SystemExit(
                f"{place}: {error.strerror}. Make room, then give the command again"
            ) from error

    return run


@contextmanager
def _as_end(held: ExitStack) -> Iterator[None]:
    token = _at_end.set(held)
    try:
        yield
    finally:
        _at_end.reset(token)


def at_end() -> ExitStack:
    """Return what takes the things that the program which is running holds until it ends."""
    return _at_end.get()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


@contextmanager
def loading(flag: str, name: str) -> Iterator[None]:
    """Turn a failure to load what a flag names into one line.

    Raises:
        SetupError: in place of OSError and ValueError.
    """
    try:
        yield
    except SetupError:
        raise
    except (OSError, ValueError) as error:
        raise SetupError(f"{flag} {name}: {first_line(error)}") from error


def refuse(complaints: list[str]) -> None:
    """Raise a RefusedError with all complaints, one a line, if there are any."""
    if complaints:
        count = f"{len(complaints)} problem{'s' * (len(complaints) > 1)}"
        raise RefusedError(f"{count}; nothing was loaded:\n" + "\n".join(complaints))
