r"""Make a prior set: class pictures by SDXL, their masks, and class_metadata.jsonl.

    python generate_prior.py --gen_class "corgi" --gen_mask
    accelerate launch generate_prior.py --gen_class a="action figure" b="corgi" --gen_mask \
        --out_dir dataset/reg/actionfigure_2_and_dog0

With --gen_mask a picture counts when exactly one object of its class is found in it; otherwise it
is drawn anew, up to --tries times. Every picture's noise follows from --seed, its class, its number
and the try alone: a stopped run goes on with the same command and gives the same pictures; one that
you delete is drawn anew by its next try. Another --id in the same --out_dir adds its class.
"""

from dataclasses import dataclass
from pathlib import Path

from mudi.ground.flags import flag, id_table, origins, parse, range_complaints
from mudi.masks.args import DEFAULT_ID, MaskingArgs
from mudi.pictures.args import SDXL_BASE, PipelineArgs

PROMPT = "a photo of a {}, simple background, full body view, centered, sharp focus"
NEGATIVE_PROMPT = "cropped, close-up, several objects, crowd, text, watermark, blurry, deformed"
GENERATED_THRESHOLD = 0.4  # MuDI's, for generated pictures


@dataclass
class Wishes:
    """prior set"""

    gen_class: list[str] = flag([], "the class, or ID=CLASS for several", nargs="+", required=True)
    id: str | None = flag(
        None, f"the subject's id where --gen_class is one class; unset: {DEFAULT_ID}"
    )
    out_dir: Path | None = flag(None, "unset: dataset/prior/<classes>")
    num_images: int = flag(50, "pictures a class", at_least=1)
    gen_mask: bool = flag(False, "make masks, without which nothing can train")
    mask_dir: Path | None = flag(None, "a folder in --out_dir; unset: --out_dir itself")
    owl_query: list[str] | None = flag(
        None, "what the detector looks for; unset: the class", nargs="+"
    )
    tries: int = flag(10, "at most, until one object is found", at_least=1)


@dataclass
class Pictures:
    """pictures"""

    prompt: str = flag(PROMPT, "{} is the class", origin=True)
    negative_prompt: str = flag(NEGATIVE_PROMPT, "what to avoid", origin=True)
    num_inference_steps: int | None = flag(
        None, "unset: the pipeline's own", at_least=1, origin=True
    )
    guidance_scale: float | None = flag(None, "unset: the pipeline's own", origin=True)
    resolution: int | None = flag(None, "side (px); unset: the model's own", origin=True)
    batch_size: int = flag(4, "pictures drawn at once", at_least=1)
    seed: int = flag(0, "of all pictures", origin=True)


@dataclass
class PriorArgs(Wishes, Pictures, PipelineArgs, MaskingArgs):
    """What this script takes."""


def parse_args(argv: list[str] | None = None) -> PriorArgs:
    return parse(
        PriorArgs,
        __doc__,
        argv,
        pretrained_model_name_or_path=SDXL_BASE,
        threshold=GENERATED_THRESHOLD,
    )


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from tqdm.auto import tqdm

from mudi.backbones.table import SDXL
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.files import unwritable, write_image
from mudi.ground.locks import hold
from mudi.ground.work import Journal, join_processes, share
from mudi.masks import segment
from mudi.masks.folder import (
    is_plausible,
    load_models,
    masking_complaints,
    write_mask,
)
from mudi.masks.prior import (
    Job,
    check_log,
    class_lines,
    is_done,
    read_listed,
    settings_of,
    unfinished,
    write_class_metadata,
)
from mudi.pictures.pipelines import (
    load_pipeline,
    pipeline_backbone,
    pipeline_complaints,
    pipeline_settings,
    place,
)

LOG = "prior_log.jsonl"


@program
def main(args: PriorArgs) -> None:
    problems = [*pipeline_complaints(args), *number_complaints(args)]
    classes = read_classes(args, problems)
    queries = read_queries(args, classes, problems)
    out_dir = args.out_dir or Path("dataset/prior") / "_and_".join(
        noun.replace(" ", "_") for noun in classes.values()
    )
    mask_dir = args.mask_dir or out_dir
    if not mask_dir.resolve().is_relative_to(out_dir.resolve()):
        problems.append(f"--mask_dir {mask_dir}: must lie in {out_dir}, which its file names")
    if args.gen_mask:
        problems += masking_complaints(args)
    if why := unwritable(out_dir):
        problems.append(f"--out_dir {out_dir}: {why}")
    listed = read_listed(out_dir, classes, problems)
    refuse(problems)

    state = join_processes()
    hold(out_dir, state)
    journal = Journal(out_dir / LOG, "file_name", state)
    jobs = [
        Job(subject, noun, queries[subject], index)
        for subject, noun in classes.items()
        for index in range(args.num_images)
    ]
    check_log(jobs, journal)
    todo = unfinished(jobs, journal, out_dir, args.gen_mask, args.tries, origins(args))
    if todo:
        make(share(todo, state), args, out_dir, mask_dir, journal, state)
    names = [job.image_name for job in jobs]
    records = journal.finish(names)
    if state.is_main_process:
        finish(args, out_dir, classes, listed, records, names)


def number_complaints(args: PriorArgs) -> list[str]:
    """Complain about values that can't be meant."""
    complaints = range_complaints(args)
    if args.resolution and args.resolution % 8:
        complaints.append(f"--resolution {args.resolution}: must be a multiple of 8")
    if "{}" not in args.prompt:
        complaints.append(f'--prompt "{args.prompt}": write {{}} where the class goes')
    return complaints


def read_classes(args: PriorArgs, problems: list[str]) -> dict[str, str]:
    """Return the class noun of every id that --gen_class and --id name."""
    words = args.gen_class
    if len(words) == 1 and "=" not in words[0]:
        words = [f"{args.id or DEFAULT_ID}={words[0]}"]
    elif args.id:
        problems.append("--id goes with one class; --gen_class names the ids itself")
    classes = id_table(words, "--gen_class", problems)
    problems += [
        f'id "{subject}": up to 99 letters, digits, "_" and "-", as files are named after it'
        for subject in classes
        if not re.fullmatch(r"[\w-]{1,99}", subject)
    ]
    return classes


def read_queries(args: PriorArgs, classes: dict[str, str], problems: list[str]) -> dict[str, str]:
    """Return what the detector looks for, by id."""
    words = args.owl_query or []
    if len(words) == 1 and "=" not in words[0]:
        return dict.fromkeys(classes, words[0])
    table = id_table(words, "--owl_query", problems)
    problems += [f"--owl_query: no class with id {name}" for name in table if name not in classes]
    return classes | table


def make(
    jobs: list[Job],
    args: PriorArgs,
    out_dir: Path,
    mask_dir: Path,
    journal: Journal,
    state: PartialState,
) -> None:
    """Draw pictures until each has one object, and write them with their masks."""
    queries = {job.query for job in jobs}
    cut = masker(args, queries, state.device) if args.gen_mask else None
    settings = pipeline_settings(args)
    if pipeline_backbone(settings["base"], args.revision, args.cache_dir) is not SDXL:
        raise SetupError(f"{settings['base']}: not an SDXL model, which class pictures are made by")
    pipeline = load_pipeline(**settings, device=state.device)
    pipeline.vae.enable_slicing()  # SDXL's own decodes in float32: a picture at a time
    place(pipeline, state.device, args.cpu_offload)
    waiting, origin = deque(jobs), origins(args)
    with tqdm(total=len(jobs), desc="pictures", disable=not state.is_main_process) as bar:
        while waiting:
            batch = [waiting.popleft() for _ in range(min(args.batch_size, len(waiting)))]
            for job, image in zip(batch, draw(pipeline, batch, args), strict=True):
                mask = None
                if cut is not None:
                    mask, num_objects = cut(image, job.query)
                    job = replace(job, objects=(*job.objects, num_objects))
                if cut is not None and mask is None and len(job.objects) < args.tries:
                    waiting.append(job)
                    continue
                record = write_picture(job, image, mask, out_dir, mask_dir)
                journal.add({**record, "settings": settings_of(job, origin)})
                bar.update()


def write_picture(
    job: Job, image: Image.Image, mask: np.ndarray | None, out_dir: Path, mask_dir: Path
) -> dict:
    """Write a picture with its mask, if it has one; return its line for the log.

    A picture that was looked at in vain is given up: it is noted, not written.
    """
    record: dict[str, Any] = {"file_name": job.image_name, "id": job.subject, "class": job.noun}
    if job.objects:
        record["objects"] = job.objects
    if mask is not None:
        write_mask(mask_dir / job.mask_name, mask)
        record["mask_path"] = os.path.relpath(mask_dir / job.mask_name, out_dir)
    if mask is not None or not job.objects:
        write_image(out_dir / job.image_name, image)
    return record


def draw(
    pipeline: StableDiffusionXLPipeline, batch: list[Job], args: PriorArgs
) -> list[Image.Image]:
    """Draw one picture a job."""
    given = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale")}
    return pipeline(
        [args.prompt.replace("{}", job.noun) for job in batch],
        negative_prompt=[args.negative_prompt] * len(batch),
        **{name: value for name, value in given.items() if value is not None},
        height=args.resolution,
        width=args.resolution,
        generator=[job.generator(args.seed) for job in batch],
    ).images


def masker(
    args: PriorArgs, queries: Iterable[str], device: torch.device
) -> Callable[[Image.Image, str], tuple[np.ndarray | None, int]]:
    """Return what finds a text's object in a picture: its mask, if it is one, and their number.

    Raises:
        SetupError: the models can't be loaded, or a query is too long for the detector.
    """
    detect, segmenter = load_models(
        args.detector, args.segmenter, args.sam_checkpoint, args.sam_type, device
    )
    detect.check(queries)

    def cut(image: Image.Image, query: str) -> tuple[np.ndarray | None, int]:
        [found] = detect([image], [[query]], args.threshold)
        if len(found) != 1:
            return None, len(found)
        mask = segmenter(image, segment.widen(found[0].box, image.size))
        return (mask if is_plausible(mask) else None), 1

    return cut


def finish(
    args: PriorArgs,
    out_dir: Path,
    classes: dict[str, str],
    listed: list[dict],
    records: list[dict],
    wanted: list[str],
) -> None:
    """Write class_metadata.jsonl; say what there is and what is missing.

    Args:
        listed: the lines of an earlier one; what they say of pictures that are there is kept.
        records: the log.
        wanted: file names of this run's pictures.

    Raises:
        SetupError: a class has no picture at all, or the folder can't be read as a data folder.
    """
    made = [record for record in records if is_done(record, out_dir, args.gen_mask)]
    counts = Counter(record["id"] for record in made)
    for subject, noun in classes.items():
        print(f"{noun}: {counts[subject]} pictures in {out_dir}")
    if not args.gen_mask:
        print("They have no masks, so nothing can train on them; --gen_mask adds them.")
        return

    lines = class_lines(listed, records, made)
    if lines[1:]:
        write_class_metadata(out_dir, lines)
        print(f"{out_dir} is ready: --with_prior_preservation --class_data_dir {out_dir}")
    failures = [
        record
        for record in records
        if record["file_name"] in wanted and record not in made and "objects" in record
    ]
    for subject, noun in classes.items():
        tell_failures(noun, args.tries, [r for r in failures if r["id"] == subject])
    empty = [noun for subject, noun in classes.items() if not counts[subject]]
    if empty:
        raise SetupError(f"no picture of {' and '.join(empty)} succeeded")


def tell_failures(noun: str, tries: int, failures: list[dict]) -> None:
    """Say what was seen in the pictures that were given up, and what to do."""
    if not failures:
        return
    seen = Counter(min(count, 2) for record in failures for count in record["objects"])
    print(
        f"{noun}: {len(failures)} pictures were given up after {tries} tries each "
        f"(no object was found {seen[0]} times, several {seen[2]} times, one without a usable "
        f"mask {seen[1]} times); reword --owl_query or --prompt, or change --threshold"
    )


if __name__ == "__main__":
    main(ARGS)
