"""Make the pictures of the page in mudi/studio/docs, by a real Chromium.

    PYTHONPATH=.:tests:tests/studio python tests/by_hand/studio_screenshots.py

It shows a copy of the example pair, with the metric's five example pictures in the last tab.
"""

import argparse
import io
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import ROOT
from pages import Hand, browser, copy_examples, served
from PIL import Image

from mudi.ground.files import replace_file

DOCS = ROOT / "mudi" / "studio" / "docs"
TABS = ("photos", "captions", "collages", "layout", "results")
WIDTH = 1000  # px, of a picture
QUALITY = 75


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DOCS, help="folder to write")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    with TemporaryDirectory() as folder:
        photos = Path(folder) / "robot_and_teddy"
        shutil.copytree(ROOT / "dataset" / "category" / "robot_and_teddy", photos)
        words = ["--results", str(copy_examples(Path(folder))), "--scores", f"{folder}/scores"]
        with served(photos, "--segmenter", "foreground", *words) as server, browser() as chromium:
            hand = Hand(chromium, server.address)
            prepare(hand)
            for tab in TABS:
                hand.page.locator(f"#tab-{tab}").click()
                hand.settle()
                if tab == "layout":
                    show_layout(hand)
                hand.page.wait_for_timeout(2000)  # for pictures that are on their way
                write(args.output / f"{tab}.jpg", hand.page.screenshot())
            hand.close()


def prepare(hand: Hand) -> None:
    """Leave something to see: a touched mask, a caption with a complaint."""
    hand.page.locator("#tab-captions").click()
    hand.page.locator('.card[data-photo="a01.jpg"] textarea').fill("A robot on wooden planks.")
    hand.page.keyboard.press("Tab")
    hand.settle()
    hand.page.locator("#tab-photos").click()
    hand.page.locator('.tile[data-photo="a01.jpg"]').click()
    hand.settle()
    hand.press("b")
    hand.drag((512, 512), (128, 305), (150, 310))
    hand.press("s")


def show_layout(hand: Hand) -> None:
    """Make one subject larger and let the other stand before it."""
    for subject, keys in (("b", "- - - - - - -"), ("a", "ArrowLeft ArrowLeft ArrowLeft f")):
        hand.page.locator(f'#stage .actor[data-subject="{subject}"]').click()
        for key in keys.split():
            hand.press(key)


def write(path: Path, png: bytes) -> None:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((WIDTH, WIDTH))
    replace_file(path, lambda place: image.save(place, format="JPEG", quality=QUALITY))


if __name__ == "__main__":
    main(parse_args())
