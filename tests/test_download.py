"""dataset/download.py against a real server that breaks, truncates, refuses and lies."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import CLASSES, NAMES, ROOT, DataFolder, noise, rectangle

from dataset import download
from mudi.ground.fetch import CHUNK
from mudi.ground.files import TEMPORARY

PAIR = "dataset/category/dog6_and_dog2"
PHOTO = f"{PAIR}/a0.jpg"
Answer = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Serves files with ranges; `server.tricks[path]` holds what to do on its next requests."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.log.append((path, self.headers.get("Range")))
        file = self.server.root / path
        if not file.is_file():
            return self.reply(404, b"not here")
        tricks = self.server.tricks[path]
        (tricks.pop(0) if tricks else serve)(self, file.read_bytes())

    def reply(self, code: int, body: bytes, **headers: str) -> None:
        """Send a body; headers overrule Content-Length, and an empty one drops it."""
        self.send_response(code)
        fields = {"Content-Length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if fields["Content-Length"] != str(len(body)):
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def serve(handler: Handler, body: bytes) -> None:
    asked = handler.headers.get("Range")
    if not asked:
        return handler.reply(200, body)
    start = int(asked.removeprefix("bytes=").rstrip("-"))
    if start >= len(body):
        return handler.reply(416, b"", Content_Range=f"bytes */{len(body)}")
    place = f"bytes {start}-{len(body) - 1}/{len(body)}"
    handler.reply(206, body[start:], Content_Range=place)


def ignore_range(handler: Handler, body: bytes) -> None:
    handler.reply(200, body)


def break_off(handler: Handler, body: bytes) -> None:
    """Promise everything, send half."""
    handler.reply(200, body[: len(body) // 2], Content_Length=str(len(body)))


def cut_short(handler: Handler, body: bytes) -> None:
    """Send half and call it everything."""
    handler.reply(200, body[: len(body) // 2])


def wrong_range(handler: Handler, body: bytes) -> None:
    handler.reply(206, body, Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")


def tell_html(handler: Handler, body: bytes) -> None:
    handler.reply(200, b"<html>Please log in</html>", Content_Type="text/html")


def corrupt(handler: Handler, body: bytes) -> None:
    """The right size, but no picture."""
    handler.reply(200, bytes(len(body)))


def hang_up(handler: Handler, body: bytes) -> None:
    handler.close_connection = True


def trickle(handler: Handler, body: bytes) -> None:
    """Send half, then say nothing for as long as the client listens."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.server.closing.wait(10)
    handler.close_connection = True


def say(code: int, **headers: str) -> Answer:
    return lambda handler, body: handler.reply(code, b"no", **headers)


class Server(ThreadingHTTPServer):
    """Serves a repository of small pictures with the original's layout."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.log: list[tuple[str, str | None]] = []
        self.tricks: dict[str, list[Answer]] = defaultdict(list)
        self.closing = threading.Event()

    @property
    def asked(self) -> list[str]:
        return [path for path, _ in self.log]

    def ranges(self, path: str) -> list[str | None]:
        return [asked for name, asked in self.log if name == path]


def build(root: Path, name: str) -> DataFolder:
    folder = download.FOLDERS[name]
    names = CLASSES if folder.metadata.startswith("class") else NAMES
    pair = {key: names[key] for key in "ab"}
    return DataFolder(root / folder.path, pair, filename=folder.metadata)


@pytest.fixture
def server(tmp_path: Path):
    build(tmp_path / "repository", "dog6_and_dog2")
    noise(320, 240).save(tmp_path / "repository" / PHOTO)  # many chunks long
    rectangle(320, 240).save(tmp_path / "repository" / PAIR / "mask_a0.png")
    server = Server(tmp_path / "repository")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def flags(server: Server, out: Path, *more: str) -> list[str]:
    usual = ["--base_url", server.url, "--output", str(out), "--backoff", "0.01", "--retries", "2"]
    return [*usual, *(more or ["dog6_and_dog2"])]


def run(server: Server, out: Path, *more: str) -> int:
    return download.main(download.parse_args(flags(server, out, *more)))


def same(server: Server, out: Path, folder: str = PAIR) -> bool:
    """Whether the folder arrived byte for byte, and nothing else with it."""
    kept = [
        {f.name: f.read_bytes() for f in (top / folder).iterdir()} for top in (server.root, out)
    ]
    return kept[0] == kept[1]


def write_listing(server: Server) -> str:
    tree = [{"path": "dataset", "type": "tree"}]
    for file in server.root.rglob("*.*"):
        content = file.read_bytes()
        sha = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        path = file.relative_to(server.root).as_posix()
        tree.append({"path": path, "type": "blob", "size": len(content), "sha": sha})
    (server.root / "tree.json").write_text(json.dumps({"tree": tree}))
    return f"--listing_url={server.url}/tree.json"


def test_a_pair_arrives_whole_with_its_licence_message(server, out, capsys):
    assert run(server, out) == 0
    assert same(server, out)
    told = capsys.readouterr().out
    assert "DreamBench" in told and "CustomConcept101" in told and "no licence" in told
    assert f"{PAIR}: 12 fetched" in told
    assert len(server.log) == len(set(server.log)) == 13


def test_everything_lands_where_it_should(server, out):
    for name in download.FOLDERS:
        build(server.root, name)
    assert run(server, out, "--all", "--jobs", "8") == 0
    assert all(same(server, out, folder.path) for folder in download.FOLDERS.values())
    assert (out / "flux/teddys/metadata.jsonl").is_file()
    assert (out / "dataset/reg/actionfigure_2_and_dog0/class_metadata.jsonl").is_file()
    assert len(download.PAIRS) == 8 and len(download.FOLDERS) == 11


def test_what_is_complete_is_not_fetched_again(server, out, capsys):
    run(server, out)
    server.log.clear()
    assert run(server, out) == 0
    assert server.log == []
    assert "12 there already" in capsys.readouterr().out


def test_only_what_is_missing_or_broken_is_fetched_again(server, out):
    run(server, out)
    (out / PHOTO).unlink()
    broken = out / PAIR / "mask_b1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    server.log.clear()
    assert run(server, out) == 0
    assert sorted(server.asked) == [PHOTO, f"{PAIR}/mask_b1.png"]
    assert same(server, out)


def test_edited_captions_and_masks_stay(server, out, capsys):
    listing = write_listing(server)
    run(server, out)
    metadata, mask = out / PAIR / "metadata.jsonl", out / PAIR / "mask_b0.png"
    metadata.write_text(metadata.read_text().replace("number", "edited"))
    mask.write_bytes((out / PAIR / "mask_a1.png").read_bytes()[:-1] + b"\0extra")
    before = metadata.read_bytes(), mask.read_bytes()
    assert run(server, out, "dog6_and_dog2", listing) == 0
    assert (metadata.read_bytes(), mask.read_bytes()) == before
    assert "1 kept though not the source's" in capsys.readouterr().out


PASSING = {
    "broken off": break_off,
    "cut short": cut_short,
    "html": tell_html,
    "corrupt": corrupt,
    "hung up": hang_up,
    "500": say(500),
    "503": say(503, Retry_After="soon"),
    "429": say(429, Retry_After="0"),
}


@pytest.mark.parametrize("path", [PHOTO, f"{PAIR}/metadata.jsonl"])
@pytest.mark.parametrize("trick", PASSING.values(), ids=PASSING)
def test_a_passing_fault_is_overcome(server, out, path, trick):
    server.tricks[path] = [trick]
    assert run(server, out) == 0
    assert same(server, out)
    assert server.asked.count(path) == 2


def test_a_broken_file_is_continued_where_it_broke(server, out):
    half = (server.root / PHOTO).stat().st_size // 2
    server.tricks[PHOTO] = [break_off]
    assert run(server, out) == 0
    assert server.ranges(PHOTO) == [None, f"bytes={half - half % CHUNK}-"]
    assert same(server, out)


@pytest.mark.parametrize("trick", [ignore_range, wrong_range, say(416)])
def test_a_server_that_does_not_continue_is_asked_for_all(server, out, trick):
    server.tricks[PHOTO] = [break_off, trick]
    assert run(server, out) == 0
    assert same(server, out)


def test_a_part_of_another_file_is_not_continued_into_a_picture(server, out):
    part = out / PAIR / f"{TEMPORARY}a0.jpg"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(100))
    assert run(server, out) == 0
    assert server.ranges(PHOTO) == ["bytes=100-", None]
    assert same(server, out)


@pytest.mark.parametrize("extra", [b"", b"more than the file has"])
def test_a_part_with_nothing_left_to_fetch(server, out, extra):
    part = out / PAIR / f"{TEMPORARY}a0.jpg"
    part.parent.mkdir(parents=True)
    part.write_bytes((server.root / PHOTO).read_bytes() + extra)
    assert run(server, out) == 0
    assert same(server, out)


def test_retry_after_is_obeyed(server, out):
    server.tricks[PHOTO] = [say(429, Retry_After="1")]
    start = time.monotonic()
    assert run(server, out) == 0
    assert 1.0 <= time.monotonic() - start < 3.0


@pytest.mark.parametrize(
    "trick, reason",
    [
        (tell_html, "what came is damaged: cannot be read"),
        (corrupt, "what came is damaged"),
        (break_off, "IncompleteRead"),
        (hang_up, "RemoteDisconnected"),
        (say(500), "the server says 500"),
    ],
)
def test_a_lasting_fault_is_told_and_the_rest_is_kept(server, out, capsys, trick, reason):
    server.tricks[PHOTO] = [trick] * 3
    assert run(server, out) == 1
    told = capsys.readouterr().out
    assert f"{server.url}/{PHOTO}: {reason}" in told and "(3 tries)" in told
    assert 'no such photo: "a0.jpg"' in told  # load_subjects' own complaint
    assert not (out / PHOTO).exists()
    assert len([f for f in (out / PAIR).iterdir() if not f.name.startswith(TEMPORARY)]) == 12
    assert run(server, out) == 0
    assert same(server, out)


def test_a_missing_photo_is_not_asked_for_twice(server, out, capsys):
    (server.root / PHOTO).unlink()
    assert run(server, out) == 1
    assert server.asked.count(PHOTO) == 1
    told = capsys.readouterr().out
    assert "the server says 404" in told
    assert f"{PAIR}: 1 failed, 11 fetched" in told


def test_flaws_of_the_source_are_told(server, out, capsys):
    noise(10, 10).save(server.root / PAIR / "mask_a0.png")
    assert run(server, out) == 1
    assert "mask_a0.png" in (told := capsys.readouterr().out) and "make them equal" in told
    assert same(server, out)


def test_one_bad_folder_does_not_stop_the_others(server, out, capsys):
    assert run(server, out, "flux/teddys", "dog6_and_dog2") == 1
    assert same(server, out)
    assert "flux/teddys/metadata.jsonl: the server says 404" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:evil", ""])
def test_names_that_leave_the_folder_are_refused(server, out, capsys, name):
    metadata = server.root / PAIR / "metadata.jsonl"
    (server.root / "dataset/category/evil").write_bytes(b"evil")
    line = json.dumps({"id": "a", "file_name": name, "mask_path": "mask_a0.png", "text": "x"})
    metadata.write_text(metadata.read_text() + line)
    assert run(server, out) == 1
    assert "outside its folder" in capsys.readouterr().out
    assert set(server.asked) == {f"{PAIR}/metadata.jsonl"}
    assert list(out.rglob("*evil*")) == []


def test_the_listing_uncovers_a_picture_that_decodes_but_is_another(server, out, capsys):
    listing = write_listing(server)
    buffer = io.BytesIO()
    noise(seed=99).save(buffer, "JPEG")
    server.tricks[PHOTO] = [lambda h, body: h.reply(200, buffer.getvalue())]
    assert run(server, out, "dog6_and_dog2", listing) == 0
    assert server.asked.count(PHOTO) == 2
    assert same(server, out)


@pytest.mark.parametrize("content", [None, "<html>", "{}", '{"tree": [5]}'])
def test_a_useless_listing_is_told_and_not_needed(server, out, capsys, content):
    if content:
        (server.root / "tree.json").write_text(content)
    assert run(server, out, "dog6_and_dog2", f"--listing_url={server.url}/tree.json") == 0
    assert "Going on without the listing" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_is_continued(server, out, stop):
    server.tricks[PHOTO] = [trickle]
    command = [sys.executable, str(ROOT / "dataset/download.py"), *flags(server, out)]
    process = subprocess.Popen([*command, "--timeout", "2"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    part = out / PAIR / f"{TEMPORARY}a0.jpg"
    for _ in range(500):
        if part.exists() and part.stat().st_size > CHUNK:
            break
        time.sleep(0.01)
    process.send_signal(stop)
    told = process.communicate(timeout=10)[1]
    assert process.returncode != 0 and not (out / PHOTO).exists()
    assert "Traceback" not in told
    server.log.clear()
    assert run(server, out) == 0
    assert int(server.ranges(PHOTO)[0].removeprefix("bytes=").rstrip("-")) > CHUNK
    assert same(server, out)


def test_names_may_be_paths(server, out):
    assert run(server, out, f"{PAIR}/", "dog6_and_dog2") == 0
    assert len(server.log) == 13


def test_bad_arguments_stop_before_any_request(server, out):
    with pytest.raises(SystemExit) as stopped:
        run(server, out, "dog7", "--jobs", "0", "--base_url", "ftp://x")
    lines = str(stopped.value).splitlines()
    assert lines[0].startswith("unknown: dog7; known: actionfigure_2_and_dog0, ")
    assert lines[1:] == ["--jobs 0: must be 1 or more",
                         "--base_url ftp://x: must begin with http:// or https://"]  # fmt: skip
    with pytest.raises(SystemExit, match="--list shows the names"):
        download.main(download.parse_args(["--output", str(out)]))
    assert not server.log and not out.exists()


def test_the_list_names_every_folder(capsys):
    assert download.main(download.parse_args(["--list"])) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [[name, folder.path] for name, folder in download.FOLDERS.items()]


def test_a_server_that_is_not_there(out, capsys):
    args = ["--base_url", "http://127.0.0.1:9", "--output", str(out), "--backoff", "0"]
    assert download.main(download.parse_args([*args, "dog6_and_dog2"])) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().out
