"""Files over HTTP: tried again after a failure, continued after a break, checked, never half."""

import hashlib
import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from mudi.ground.files import replace_file

CHUNK = 1 << 13  # bytes; what a break may lose, as a chunk comes whole or not at all
MAX_WAIT = 120.0  # seconds, whatever a server's Retry-After asks for
PASSING = {408, 425, 429, *range(500, 600)}  # HTTP codes that a later try may not meet


class FetchError(Exception):
    """A file can't be had; the message says why."""


class PassingError(Exception):
    """A try failed in a way that the next may not; `wait` is the server's wish in seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass
class Source:
    """Fetches files below base_url, patiently; may be used by several threads.

    `blobs` maps a file to its (bytes, Git SHA-1), where known; `received` is told of every chunk's
    size; `stop` ends all work at the next chunk or wait.
    """

    base_url: str
    timeout: float = 30.0
    retries: int = 5
    backoff: float = 1.0
    blobs: dict[str, tuple[int, str]] = field(default_factory=dict)
    received: Callable[[int], object] = lambda size: None
    stop: threading.Event = field(default_factory=threading.Event)
    own: threading.local = field(default_factory=threading.local)

    def fetch(self, file: str, target: Path, verify: Callable[[Path], object]) -> None:
        """Fetch a file, continuing what an earlier try left; `verify` raises ValueError on
        a damaged one.

        Raises:
            FetchError: the file can't be had, not even after all retries.
        """
        url = f"{self.base_url}/{quote(file)}"

        def fill(temporary: Path) -> None:
            for attempt in itertools.count():
                try:
                    self._receive(url, temporary)
                    self._verify(file, temporary, verify)
                    return
                except (PassingError, requests.RequestException) as error:
                    reason = str(error) if isinstance(error, PassingError) else _root(error)
                    if attempt >= self.retries:
                        raise FetchError(f"{url}: {reason} ({attempt + 1} tries)") from error
                    wait = min(max(self.backoff * 2**attempt, getattr(error, "wait", 0)), MAX_WAIT)
                    if self.stop.wait(wait):
                        raise FetchError(f"{url}: stopped") from error

        try:
            replace_file(target, fill)
        except OSError as error:  # a full disk, a folder of that name
            raise FetchError(f"{target}: {error.strerror or error}") from error

    def get(self, url: str, headers: dict[str, str]) -> requests.Response:
        """Return the open response; sessions are one a thread, as `requests` advises."""
        if not hasattr(self.own, "session"):
            self.own.session = requests.Session()
        return self.own.session.get(url, headers=headers, stream=True, timeout=self.timeout)

    def _receive(self, url: str, part: Path) -> None:
        """Write what `part` lacks of the file to it."""
        start = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"}  # a compressed answer has neither size nor range
        if start:
            headers["Range"] = f"bytes={start}-"
        with self.get(url, headers) as response:
            _check_status(response, url)
            place = re.match(
                r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", "")
            )
            if response.status_code == 416 and place and int(place[2]) == start:
                return  # killed after the last byte and before the renaming
            if response.status_code == 416 or (
                response.status_code == 206 and not (place and place[1] == str(start))
            ):
                part.unlink(missing_ok=True)
                raise PassingError("the server's answer does not continue the part we have")
            continued = response.status_code == 206
            with part.open("ab" if continued else "wb", buffering=0) as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    self.received(len(chunk))
                    if self.stop.is_set():
                        raise FetchError(f"{url}: stopped")
            size = place[2] if continued and place else response.headers.get("Content-Length")
            if response.headers.get("Content-Encoding", "identity") == "identity" and size:
                _check_size(part, int(size))

    def _verify(self, file: str, part: Path, verify: Callable[[Path], object]) -> None:
        """Compare with the listing and decode; a damaged part is dropped."""
        try:
            if file in self.blobs:
                _check_size(part, self.blobs[file][0])
                if git_sha(part) != self.blobs[file][1]:
                    raise PassingError("its SHA-1 is not the listing's")
            verify(part)
        except (ValueError, PassingError) as error:
            part.unlink(missing_ok=True)
            raise PassingError(f"what came is damaged: {str(error).split(';')[0]}") from error


def _root(error: BaseException) -> str:
    """Say what lies at the bottom of a `requests` error, in a few words."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _check_status(response: requests.Response, url: str) -> None:
    """Raise on anything but a file, a part of it, or 416 (the part asked for is empty)."""
    code, reason = response.status_code, f"{response.status_code} {response.reason}"
    if code in PASSING:
        try:
            wait = Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
        except InvalidHeader:
            wait = 0.0
        raise PassingError(f"the server says {reason}", wait)
    if code not in (200, 206, 416):
        raise FetchError(f"{url}: the server says {reason}")


def _check_size(part: Path, size: int) -> None:
    if (got := part.stat().st_size) != size:
        if got > size:
            part.unlink()
        raise PassingError(f"{got} bytes came, {size} were promised")


def git_sha(path: Path) -> str:
    """Return the SHA-1 under which Git, and so the listing, knows a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fetch_blobs(source: Source, url: str) -> dict[str, tuple[int, str]]:
    """Read a listing in the form of GitHub's tree API: path -> (bytes, SHA-1).

    Raises:
        FetchError: it can't be had, or has another form.
    """
    try:
        with source.get(url, {}) as response:
            _check_status(response, url)
            tree = response.json()["tree"]
        return {x["path"]: (int(x["size"]), x["sha"]) for x in tree if x["type"] == "blob"}
    except (PassingError, requests.RequestException) as error:
        raise FetchError(f"{url}: {_root(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(f"{url}: no listing in the form of GitHub's tree API") from error
