"""What training will see: its own collages, and the command that trains on them."""

import shlex
import threading
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from PIL import Image

from mudi.backbones.table import BACKBONES, SDXL, Backbone
from mudi.data import DrawSchedule, Sample, SegMixDataset, mixed_samples
from mudi.ground.flags import range_complaints
from mudi.ground.sheets import outline
from mudi.metadata import Subjects
from mudi.pictures.args import SDXL_BASE
from mudi.studio.folder import PhotoFolder, stamp_of
from mudi.studio.pictures import png
from mudi.studio.server import Answers, Asked, Refusal, Reply
from mudi.training.args import MIXES, TrainingArgs, subject_scales
from mudi.training.checks import data_complaints, mixing_complaints
from mudi.training.runtime import sample_options

TILES = 12
LARGEST_SIDE = 2048  # px, of a collage that is only to be looked at
DEFAULTS = TrainingArgs()
# What follows is the runs' of train.sh and each backbone's example.sh.
PUBLISHED = {
    "sdxl": [
        f"--pretrained_model_name_or_path={SDXL_BASE}",
        "--pretrained_vae_model_name_or_path=madebyollin/sdxl-vae-fp16-fix",
        "--train_batch_size=1 --gradient_accumulation_steps=2 --gradient_checkpointing",
        "--max_train_steps=2010 --save_steps=200 --checkpointing_steps=20000",
        "--learning_rate=1e-4 --lr_warmup_steps=0 --rank=32",
    ],
    "flux": [
        "--pretrained_model_name_or_path=black-forest-labs/FLUX.1-dev --mixed_precision=bf16",
        "--train_batch_size=1 --gradient_accumulation_steps=4 --gradient_checkpointing",
        "--max_train_steps=2010 --save_steps=500 --checkpointing_steps=20000",
        "--learning_rate=3e-4 --lr_warmup_steps=0 --rank=32 --guidance_scale=1",
    ],
    "klein": [
        "--pretrained_model_name_or_path=black-forest-labs/FLUX.2-klein-base-4B",
        "--mixed_precision=bf16 --train_batch_size=1 --gradient_accumulation_steps=4",
        "--max_train_steps=2010 --save_steps=500 --checkpointing_steps=500",
        "--learning_rate=1e-4 --lr_warmup_steps=0 --rank=32 --gradient_checkpointing",
    ],
    "zimage": [
        "--pretrained_model_name_or_path=Tongyi-MAI/Z-Image --mixed_precision=bf16",
        "--train_batch_size=1 --gradient_accumulation_steps=4 --gradient_checkpointing",
        "--max_train_steps=2010 --save_steps=500 --checkpointing_steps=1000",
        "--learning_rate=1e-4 --lr_warmup_steps=0 --rank=32",
    ],
}


def answers(folder: PhotoFolder) -> Answers:
    """Return what the tab asks for."""
    dataset = lru_cache(1)(lambda wish: SegMixDataset(wish.subjects, wish.options))
    drawn = lru_cache(TILES)(lambda wish, seed, in_order, n: wish.sample(dataset(wish), n))
    drawing = threading.Lock()  # a data set's caches are one thread's

    def sample(asked: Asked, number: int) -> Sample:
        wish = _Wish(folder, asked)
        with drawing:
            return drawn(wish, wish.seed, wish.in_order, number)

    def collages(asked: Asked) -> dict[str, Any]:
        wish = _Wish(folder, asked)
        samples = [sample(asked, number) for number in range(TILES)]
        prompts = [{"prompt": s.prompt, "mixed": s.mixed} for s in samples]
        return {"prompts": prompts, "command": command(wish.args, wish.backbone)}

    def collage(asked: Asked) -> Reply:
        drawn = sample(asked, asked.whole("number", most=TILES - 1))
        return png(
            outline(drawn.pixels, drawn.mask) if drawn.mixed else Image.fromarray(drawn.pixels)
        )

    return {("GET", "collages"): collages, ("GET", "collage"): collage}


class _Wish:
    """Flags of the training as the page gives them, and the data that they are for.

    Equal ones have the same data set, whatever the seed.

    Raises:
        Refusal: training would refuse them, or the data.
    """

    def __init__(self, folder: PhotoFolder, asked: Asked):
        self.backbone: Backbone = BACKBONES.get(asked.text("style"), SDXL)
        self.in_order = asked.flag("in_order")
        self.args = TrainingArgs(
            instance_data_dir=str(folder.path),
            resolution=asked.whole("resolution", least=16, most=LARGEST_SIDE),
            segmix_prob=asked.number("segmix_prob"),
            segmix_num_subjects=asked.whole("segmix_num_subjects"),
            relative_scale=asked.number("relative_scale"),
            subject_scales=(asked.maybe_text("subject_scales") or "").split() or None,
            random_flip=asked.flag("random_flip"),
            mix=asked.text("mix"),
            seed=asked.whole("seed"),
        )
        problems = range_complaints(self.args)
        problems += data_complaints(self.args, self.backbone.size_unit)
        if self.args.mix not in MIXES:
            problems.append(f"--mix: one of {', '.join(MIXES)}")
        self.subjects: Subjects = folder.ready_subjects(resolution=self.args.resolution)
        problems += mixing_complaints(self.args, self.subjects, self.backbone.style)
        scales = None
        try:
            scales = subject_scales(self.args, self.subjects.names)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "\n".join(problems))
        options = sample_options(self.args, self.backbone.style, scales, self.seed)
        self.options = options if self.in_order else replace(options, segmix_prob=1.0)
        files = [path for photo in self.subjects.cuts for path in (photo.image, photo.mask)]
        files += [scene.image for scene in self.subjects.scenes]
        self._key = repr((self.options, self.subjects, [stamp_of(path) for path in files]))

    @property
    def seed(self) -> int:
        return self.args.seed or 0

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Wish) and other._key == self._key

    def sample(self, dataset: SegMixDataset, number: int) -> Sample:
        """Return a collage as `mudi.preview` numbers them, or a draw as the run has them."""
        if not self.in_order:
            return mixed_samples(dataset, [number], self.seed)[0]
        pictures, sources = len(self.subjects.pictures), self.subjects.sources
        [draws] = DrawSchedule(pictures, self.seed, TILES, 0, 1, sources=sources)
        return dataset[draws[number]][0]


def command(args: TrainingArgs, backbone: Backbone) -> str:
    """Return the command that trains so: the published run's, with these flags and this folder."""
    folder = str(args.instance_data_dir)
    own = [
        f"--instance_data_dir={shlex.quote(folder)}",
        f"--output_dir={shlex.quote(f'output/{Path(folder).name or backbone.name}')}",
        f"--resolution={args.resolution} --seed={args.seed} --segmix_prob={args.segmix_prob:g}",
    ]
    if args.segmix_num_subjects != DEFAULTS.segmix_num_subjects:
        own.append(f"--segmix_num_subjects={args.segmix_num_subjects}")
    if args.relative_scale:
        own.append(f"--relative_scale={args.relative_scale:g}")
    if args.subject_scales:
        own.append("--subject_scales " + " ".join(map(shlex.quote, args.subject_scales)))
    own += ["--random_flip"] * args.random_flip
    own += [f"--mix={args.mix}"] * (args.mix != DEFAULTS.mix)
    return " \\\n    ".join(
        [f"accelerate launch {backbone.script}", *own, *PUBLISHED[backbone.name]]
    )
