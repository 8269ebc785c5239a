"""Serves one page to one user on this machine: who may ask, and how much. Knows no masks.

Every address begins with a random token, so that no other page or user can name one. Host and
Origin are checked besides, as a foreign name can be made to lead here (DNS rebinding) and any page
may post to any address. Nothing that is asked for is taken for a path.
"""

import hmac
import json
import logging
import math
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mudi.ground.errors import SetupError
from mudi.texts import has_half_character

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")
TOKEN_BYTES = 24
LARGEST_BODY = 32 << 20  # bytes; the runs of a mask are some 10 kB
LONGEST_SILENCE = 60.0  # s, of a connection
PORTS_TRIED = 20
JSON = "application/json"
PAGE = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

logger = logging.getLogger("mudi")


class Refusal(Exception):
    """What was asked for is not done; the message says why, to the user."""

    def __init__(self, status: HTTPStatus, message: str, **more: Any):
        super().__init__(message)
        self.status, self.more = status, more


class Asked:
    """What came with a request, read as what it should be.

    Raises:
        Refusal: by all methods, where a value is missing or of another kind.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def _value(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self._values.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise Refusal(HTTPStatus.BAD_REQUEST, f'"{key}" is missing or of another kind')
        return value

    def text(self, key: str) -> str:
        """Return a text that a file can hold."""
        text = self._value(key, str)
        if has_half_character(text):
            raise Refusal(HTTPStatus.BAD_REQUEST, f'"{key}" holds half a character; type it again')
        return text

    def maybe_text(self, key: str) -> str | None:
        return None if self._values.get(key) in (None, "") else self.text(key)

    def flag(self, key: str) -> bool:
        value = self._values.get(key, False)
        return value in (True, "true", "1")

    def number(self, key: str) -> float:
        """Return a finite number; an address has it as text."""
        value = self._value(key, (int, float, str))
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise Refusal(HTTPStatus.BAD_REQUEST, f'"{key}" is not a number')
        return number

    def whole(self, key: str, least: int = 0, most: int = 2**31 - 1) -> int:
        number = self.number(key)
        if number != int(number) or not least <= number <= most:
            raise Refusal(HTTPStatus.BAD_REQUEST, f'"{key}": a whole number, {least} to {most}')
        return int(number)

    def items(self, key: str) -> list[Any]:
        return self._value(key, list)

    def table(self, key: str) -> dict[str, Any]:
        return self._value(key, dict)

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def raw(self, key: str) -> Any:
        """Return a value of any kind, None where there is none."""
        return self._values.get(key)


@dataclass(frozen=True)
class Reply:
    """What goes back: a picture, or whatever has that kind."""

    body: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK


Answer = Callable[[Asked], Any]  # returns a `Reply`, or what JSON can hold
Answers = Mapping[tuple[str, str], Answer]


class Site:
    """What can be asked for below the token, by method and name: ("GET", "folder").

    Args:
        more: returns further answers; called once, in a thread, as what it imports takes seconds.
    """

    def __init__(self, answers: Answers, more: Callable[[], Answers] = dict):
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._answers = answers
        self._more: Future[Answers] = Future()
        self._load = more

    def complete(self) -> None:
        """Get the further answers; whoever asks for one of them waits meanwhile."""
        try:
            self._more.set_result(self._load())
        except BaseException as error:
            self._more.set_exception(error)
            raise

    def answer(self, method: str, name: str) -> Answer | None:
        """Return what answers, if anything does."""
        key = (method, name)
        return self._answers.get(key) or self._more.result().get(key)


def json_reply(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(json.dumps(value).encode(), JSON, status)


class Server(ThreadingHTTPServer):
    """A site on a port of the loopback interface; port 0 takes any."""

    daemon_threads = True

    def __init__(self, site: Site, port: int):
        self.site = site
        super().__init__((ADDRESS, port), _Handler)
        threading.Thread(target=site.complete, daemon=True).start()

    @property
    def address(self) -> str:
        """What the user opens."""
        return f"http://{ADDRESS}:{self.server_port}/{self.site.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away while it is answered is no error."""
        logger.debug("a connection ended", exc_info=True)


def bind(site: Site, port: int) -> Server:
    """Return a server on a port, or the next that is free.

    The page keeps unsaved strokes by port, so the same one is wanted each time.

    Raises:
        SetupError: none of the next few is free.
    """
    for candidate in range(port, port + PORTS_TRIED):
        try:
            return Server(site, candidate if port else 0)
        except OSError:
            continue
    raise SetupError(f"--port {port}: taken, and the {PORTS_TRIED - 1} after it; give another")


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mudi", ""
    timeout = LONGEST_SILENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the token."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        try:
            self._check_sender()
            name, query = self._place()
            body = self._body() if method == "POST" else {}
            reply = self._reply(method, name, Asked({**query, **body}))
        except Refusal as refusal:
            told = {"problem": str(refusal), **refusal.more}
            reply = json_reply(told, refusal.status)
        except SetupError as error:
            reply = json_reply({"problem": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except Exception as error:  # told to the user, and the server goes on for the others
            logger.exception("%s failed", method)
            told = {"problem": f"this failed: {error!r}; the terminal says more"}
            reply = json_reply(told, HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send(reply)

    def _check_sender(self) -> None:
        """Refuse what another site's page, or a name that leads here, asks for.

        Raises:
            Refusal: Host or Origin is not this server's.
        """
        own = [f"{host}:{self.server.server_port}" for host in HOSTS]
        origin = self.headers.get("Origin")
        sites = self.headers.get("Sec-Fetch-Site", "same-origin")
        if (
            self.headers.get_all("Host", []) not in [[host] for host in own]
            or (origin is not None and origin not in [f"http://{host}" for host in own])
            or sites not in ("same-origin", "none")
        ):
            self.close_connection = True
            raise Refusal(HTTPStatus.FORBIDDEN, "asked from elsewhere")

    def _place(self) -> tuple[str, dict[str, Any]]:
        """Return what is asked for below the token, and the address's own values."""
        parts = urlsplit(self.path)
        token, _, name = parts.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.site.token.encode()):
            self.close_connection = True
            raise Refusal(HTTPStatus.FORBIDDEN, "the address lacks its token: see the terminal")
        return unquote(name), dict(parse_qsl(parts.query, errors="replace"))

    def _body(self) -> dict[str, Any]:
        """Return the JSON object that was posted.

        A body that is not read makes the connection useless.
        """
        self.close_connection = True
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "how long is it?")
        if int(length) > LARGEST_BODY:
            told = f"more than {LARGEST_BODY >> 20} MB"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, told)
        if self.headers.get_content_type() != JSON:
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not JSON")
        data = self.rfile.read(int(length))
        self.close_connection = False
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"broken JSON ({error})") from error
        if not isinstance(value, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "no JSON object")
        return value

    def _reply(self, method: str, name: str, asked: Asked) -> Reply:
        if method == "GET" and (file := _page_file(name or "index.html")) is not None:
            return Reply(file.read_bytes(), KINDS[file.suffix])
        answer = self.server.site.answer(method, name)
        if answer is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such thing here")
        given = answer(asked)
        return given if isinstance(given, Reply) else json_reply(given)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)


def _page_file(name: str) -> Path | None:
    """Return a file of the page by its name among those that are there."""
    return next((f for f in PAGE.iterdir() if f.name == name and f.suffix in KINDS), None)
