"""Right pictures, composed of the subjects' photos: what a metric says of them is its ceiling.

Each shows the subjects that its prompt names where `inference.py`'s collage of that seed has them,
on the background that the prompt asks for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.backgrounds import asked_background
from mini.backgrounds import draw_background
from mini.world import SIZE
from mudi.ground.files import write_image, write_records
from mudi.init_noise import Layout
from mudi.metadata import Subjects
from mudi.pictures.jobs import PICTURES
from mudi.pictures.sampling import Shot, Stage


def write_composed(
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    subjects: Subjects,
    layout: Layout | None = None,
) -> None:
    """Write a picture a prompt and seed, named as `inference.py` names its own, and their list.

    Args:
        layout: of all; None: each seed's random one.

    Raises:
        ValueError: a prompt names no background of the miniature's world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = Stage(subjects, (SIZE, SIZE))
    lines = []
    for p, prompt in enumerate(prompts):
        for k, seed in enumerate(seeds):
            scene = stage.start(Shot(prompt, seed, 0, layout)).scene
            name = f"{p:03}_{k:03}.png"
            rng = np.random.default_rng([p, seed])
            behind = draw_background(asked_background(prompt), SIZE, rng)
            seen = np.any([np.asarray(mask) > 0 for mask in scene.visible], axis=0)
            pixels = np.where(seen[..., None], np.asarray(scene.image), behind)
            write_image(folder / name, Image.fromarray(pixels.round().astype(np.uint8)))
            lines.append({"image": name, "prompt": prompt, "seed": seed})
    write_records(folder / PICTURES, lines)
