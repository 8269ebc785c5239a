"""What ends a program with a line, not a traceback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class SetupError(SystemExit):
    """Ends the program with one line: something about the machine or the flags forbids the run."""


@contextmanager
def told_in_one_line(flag: str, name: str) -> Iterator[None]:
    """Turn a failure to load what a flag names into one line.

    Raises:
        SetupError: in place of OSError and ValueError.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise SetupError(f"{flag} {name}: {str(error).splitlines()[0]}") from error


def refuse(complaints: list[str]) -> None:
    """Stop the program with all complaints, one a line, if there are any."""
    if not complaints:
        return
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        raise SystemExit(1)  # the first process tells them
    count = f"{len(complaints)} problem{'s' * (len(complaints) > 1)}"
    raise SystemExit(f"{count}; nothing was loaded:\n" + "\n".join(complaints))
