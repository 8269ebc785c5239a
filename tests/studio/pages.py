"""A page that is served, and a browser to look at it with."""

import http.client
import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from helpers import ROOT

from detect_and_compare import __main__ as score
from mudi.studio.__main__ import open_server, parse_args
from mudi.studio.server import JSON, Server

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
LAPTOP = {"width": 1366, "height": 768}  # px, of the window


def no_browser() -> str | None:
    """Say why no page can be looked at, or return None."""
    if importlib.util.find_spec("playwright") is None:
        return "wants playwright: pip install -r requirements-dev.txt"
    return None if CHROMIUM else "wants a browser: apt-get install chromium (or set CHROMIUM)"


@contextmanager
def served(folder: Path, *words: str) -> Iterator[Server]:
    """Serve a folder from a thread, on a port of its own."""
    server = open_server(parse_args([str(folder), "--port", "0", "--device", "cpu", *words]))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def copy_examples(folder: Path) -> Path:
    """Copy the metric's five example pictures and score them; return the pictures' folder."""
    examples, pictures = ROOT / "detect_and_compare" / "examples", folder / "pictures"
    shutil.copytree(examples / "pictures", pictures)
    plain = "--detector foreground --embedder colours --crop_references".split()
    places = ["--images", pictures, "--references", examples / "references"]
    output = ["--output", folder / "scores"]
    score.main(score.parse_args([*map(str, [*places, *output]), *plain]))
    return pictures


class Visitor:
    """Asks a server as a program does, with whatever headers; keeps what was said of the page."""

    def __init__(self, server: Server):
        self.place = urlsplit(server.address)
        self.token = self.place.path.strip("/")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict | None = None,
        headers: dict[str, str | None] | None = None,
        token: str | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer to a path below the token."""
        sent: dict[str, str | None] = {"Host": self.place.netloc}
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        if data is not None:
            sent |= {"Content-Type": JSON, "Content-Length": str(len(data))}
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.place.port, timeout=60)
        connection.putrequest(
            method, f"/{self.token if token is None else token}/{path}", skip_host=True,
            skip_accept_encoding=True,
        )  # fmt: skip
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        reply = connection.getresponse()
        answer = reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        connection.close()
        return answer

    def told(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict[str, Any]]:
        """Return status and JSON."""
        status, _, data = self.ask(method, path, body)
        return status, json.loads(data)


class Hand:
    """A user at a page: looks, clicks where a photo's pixel is, presses keys.

    Attributes:
        clicks: how often the mouse was pressed on the photo.
    """

    def __init__(self, browser: Any, address: str, tab: str = "photos"):
        self.context = browser.new_context(viewport=LAPTOP)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.prepared: list[float] = []  # seconds of the server's, a photo
        self.seconds: list[float] = []  # likewise, a click
        self.clicks = 0
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._heard)
        self.open(address, tab)

    def _heard(self, response: Any) -> None:
        heard = {"cut": self.seconds, "prepare": self.prepared}.get(response.url.split("/")[-1])
        if heard is not None and response.ok:
            heard.append(response.json()["seconds"])

    def open(self, address: str, tab: str = "photos") -> None:
        self.page.goto("about:blank")  # another fragment alone would load nothing
        self.page.goto(f"{address}#{tab}")
        self.page.wait_for_selector("body[data-ready]")
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is asked for any more, and what was answered is seen."""
        for _ in range(2):
            self.page.wait_for_selector('body[data-pending="0"]')
            self.page.wait_for_timeout(40)

    def on_screen(self, size: tuple[int, int], x: float, y: float) -> tuple[float, float]:
        """Return where a pixel of a photo of that size is, shown whole."""
        box = self.page.locator("#view").bounding_box()
        scale = 0.97 * min(box["width"] / size[0], box["height"] / size[1])
        left = box["x"] + (box["width"] - scale * size[0]) / 2
        top = box["y"] + (box["height"] - scale * size[1]) / 2
        return left + scale * (x + 0.5), top + scale * (y + 0.5)

    def click(self, size: tuple[int, int], x: float, y: float, **how: Any) -> None:
        self.clicks += 1
        shift = how.pop("shift", False)
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.click(*self.on_screen(size, x, y), **how)
        if shift:
            self.page.keyboard.up("Shift")
        self.settle()

    def drag(self, size: tuple[int, int], start: tuple[int, int], end: tuple[int, int]) -> None:
        self.page.mouse.move(*self.on_screen(size, *start))
        self.page.mouse.down()
        self.page.mouse.move(*self.on_screen(size, *end), steps=8)
        self.page.mouse.up()
        self.settle()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.settle()

    def told(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def all_told(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def close(self) -> None:
        assert not self.errors
        self.context.close()
