"""LoRAs trained and pictures made, unit by unit; what is there already is left as it is."""

import json
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from experiments.interventions import STARTS
from experiments.plan import LEARN_WORDS, Unit, Variant
from experiments.training import train, training_process
from mini import recipe
from mudi.ground.files import write_image
from mudi.ground.flags import DTYPES, flag, origins
from mudi.ground.work import Journal
from mudi.lora import WEIGHTS_NAME
from mudi.metadata import load_subjects
from mudi.pictures.loras import loras_in
from mudi.pictures.pipelines import BASE_FLAG, VAE_FLAG, load_pipeline
from mudi.pictures.sampling import Sampler, Sampling, Shot
from mudi.segmix import listed

BASE = "mini/weights/sdxl"
PROMPTS = (  # each on a background that the miniature knows
    "a photo of {subjects} on a white background",
    "a photo of {subjects} on a green striped background",
    "a picture of {subjects} in front of a blue gradient background",
    "{subjects} on an orange background",
)
MINIATURE_TRAINING = recipe.training_flags()
MINIATURE_WORDS = recipe.word_flags()
MINIATURE_PRIOR = "--num_images 15 --segmenter foreground --threshold 0.5"
ALWAYS = (  # a stopped training goes on too; its LoRA is read here only
    "--checkpointing_steps 500 --checkpoints_total_limit 1 --resume_from_checkpoint latest "
    "--report_to none --no-output_kohya_format --save_precision float32"
).split()


@dataclass
class MakingArgs:
    """training and pictures"""

    output: Path = flag(Path(), "folder for everything", required=True)
    prior_dir: Path | None = flag(
        None, "folder of prior sets by the same names; unset: made anew", origin=True
    )
    pretrained_model_name_or_path: str = flag(BASE, "SDXL folder or hub id", origin=True)
    pretrained_vae_model_name_or_path: str | None = flag(
        None, "a VAE that is safe in half precision", origin=True
    )
    train_flags: str = flag(
        MINIATURE_TRAINING,
        "flags of train_segmix_lora_sdxl.py for all trainings, with an equals sign "
        f'(--train_flags="{MINIATURE_TRAINING}")',
        origin=True,
    )
    word_flags: str = flag(
        MINIATURE_WORDS,
        f'more of them where words are learned (--word_flags="{MINIATURE_WORDS}")',
        origin=True,
    )
    prior_flags: str = flag(
        MINIATURE_PRIOR,
        "flags of generate_prior.py, where there is no --prior_dir "
        f'(--prior_flags="{MINIATURE_PRIOR}")',
        origin=True,
    )
    prompts: list[str] = flag(list(PROMPTS), "{subjects}: the names", nargs="+", origin=True)
    num_seeds: int = flag(6, "pictures a prompt", at_least=1)
    alone_seeds: int = flag(2, "pictures a prompt of each subject alone", at_least=0)
    trainings: list[int] = flag([0, 1, 2], "seeds of the LoRAs of each pair", nargs="+")
    steps: int = flag(recipe.STEPS, "denoising steps", at_least=1, origin=True)
    guidance_scale: float = flag(recipe.GUIDANCE_SCALE, "of classifier-free guidance", origin=True)
    batch_size: int = flag(8, "pictures at once", at_least=1)
    dtype: str | None = flag(
        None, "unset: fp32 on a CPU, fp16 on a GPU", choices=DTYPES, origin=True
    )


@dataclass(frozen=True)
class Job:
    """A picture: its file, relative to --output, and what is to be in it.

    Attributes:
        alone: the subject that it is to show alone; None: all.
    """

    image: str
    unit: Unit
    variant: Variant
    shot: Shot
    alone: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "data_set": self.unit.data_set.name,
            "variant": self.variant.name,
            "training": self.unit.seed,
            "alone": self.alone,
            "prompt": self.shot.prompt,
            "seed": self.shot.seed,
        }


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a run noted in run.json; flags that came after it have their defaults."""
    plain = json.loads(json.dumps(origins(MakingArgs()), default=str))
    return {**plain, **json.loads(path.read_text(encoding="utf-8"))}


def prior_dir(args: MakingArgs) -> Path:
    return args.prior_dir or args.output / "prior"


def lora_dir(unit: Unit, args: MakingArgs) -> Path:
    return args.output / "loras" / unit.name


def training_words(unit: Unit, args: MakingArgs) -> list[str]:
    """Return the training script's command line."""
    words = [f"{BASE_FLAG}={args.pretrained_model_name_or_path}"]
    if args.pretrained_vae_model_name_or_path:
        words.append(f"{VAE_FLAG}={args.pretrained_vae_model_name_or_path}")
    words += [f"--instance_data_dir={unit.data_set.folder}", f"--output_dir={lora_dir(unit, args)}"]
    words += [*ALWAYS, f"--seed={unit.seed}", *shlex.split(args.train_flags)]
    words += unit.training.flags
    if LEARN_WORDS in unit.training.flags:
        words += shlex.split(args.word_flags)
    if unit.training.prior:
        words.append(f"--class_data_dir={prior_dir(args) / unit.data_set.name}")
    return words


def jobs_of(unit: Unit, args: MakingArgs) -> Iterator[Job]:
    """Yield the pictures of a unit: every prompt and seed by every variant, then each alone."""
    names = unit.data_set.names
    for variant in unit.variants:
        folder = f"pictures/{unit.data_set.name}/{variant.name}/{unit.seed}"
        wishes: list[tuple[str | None, str, int]] = [(None, "", args.num_seeds)]
        if variant in unit.alone:
            wishes += [(subject, f"{subject}_alone_", args.alone_seeds) for subject in names]
        for alone, word, count in wishes:
            told = listed(list(names.values()) if alone is None else [names[alone]])
            scales = variant.scales(list(names))
            for p, template in enumerate(args.prompts):
                for seed in range(count):
                    prompt = template.replace("{subjects}", told)
                    shot = Shot(prompt, seed, variant.gamma, None, scales, variant.reward)
                    yield Job(f"{folder}/{word}{p:02}_{seed:03}.png", unit, variant, shot, alone)


def make(
    units: Sequence[Unit],
    args: MakingArgs,
    journal: Journal,
    device: torch.device,
    state: PartialState,
) -> None:
    """Train the LoRAs and make the pictures that are not there yet, unit by unit."""
    log = args.output / f"training.{state.process_index}.log"
    pipeline: DiffusionPipeline | None = None
    bar = tqdm(units, "LoRAs", disable=not state.is_main_process)
    with training_process(device, log) as process:
        for unit in bar:
            todo = [job for job in jobs_of(unit, args) if not is_done(job, args, journal)]
            if not todo:
                continue
            bar.set_postfix_str(unit.name)
            train_unit(unit, args, process)
            if pipeline is None:
                pipeline = load_pipeline(
                    args.pretrained_model_name_or_path,
                    args.pretrained_vae_model_name_or_path,
                    device,
                    getattr(torch, DTYPES[args.dtype]) if args.dtype else None,
                ).to(device)
            draw(unit, todo, pipeline, args, journal)


def is_done(job: Job, args: MakingArgs, journal: Journal) -> bool:
    return job.image in journal.done and (args.output / job.image).is_file()


def train_unit(unit: Unit, args: MakingArgs, process: ProcessPoolExecutor) -> None:
    """Train a unit's LoRA, unless that is done."""
    if not (lora_dir(unit, args) / WEIGHTS_NAME).is_file():
        process.submit(train, training_words(unit, args), unit.training.collages).result()


def draw(
    unit: Unit,
    jobs: Sequence[Job],
    pipeline: DiffusionPipeline,
    args: MakingArgs,
    journal: Journal,
) -> None:
    """Make a unit's pictures."""
    sampling = Sampling(None, args.steps, args.guidance_scale, unit.training.negative_prompt)
    subjects = load_subjects(unit.data_set.folder)
    with loras_in(pipeline, [str(lora_dir(unit, args))], [1.0]):
        for start, group in groupby(jobs, lambda job: job.variant.start):
            alike = list(group)
            sampler = Sampler(pipeline, sampling, subjects)
            if start is not None:
                sampler.stage = STARTS[start](subjects, sampler.size)
            pictures = sampler.draw([job.shot for job in alike], args.batch_size)
            for job, picture in zip(alike, pictures, strict=True):
                write_image(args.output / job.image, picture.image)
                journal.add(job.record)
