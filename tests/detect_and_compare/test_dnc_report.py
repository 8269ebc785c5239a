"""report.html as a browser shows it."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from detect_and_compare.__main__ import main, parse_args
from detect_and_compare.report import Scale

torch.set_num_threads(1)
EXAMPLES = ROOT / "detect_and_compare" / "examples"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report on the examples; one name and prompt would be markup if they were not escaped."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(EXAMPLES / "pictures", folder / "pictures")
    (folder / "pictures" / "good.jpg").rename(folder / "pictures" / "good & <b>bold.jpg")
    (folder / "pictures" / "broken.png").touch()
    words = ["--images", folder / "pictures", "--references", EXAMPLES / "references"]
    words += ["--detector", "foreground", "--embedder", "colours", "--crop_references"]
    main(parse_args([str(word) for word in (*words, "--output", folder / "out")]))
    return folder / "out" / "report.html"


def browse(*flags: str, page: Path) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def names_in_order(dom: str) -> list[str]:
    return [html.unescape(name) for name in re.findall(r'<div class="name">(.*?)</div>', dom)]


@needs_browser
def test_the_browser_shows_every_picture_worst_first(report):
    dom = browse("--dump-dom", page=report)
    assert names_in_order(dom) == [
        "broken.png", "missing.jpg", "too_many.jpg", "mixed.jpg", "doubled.jpg",
        "good & <b>bold.jpg",
    ]  # fmt: skip
    assert dom.count('<image href="data:image/jpeg;base64,') == 5
    # Boxes in pixels of the pictures: doubled and good and mixed 2 each, missing 1, too many 3
    assert len(re.findall(r'<rect [^>]*fill="none"', dom)) == 10
    assert "the file has zero bytes" in dom


@needs_browser
@pytest.mark.parametrize(("button", "first", "last"), [
    (0, "broken.png", "too_many.jpg"),  # by name
    (1, "missing.jpg", "too_many.jpg"),  # by the number of boxes; the unreadable has none
])  # fmt: skip
def test_clicking_a_heading_sorts(report, tmp_path, button, first, last):
    page = tmp_path / "clicked.html"
    click = f"<script>document.querySelectorAll('#pictures button')[{button}].click()</script>"
    page.write_text(report.read_text().replace("</body>", f"{click}</body>"))
    names = names_in_order(browse("--dump-dom", page=page))
    assert (names[0 if button == 0 else 1], names[-1]) == (first, last)


@needs_browser
def test_the_page_is_painted(report, tmp_path):
    """The boxes' colours, the heat maps' darkest and lightest shade: all are on the picture."""
    path = tmp_path / "page.png"
    browse(f"--screenshot={path}", "--window-size=1200,2200", page=report)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for colour in ("0072b2", "d55e00", "08306b", "f7fbff"):
        assert (pixels == list(bytes.fromhex(colour))).all(axis=1).sum() > 100


def test_the_page_asks_for_nothing_from_elsewhere(report):
    text = report.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)


def test_shades_run_from_light_to_dark():
    scale = Scale(0.2, 0.8)
    assert [scale.cell(v).colour for v in (0.2, 0.5, 0.8)] == ["#f7fbff", "#6baed6", "#08306b"]
    assert [scale.cell(v).ink for v in (0.2, 0.5, 0.8)] == ["black", "black", "white"]
