r"""Make pictures of several subjects together, from mean-shifted noise, by any base known here.

    python inference.py --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \
        --lora output/robot_and_teddy_p0.3_s0 --instance_data_dir dataset/category/robot_and_teddy \
        --prompt "a photo of a olis robot and a hta teddy bear on a beach" \
        --num_images 8 --output_dir output/pictures

Sampling starts from noise whose mean is shifted, by gamma times the latents of a collage of the
subjects that the prompt names, so that each has its place from the first step on. gamma 0 is
ordinary sampling; the larger, the more of the collage stays. `--gamma 3x` counts in units of the
signal at the first step, 1/sqrt(sigma^2 + 1) of the scheduler's first sigma: 1x is what a plain
forward process would leave of the collage there. The log tells both.

Each picture follows from --seed, its number and the flags alone: a stopped run goes on with the
same command, and `accelerate launch inference.py` shares the pictures among processes.
"""

from mudi.best_of.args import BestArgs
from mudi.ground.flags import parse
from mudi.pictures.args import LLM, RANDOM, PictureArgs


def parse_args(argv: list[str] | None = None) -> BestArgs:
    return parse(BestArgs, __doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import hashlib
import json
import logging
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from mudi.best_of.asked import complaints_of, file_layout, read_asked
from mudi.best_of.candidates import LIST, make_best
from mudi.ground.chat import LlmError
from mudi.ground.errors import SetupError, loading, program, refuse
from mudi.ground.files import write_image, write_text
from mudi.ground.locks import hold
from mudi.ground.work import Journal, join_processes, share
from mudi.images import load_rgb
from mudi.init_noise import Layout, LayoutError
from mudi.metadata import Subjects
from mudi.pictures.chat_model import llm_layout
from mudi.pictures.export import start_latent, write_latent
from mudi.pictures.jobs import (
    PICTURES,
    SHEET,
    Job,
    check_unchanged,
    origin_of,
    settings_of,
    write_picture,
)
from mudi.pictures.loras import load_loras, lora_outlines
from mudi.pictures.pipelines import (
    base_scheduler,
    load_pipeline,
    pipeline_backbone,
    pipeline_complaints,
    pipeline_settings,
    place,
)
from mudi.pictures.sampling import (
    SCHEDULERS,
    Picture,
    Sampler,
    Sampling,
    Shot,
    Stage,
    set_scheduler,
    signal_unit,
    start_sheet,
)
from mudi.pictures.shot_args import (
    has_unit,
    named_subjects,
    negative_prompt,
    read_gamma,
)
from mudi.pictures.words import word_complaints

SHEET_ROWS = 16
DEFAULT_STEPS = 50  # of the stock SDXL pipeline

logger = logging.getLogger("mudi")


@program
def main(args: BestArgs) -> None:
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    problems = pipeline_complaints(args)
    asked = read_asked(args, problems)
    refuse(problems)
    base = args.pretrained_model_name_or_path
    backbone = pipeline_backbone(base, args.revision, args.cache_dir)
    prompts, subjects, gamma = asked.prompts, asked.subjects, asked.gamma_for(backbone)
    problems = complaints_of(args, asked, backbone)
    for told in lora_outlines(args.lora, backbone, problems, args.cache_dir):
        for note in told.notes:
            logger.warning(note)
    refuse(problems)
    used = [path for path, scale in zip(args.lora, args.lora_scales, strict=True) if scale != 0]
    refuse(word_complaints(used, args.cache_dir))
    if has_unit(args.gamma):
        gamma = plain_gamma(args, subjects.names if subjects else ())

    state = join_processes()
    hold(args.output_dir, state)
    layouts: list[Layout | None] = [None] * len(prompts)
    if subjects and args.layout != RANDOM:
        layouts = read_layouts(args, prompts, subjects, state)
    shots = [
        Shot(prompt, args.seed, gamma, layout, asked.scales, asked.reward)
        for prompt, layout in zip(prompts, layouts, strict=True)
    ]
    jobs = [
        Job(f"{p:03}_{k:03}.png", replace(shot, seed=shot.seed + k))
        for p, shot in enumerate(shots)
        for k in range(args.num_images)
    ]
    if args.overwrite and state.is_main_process:
        forget(args.output_dir)
    state.wait_for_everyone()
    if asked.basis is None:
        make_all(jobs, args, subjects, state)
    else:
        load = partial(load_sampler, args, subjects, jobs, state)
        make_best(jobs, args, asked.basis, origin_of(args, subjects), load, state)


def forget(folder: Path) -> None:
    """Remove the lists of an earlier run's pictures."""
    for name in (PICTURES, LIST):
        for path in folder.glob(f"{name}*"):
            path.unlink()


def make_all(
    jobs: list[Job], args: PictureArgs, subjects: Subjects | None, state: PartialState
) -> None:
    """Make the pictures that are not there yet, and the sheet."""
    origin = origin_of(args, subjects)
    journal = Journal(args.output_dir / PICTURES, "image", state)
    todo = [job for job in jobs if not is_done(job, journal, args, origin)]
    if todo or args.export_noise:
        sampler = load_sampler(args, subjects, jobs, state)
        export_noise(args, jobs[0], sampler, origin, state)
        make(share(todo, state), sampler, args, journal, state, origin)
    records = journal.finish([job.name for job in jobs])
    if state.is_main_process:
        pictures = finished_pictures(jobs, records[:SHEET_ROWS], args.output_dir, subjects)
        write_image(args.output_dir / SHEET, start_sheet(pictures))
        print(f"{len(jobs)} pictures in {args.output_dir}; look at {args.output_dir / SHEET}")


def plain_gamma(args: PictureArgs, ids: Collection[str]) -> float | dict[str, float]:
    """Return what --gamma is in the formula's own unit.

    Raises:
        RefusedError: it counts in a signal that is not there.
    """
    unit = gamma_unit(args)
    if unit is None:
        told = " ".join(args.gamma or [])
        refuse([f"--gamma {told}: sampling starts from noise alone here; give it without x"])
    return read_gamma(args.gamma, ids, [], unit or 0.0) or 0.0


def gamma_unit(args: PictureArgs) -> float | None:
    """Return the gamma that equals the signal at the first step; None for flow matching."""
    base = args.pretrained_model_name_or_path
    scheduler = base_scheduler(base, args.revision, args.cache_dir)
    if args.scheduler:
        scheduler = SCHEDULERS[args.scheduler].from_config(scheduler.config)
    return signal_unit(scheduler, args.steps or DEFAULT_STEPS)


def read_layouts(
    args: PictureArgs, prompts: list[str], subjects: Subjects, state: PartialState
) -> list[Layout | None]:
    """Return each prompt's layout from --layout's file or the chat model.

    What the chat model answers is kept in the output folder, so that it is asked once a prompt.

    Raises:
        SetupError: there is no usable layout.
    """
    layouts: list[Layout | None] = []
    for prompt in prompts:
        path = Path(args.layout)
        if args.layout == LLM:
            names = [subjects.names[subject] for subject in named_subjects(prompt, subjects.names)]
            name = hashlib.sha256(f"{prompt} {names}".encode()).hexdigest()[:8]
            path = args.output_dir / f"layout_{name}.json"
            if state.is_main_process and not path.is_file():
                ask_layout(args, prompt, names, path)
            state.wait_for_everyone()
        layouts.append(file_layout(path, prompt, subjects))
    return layouts


def ask_layout(args: PictureArgs, prompt: str, names: list[str], path: Path) -> None:
    """Write the chat model's layout."""
    size = (args.width or args.resolution or 1024, args.height or args.resolution or 1024)
    try:
        layout = llm_layout(prompt, names, args.llm_url or "", args.llm_model or "", size)
    except (LlmError, LayoutError) as error:
        raise SetupError(f"--layout {args.layout}: {error}") from error
    write_text(path, json.dumps(asdict(layout)))


def is_done(job: Job, journal: Journal, args: PictureArgs, origin: dict[str, Any]) -> bool:
    """Say whether an earlier run made this very picture.

    Raises:
        SetupError: it made another one of that name.
    """
    record = journal.done.get(job.name)
    if record is None or not (args.output_dir / job.name).is_file():
        return False
    check_unchanged(args.output_dir / job.name, record, settings_of(job, origin))
    return True


def load_sampler(
    args: PictureArgs, subjects: Subjects | None, jobs: list[Job], state: PartialState
) -> Sampler:
    """Load the pipeline and its LoRAs, on this process's device; tell what the jobs start from."""
    pipeline = load_pipeline(**pipeline_settings(args), device=state.device)
    with loading("--lora", " ".join(args.lora)):
        load_loras(pipeline, args.lora, args.lora_scales, args.cache_dir)
    side = (args.resolution, args.resolution) if args.resolution else None
    size = (args.width, args.height) if args.width and args.height else side
    sampling = Sampling(size, args.steps, args.guidance_scale, negative_prompt(args))
    if args.scheduler:
        set_scheduler(pipeline, args.scheduler)
    sampler = Sampler(pipeline, sampling, subjects, state.device)
    place(pipeline, state.device, args.cpu_offload)
    if state.is_main_process:
        tell_gamma(jobs[0].shot.gamma, signal_unit(pipeline.scheduler, args.steps or DEFAULT_STEPS))
        if args.reward_guidance:
            for prompt in dict.fromkeys(job.shot.prompt for job in jobs):
                logger.info('reward guidance asks the base for "%s"', sampler.base_prompt(prompt))
    return sampler


def export_noise(
    args: PictureArgs, job: Job, sampler: Sampler, origin: dict[str, Any], state: PartialState
) -> None:
    """Write what a picture starts from for ComfyUI, if that is wanted."""
    path = args.export_noise
    if path is None or not state.is_main_process:
        return
    alphas_cumprod = sampler.pipeline.scheduler.alphas_cumprod
    latent = start_latent(sampler.noise(job.shot), alphas_cumprod)
    write_latent(path, latent, json.dumps(settings_of(job, origin), ensure_ascii=False))
    logger.info("%s: the start of %s; copy it into ComfyUI's input folder", path, job.name)


def make(
    jobs: list[Job],
    sampler: Sampler,
    args: PictureArgs,
    journal: Journal,
    state: PartialState,
    origin: dict[str, Any],
) -> None:
    """Make pictures and write each with its line."""
    pictures = sampler.draw([job.shot for job in jobs], args.batch_size)
    bar = tqdm(pictures, "pictures", len(jobs), disable=not state.is_main_process)
    for job, picture in zip(jobs, bar, strict=True):
        journal.add(write_picture(job, picture, args.output_dir / job.name, origin))


def tell_gamma(gamma: float | dict[str, float], unit: float | None) -> None:
    """Log gamma, also in units of the scheduler's own signal at the first step."""
    if not unit:
        logger.info("gamma %s (sampling starts without signal here: there is no unit)", gamma)
        return
    table = gamma if isinstance(gamma, dict) else {"all": gamma}
    told = ", ".join(f"{name}: {value:g} = {value / unit:.2f}x" for name, value in table.items())
    logger.info("gamma, and in units of the signal at the first step (%.3f): %s", unit, told)


def finished_pictures(
    jobs: list[Job], records: list[dict[str, Any]], folder: Path, subjects: Subjects | None
) -> list[Picture]:
    """Read pictures and lay out their starts again."""
    stage = Stage(subjects, tuple(records[0]["canvas"])) if subjects else None
    pictures = []
    for job, record in zip(jobs, records, strict=False):
        start = stage.start(job.shot) if stage and "start" in record else None
        pictures.append(Picture(job.shot, load_rgb(folder / job.name), start))
    return pictures


if __name__ == "__main__":
    main(ARGS)
