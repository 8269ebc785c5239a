"""The whole method at work on the trained miniature, in minutes on two CPU cores: `make demo`, or

    python -m mini.demo --output output/demo

Personalises the miniature on a pair of subjects twice, by the user's own scripts: plainly
(DreamBooth: no collages, ordinary noise) and by the method (Seg-Mix, mean-shifted noise). Makes the
same pictures with each, scores them by Detect-and-Compare and writes a sheet. A few pictures by a
small base model: they show the direction, they prove nothing; experiments/ is for that.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from detect_and_compare import load_detector, load_embedder, score_images
from detect_and_compare.draw import annotated
from detect_and_compare.measure import Record
from detect_and_compare.references import References, default_query, load_references
from mini import recipe
from mini.subjects import SETS, subjects_of, write_pair
from mini.training.detector import OVERLAP, SURE
from mini.world import SIZE
from mudi.ground.files import write_image
from mudi.ground.flags import flag, parse
from mudi.ground.sheets import contact_sheet
from mudi.images import load_rgb

ROOT = Path(__file__).parent.parent
SDXL = ROOT / "mini/weights/sdxl"
EMBEDDER = ROOT / "mini/weights/embedder_a"
DETECTOR = ROOT / "mini/weights/detector"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
LAUNCH += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]  # it warns of others
QUIET = {  # of the libraries' warnings and loading bars
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}
PICTURES = "pictures"
TILE = 192  # px; the pictures have 64


@dataclass(frozen=True)
class Method:
    """How a pair is learned and drawn."""

    title: str
    segmix_prob: float
    gamma: float


METHODS = {
    "plain": Method("DreamBooth", segmix_prob=0.0, gamma=0.0),
    "mudi": Method("Seg-Mix + mean-shifted noise", segmix_prob=0.3, gamma=recipe.GAMMA),
}


@dataclass
class DemoArgs:
    """demo"""

    output: Path = flag(ROOT / "output/demo", "folder to write")
    pair: str = flag("robot_and_teddy_bear", "of mini/subjects.py", choices=SETS)
    steps: int = flag(500, "optimizer steps of each LoRA; the recipe's 1200 take too long here")
    num_images: int = flag(4, "pictures with each method")


def parse_args(argv: list[str] | None = None) -> DemoArgs:
    return parse(DemoArgs, __doc__, argv)


def main(args: DemoArgs) -> None:
    subjects = subjects_of(args.pair)
    data = write_pair(args.output / args.pair, subjects, np.random.default_rng(0))
    prompt = f"a photo of {' and '.join(f'a {s.name}' for s in subjects)}, simple background."
    train(data, args.output, args.steps)
    for name, method in METHODS.items():
        print(f"{method.title}: {args.num_images} pictures", flush=True)
        draw(data, args.output / name, method, prompt, args.num_images)

    disable_progress_bar()
    references = load_references(data)
    results = score(references, {name: args.output / name / PICTURES for name in METHODS})
    path = write_image(args.output / "sheet.png", sheet(references, results))
    for name, pairs in results.items():
        scores = [record.score or 0.0 for _, record in pairs]
        good = sum(record.verdict == "good" for _, record in pairs)
        print(
            f"{METHODS[name].title}: D&C {np.mean(scores):.3f}, "
            f"{good} of {len(pairs)} pictures with both subjects, unmixed"
        )
    print(f"the sheet: {path}")


def train(data: Path, output: Path, steps: int) -> None:
    """Train each method's LoRA by the user's script, all at once, for a launch takes one core.

    The last one's progress is seen; the others' is kept in files.
    """
    print(f"{' and '.join(m.title for m in METHODS.values())}: {steps} steps each", flush=True)
    *others, last = [
        launch(
            "train_segmix_lora_sdxl.py",
            pretrained_model_name_or_path=SDXL,
            instance_data_dir=data,
            output_dir=output / name,
            **recipe.TRAINING | {"max_train_steps": steps},
            seed=42,
            segmix_prob=method.segmix_prob,
            report_to="none",
        )
        for name, method in METHODS.items()
    ]
    with ExitStack() as held:
        running = []
        for i, command in enumerate(others):
            file = held.enter_context((output / f"training_{i}.log").open("w+"))
            process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | QUIET)
            held.callback(process.kill)  # where the last one fails
            running.append((process, file))
        subprocess.run(last, env=os.environ | QUIET, check=True)
        for process, file in running:
            if process.wait():
                file.seek(0)
                raise SystemExit(f"a training failed:\n{file.read()}")


def draw(data: Path, lora: Path, method: Method, prompt: str, num_images: int) -> None:
    """Make pictures by the user's script."""
    command = launch(
        "inference.py",
        pretrained_model_name_or_path=SDXL,
        lora=lora,
        instance_data_dir=data,
        prompt=prompt,
        num_images=num_images,
        batch_size=num_images,
        steps=recipe.STEPS,
        guidance_scale=recipe.GUIDANCE_SCALE,
        gamma=method.gamma,
        output_dir=lora / PICTURES,
        overwrite=True,  # an earlier demo's
    )
    subprocess.run(command, env=os.environ | QUIET, check=True)


def launch(script: str, **flags: object) -> list[str]:
    """Return the command of a script; it shows its own progress. True is a flag without a value."""
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    return [*LAUNCH, str(ROOT / script), *words]


def score(
    references: References, folders: dict[str, Path]
) -> dict[str, list[tuple[Image.Image, Record]]]:
    """Return each folder's pictures with what Detect-and-Compare says of them."""
    queries = [default_query(name) for name in references.names.values()]
    detector = load_detector(str(DETECTOR), queries, SURE, OVERLAP)
    embedder = load_embedder(str(EMBEDDER))
    results = {}
    for name, folder in folders.items():
        images = [load_rgb(path) for path in sorted(folder.glob("0*.png"))]
        records = score_images(images, references.images, detector, embedder)
        results[name] = list(zip(images, records, strict=True))
    return results


def sheet(
    references: References, results: dict[str, list[tuple[Image.Image, Record]]]
) -> Image.Image:
    """Lay two references of each subject in the first row, then a row for each method."""
    columns = max(len(pairs) for pairs in results.values())
    shown = [
        (image, references.names[subject])
        for subject, images in references.images.items()
        for image in images[: columns // len(references.names)]
    ]
    shown += [(Image.new("RGB", (SIZE, SIZE), "white"), "")] * (columns - len(shown))
    for name, pairs in results.items():
        title = METHODS[name].title
        for image, record in pairs:
            large = annotated(image, record)
            shown.append((large, f"{title}: {record.score:.2f}, {record.verdict}"))
    images, captions = zip(*shown, strict=True)
    return contact_sheet(list(images), list(captions), columns=columns, tile=TILE)


if __name__ == "__main__":
    main(parse_args())
