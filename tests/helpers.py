"""Small pictures and data folders for the tests, drawn on the spot."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mudi.segmix import Cutout, cut_out

ROOT = Path(__file__).parent.parent
SCRIPT_FOLDERS = [
    str(ROOT / name) for name in (".", "flux", "flux2", "zimage")
]  # of training scripts
NAMES = {"a": "olis robot", "b": "hta teddy bear", "c": "pll corgi"}
CLASSES = {"a": "robot", "b": "teddy bear", "c": "corgi"}
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
COLOURS = [(200, 40, 40), (40, 180, 60), (50, 70, 220), (210, 190, 30), (170, 60, 190)]
WIDTH, HEIGHT = 64, 48  # of the photos


def plain_cutout(width: int, height: int, colour: tuple[int, int, int] = COLOURS[0]) -> Cutout:
    """A subject of one colour that fills its box."""
    return cut_out(Image.new("RGB", (width, height), colour), np.ones((height, width), dtype=bool))


def noise(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Image.Image:
    """A photo of coloured noise, so that its JPEG is long and no two are alike."""
    values = np.random.default_rng(seed).integers(40, 216, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def rectangle(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A mask whose subject is the middle of the photo: a half of its width and of its height."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 255
    return Image.fromarray(mask)


class DataFolder:
    """A legal data folder that a test may break: photos a0.jpg, a1.jpg, ..., then b0.jpg, ...

    `lines` is what `save` writes, the subjects first: records, or text as it is to stand there.
    """

    def __init__(
        self,
        path: Path,
        names: dict[str, str],
        photos_each: int = 3,
        filename: str = "metadata.jsonl",
    ):
        self.path = path
        self.metadata = path / filename
        self.lines: list = [{"id": names}]
        path.mkdir(parents=True, exist_ok=True)
        for i, (subject, name) in enumerate(names.items()):
            for j in range(photos_each):
                photo, mask = f"{subject}{j}.jpg", f"mask_{subject}{j}.png"
                noise(seed=10 * i + j).save(path / photo)
                rectangle().save(path / mask)
                text = f"A photo of a {name}, number {j}."
                self.lines.append(
                    {"id": subject, "file_name": photo, "mask_path": mask, "text": text}
                )
        self.save()

    def save(self) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in self.lines]
        self.metadata.write_text("\n".join(texts) + "\n", encoding="utf-8")
