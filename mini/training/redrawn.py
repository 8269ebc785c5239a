"""Scenes redrawn by a base, for the detector that is to look at its pictures.

    python -m mini.training.redrawn --output output/mini/redrawn --count 2000
    python -m mini.training.detector --redrawn output/mini/redrawn ...

A scene of random instances is noised part of the way and denoised by the base (SDEdit, arXiv
2108.01073), guided as its pictures are: things stay where they were, so their boxes are known, and
look as generated things do. No evaluated subject, nor anything that subjects wear, is drawn. A
stopped run goes on.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from mini.training.base import SHEET_GUIDANCE
from mini.training.base_model import load_pipeline
from mini.training.examples import COUNT_SHARES, NOUNS, Example, draw_counted
from mini.training.instances import TRAINING
from mini.training.state import hold_settings
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.files import replace_file, write_image
from mudi.ground.flags import MODEL_INDEX, flag, model_folder_complaints, parse, range_complaints
from mudi.ground.sheets import contact_sheet
from mudi.segmix import listed

WEIGHTS = Path(__file__).parent.parent / "weights"
SHARD = 50  # pictures a file, drawn at once
MOST = len(COUNT_SHARES)  # things a picture
STRENGTHS = (0.3, 0.55)  # share of the noise levels that a scene is taken back
STEPS = 20  # of the whole way
NO_BOX = -1  # instead of a noun, where a picture has fewer than MOST things
SHOWN = 32


@dataclass
class RedrawnArgs:
    """redrawn"""

    base: Path = flag(WEIGHTS / "sdxl", "folder of a miniature")
    output: Path = flag(Path(), "folder for the pictures", required=True)
    count: int = flag(2000, f"pictures, a multiple of {SHARD}", at_least=1)
    seed: int = flag(0, "of scenes and noise")


class Redrawn:
    """The pictures of a folder, as examples."""

    def __init__(self, folder: Path):
        """Read all shards.

        Raises:
            SetupError: there are none.
        """
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise SetupError(f"{folder}: no redrawn pictures; run mini.training.redrawn first")
        shards = [load_file(path) for path in paths]
        self._arrays = {key: np.concatenate([one[key] for one in shards]) for key in shards[0]}

    def __len__(self) -> int:
        return len(self._arrays["nouns"])

    def draw(self, rng: np.random.Generator) -> Example:
        """Return one of the pictures, mirrored or not."""
        chosen = int(rng.integers(len(self)))
        pixels, boxes, nouns, shown = (
            self._arrays[key][chosen] for key in ("pixels", "boxes", "nouns", "shown")
        )
        boxes, nouns = boxes[nouns != NO_BOX].copy(), nouns[nouns != NO_BOX]
        if rng.random() < 0.5:
            pixels, shown = pixels[:, ::-1].copy(), shown[:, ::-1].copy()
            boxes[:, 0] = 1 - boxes[:, 0]
        return Example(pixels, boxes, nouns.astype(np.int64), shown.astype(np.int64))


def parse_args(argv: list[str] | None = None) -> RedrawnArgs:
    return parse(RedrawnArgs, __doc__, argv)


@program
def main(args: RedrawnArgs) -> None:
    complaints = range_complaints(args)
    complaints += model_folder_complaints("--base", str(args.base), MODEL_INDEX)
    if args.count % SHARD:
        complaints.append(f"--count {args.count}: must be a multiple of {SHARD}")
    refuse(complaints)
    hold_settings(args.output, {"base": str(args.base), "seed": args.seed})
    pipeline = StableDiffusionXLImg2ImgPipeline(
        **load_pipeline(args.base).components,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for number in tqdm(range(args.count // SHARD), desc=f"{SHARD} pictures"):
        path = args.output / f"{number:05}.safetensors"
        if not path.is_file():
            arrays = redraw(pipeline, np.random.default_rng([args.seed, number]))
            replace_file(path, partial(save_file, arrays))
    pool = Redrawn(args.output)
    examples = [pool.draw(np.random.default_rng(i)) for i in range(SHOWN)]
    sheet = contact_sheet([outlined(one) for one in examples], [""] * SHOWN, 8, tile=128)
    print(f"{len(pool)} pictures; {write_image(args.output / 'sheet.png', sheet)}")


def redraw(
    pipeline: StableDiffusionXLImg2ImgPipeline, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw a shard: pixels (N, S, S, 3) uint8; boxes, nouns and shown as in `Example`, padded."""
    counts = 1 + rng.choice(MOST, SHARD, p=COUNT_SHARES)
    examples = [draw_counted(int(count), TRAINING, rng, soft_share=0.0) for count in counts]
    images = pipeline(
        [f"a photo of {listed([NOUNS[noun] for noun in one.nouns])}." for one in examples],
        image=[Image.fromarray(one.pixels) for one in examples],
        strength=float(rng.uniform(*STRENGTHS)),
        num_inference_steps=STEPS,
        guidance_scale=SHEET_GUIDANCE,
        generator=torch.Generator().manual_seed(int(rng.integers(2**31))),
    ).images
    boxes = np.zeros((SHARD, MOST, 4), np.float32)
    nouns = np.full((SHARD, MOST), NO_BOX, np.int16)
    for i, one in enumerate(examples):
        boxes[i, : len(one.boxes)], nouns[i, : len(one.nouns)] = one.boxes, one.nouns
    return {
        "pixels": np.stack([np.asarray(image) for image in images]),
        "boxes": boxes,
        "nouns": nouns,
        "shown": np.stack([one.shown for one in examples]).astype(np.int16),
    }


def outlined(example: Example) -> Image.Image:
    """Return the picture with its boxes."""
    pixels = example.pixels.copy()
    side = len(pixels)
    for x, y, width, height in example.boxes * side:
        left, right = np.clip([x - width / 2, x + width / 2 - 1], 0, side - 1).astype(int)
        top, bottom = np.clip([y - height / 2, y + height / 2 - 1], 0, side - 1).astype(int)
        pixels[[top, bottom], left : right + 1] = (255, 0, 255)
        pixels[top : bottom + 1, [left, right]] = (255, 0, 255)
    return Image.fromarray(pixels)


if __name__ == "__main__":
    main(parse_args())
