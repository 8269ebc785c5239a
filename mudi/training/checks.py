"""Everything that can be wrong with the flags and the data, found before a model is loaded.

Knows no torch.
"""

import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import perm
from pathlib import Path

from mudi import segmix
from mudi.backbones.table import Backbone
from mudi.ground.errors import SetupError, refuse
from mudi.ground.files import unwritable
from mudi.ground.flags import (
    MODEL_INDEX,
    model_folder_complaints,
    range_complaints,
    text_complaints,
)
from mudi.ground.lora_families import family_of
from mudi.ground.lora_outline import LoraFileError, family_complaint, outline
from mudi.metadata import PRIOR_FILENAME, MetadataError, Photo, Subjects, load_subjects
from mudi.segmix import SegMixStyle
from mudi.training.args import (
    NO_DATASETS,
    OPTIMIZERS,
    PRIOR_POINTER,
    TRACKERS,
    TrainingArgs,
    subject_scales,
    trackers,
)
from mudi.training.checkpoints import other_runs, resolve_resume
from mudi.words import WordError, words_file, words_of

DEFAULT_CAPTION_KEY = "text"
MAX_PROMPTS = 2000  # each is encoded once and kept; SDXL's take 0.3 MB apiece in half precision

logger = logging.getLogger("mudi")


@dataclass(frozen=True)
class Data:
    """What a run trains on; `scales` is the fixed scale of each subject id, or None."""

    subjects: Subjects
    prior: Subjects | None
    scales: dict[str, float] | None


def check_args(args: TrainingArgs, backbone: Backbone) -> list[str]:
    """Return everything that is wrong with the shared flags, one line each.

    Args:
        backbone: what the script trains.
    """
    return [
        *args.refused,
        *text_complaints(args),
        *_number_complaints(args),
        *_model_complaints(args, backbone),
        *_start_complaints(args, backbone),
        *_word_complaints(args, backbone),
        *data_complaints(args, backbone.size_unit),
        *_box_complaints(args, backbone),
        *_optimizer_complaints(args),
        *_output_complaints(args),
    ]


def _number_complaints(args: TrainingArgs) -> list[str]:
    complaints = range_complaints(args)
    if args.fits is not None and not args.dry_run:
        complaints.append("--fits goes with --dry_run")
    return complaints


def _model_complaints(args: TrainingArgs, backbone: Backbone) -> list[str]:
    base_flag, other_flag = "--pretrained_model_name_or_path", "--validation_model"
    complaints = [f"{base_flag} is missing: a base model's folder or hub id"] * (not args.base)
    complaints += _kind_complaints(base_flag, args.base, backbone)
    complaints += _kind_complaints(other_flag, args.validation_model or "", backbone)
    if args.train_text_encoder and len(family_of(pipeline=backbone.pipeline).parts) == 1:
        complaints.append(f"--train_text_encoder: {backbone.title}'s LoRAs have no part for it")
    if args.validation_model and not args.validation_prompt:
        complaints.append(f"{other_flag} draws --validation_prompt, and there is none")
    return complaints


def _kind_complaints(flag: str, name: str, backbone: Backbone) -> list[str]:
    """Complain about a folder of another kind of model; of hub ids see `targets`."""
    complaints = model_folder_complaints(flag, name, MODEL_INDEX) if name else []
    if complaints or not name or not Path(name).is_dir():
        return complaints
    try:
        kind = json.loads((Path(name) / MODEL_INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{flag} {name}: its {MODEL_INDEX} is broken ({error!r})"]
    if kind != backbone.pipeline:
        return [f"{flag} {name}: a {kind}; this script trains {backbone.pipeline}s"]
    return []


def _start_complaints(args: TrainingArgs, backbone: Backbone) -> list[str]:
    """Complain about a --resume_lora that does not fit the adapters that the flags ask for."""
    if args.resume_lora is None:
        return []
    try:
        start = outline(Path(args.resume_lora))
    except LoraFileError as error:
        return [f"--resume_lora {error}"]
    told = f"--resume_lora {start.file}"
    if complaint := family_complaint(start, backbone.pipeline, backbone.title):
        return [f"--resume_lora {complaint}"]
    complaints = []
    if len(start.ranks) > 1:
        ranks = ", ".join(map(str, start.ranks))
        complaints.append(
            f"{told}: its layers have ranks {ranks}; python -m mudi.merge_lora makes one"
        )
    elif start.ranks != (args.rank,):
        complaints.append(f"{told}: its rank is {start.ranks[0]}; pass --rank {start.ranks[0]}")
    for flag, has, what in (
        ("use_dora", start.is_dora, "DoRA magnitudes"),
        ("train_text_encoder", len(start.parts) > 1, "text encoder weights"),
    ):
        if has and not getattr(args, flag):
            complaints.append(f"{told}: has {what}; pass --{flag}")
        if getattr(args, flag) and not has:
            complaints.append(f"{told}: has no {what}; leave --{flag} out")
    return complaints


def _word_complaints(args: TrainingArgs, backbone: Backbone) -> list[str]:
    if args.learn_words and backbone.no_words:
        return [f"--learn_words: not with {backbone.title}: {backbone.no_words}"]
    if args.resume_lora is None or args.learn_words:
        return []
    file = words_file(Path(args.resume_lora))
    return [f"--resume_lora: {file} are learned words; pass --learn_words"] if file else []


def _box_complaints(args: TrainingArgs, backbone: Backbone) -> list[str]:
    if not args.caption_boxes:
        return []
    if not backbone.style.reads_boxes:
        return [f"--caption_boxes: {backbone.title}'s prompts carry no boxes; leave it out"]
    if args.mix == "cutmix":
        return ["--caption_boxes are of subjects cut out: not with --mix cutmix"]
    if getattr(args, "encode_on_cpu", False):
        return ["--caption_boxes encodes prompts in every step: leave --encode_on_cpu out"]
    return []


def data_complaints(args: TrainingArgs, multiple_of: int) -> list[str]:
    """Complain about flags of data and Seg-Mix, as far as they can be judged without the data."""
    complaints = []
    if not args.instance_data_dir and not args.refused:
        complaints.append("--instance_data_dir is missing: a folder with metadata.jsonl")
    if args.image_column != "image":
        complaints.append(f"--image_column {args.image_column}: {NO_DATASETS}")
    if args.resolution < multiple_of or args.resolution % multiple_of:
        complaints.append(f"--resolution {args.resolution}: must be a multiple of {multiple_of}")
    if args.with_prior_preservation and not args.class_data_dir:
        complaints.append(f"--with_prior_preservation needs --class_data_dir: {PRIOR_POINTER}")
    if args.relative_scale and args.subject_scales:
        complaints.append("--relative_scale and --subject_scales say the same thing: give one")
    if args.segmix_pool > 0 and args.segmix_prob == 0:
        complaints.append(
            "--segmix_pool keeps collages, and --segmix_prob 0 makes none: leave one out"
        )
    if args.mix == "cutmix" and args.segmix_num_subjects != segmix.CUTMIX_SUBJECTS:
        complaints.append("--mix cutmix joins two photos: leave --segmix_num_subjects out")
    if args.mix == "cutmix" and (args.relative_scale or args.subject_scales):
        complaints.append(
            "--mix cutmix takes photos as they are: no --relative_scale, --subject_scales"
        )
    return complaints


def _optimizer_complaints(args: TrainingArgs) -> list[str]:
    complaints = []
    optimizer = args.optimizer.lower()
    if optimizer not in OPTIMIZERS:
        complaints.append(f"--optimizer {args.optimizer}: {', '.join(OPTIMIZERS)} are known")
    if optimizer == "prodigy" and find_spec("prodigyopt") is None:
        complaints.append('--optimizer prodigy: not installed; pip install -e ".[prodigy]"')
    if optimizer != "adamw" and args.use_8bit_adam:
        complaints.append("--use_8bit_adam goes with --optimizer AdamW only")
    if args.use_8bit_adam and not args.dry_run and find_spec("bitsandbytes") is None:
        complaints.append('--use_8bit_adam: not installed; pip install -e ".[8bit]"')
    xformers = args.enable_xformers_memory_efficient_attention
    if xformers and find_spec("xformers") is None:
        complaints.append(
            "--enable_xformers_memory_efficient_attention: xformers is not installed; "
            "PyTorch's own attention, the default, is as lean"
        )
    schedulers = (
        "linear cosine cosine_with_restarts polynomial constant constant_with_warmup".split()
    )
    if args.lr_scheduler not in schedulers:
        complaints.append(f"--lr_scheduler {args.lr_scheduler}: known are {', '.join(schedulers)}")
    return complaints


def _output_complaints(args: TrainingArgs) -> list[str]:
    complaints = []
    for tracker in trackers(args.report_to):
        if tracker not in TRACKERS:
            known = ", ".join((*TRACKERS, "all", "none"))
            complaints.append(f"--report_to {tracker}: unknown; there are {known}")
        elif find_spec(tracker) is None:
            complaints.append(f"--report_to {tracker}: not installed; pip install {tracker}")
    if not args.output_dir:
        complaints.append("--output_dir is missing")
    elif why := unwritable(Path(args.output_dir)):
        complaints.append(f"--output_dir {args.output_dir}: {why}")
    else:
        complaints += _resume_complaints(args)
    return complaints


def _resume_complaints(args: TrainingArgs) -> list[str]:
    """Complain about a checkpoint that can't be continued, and of others' that are in the way."""
    output_dir, wish = Path(args.output_dir), args.resume_from_checkpoint
    try:
        resume = resolve_resume(output_dir, wish) if wish else None
    except ValueError as error:
        return [f"--resume_from_checkpoint: {error}"]
    others = ", ".join(path.name for path in other_runs(output_dir, resume))
    if not others or args.overwrite_output_dir:
        return []
    goes_on = f"not of the run up to {resume.name}" if resume else "of another run"
    advice = "continue that by --resume_from_checkpoint latest, take another folder, or pass "
    return [
        f"--output_dir {output_dir}: holds {others}, {goes_on}; {advice}--overwrite_output_dir, "
        "which removes its checkpoint-* and save-*"
    ]


def load_data(args: TrainingArgs, style: SegMixStyle, complaints: list[str]) -> Data:
    """Read and check the data sets that the flags name.

    Args:
        complaints: what is wrong with the flags; told together with what is wrong with the data.

    Raises:
        SetupError: anything is wrong; the message lists all of it.
    """
    complaints = list(complaints)
    subjects = prior = scales = None
    if args.instance_data_dir:
        subjects = _load(args.instance_data_dir, args, complaints)
    if subjects is not None:
        complaints += mixing_complaints(args, subjects, style)
        try:
            scales = subject_scales(args, subjects.names)
        except ValueError as error:
            complaints.append(str(error))
        if args.learn_words:
            complaints += _name_complaints(subjects)
    if args.with_prior_preservation and args.class_data_dir:
        prior = _load_prior(args.class_data_dir, args, subjects, complaints)
    refuse(complaints)
    if subjects is None:  # cannot be: each way to get here left a complaint
        raise SetupError("--instance_data_dir is missing")
    for warning in _warnings(args, subjects, prior):
        logger.warning(warning)
    return Data(subjects, prior and limit_prior(prior, args.num_class_images), scales)


def _name_complaints(subjects: Subjects) -> list[str]:
    """Complain about names that can't become learned words."""
    try:
        words_of(subjects.names.values())
    except WordError as error:
        return [f"--learn_words: {error}"]
    return []


def limit_prior(prior: Subjects, num_images: int) -> Subjects:
    """Keep num_images class pictures, spread evenly over the classes (fewer where there are)."""
    share, extra = divmod(num_images, len(prior.names))
    kept: list[Photo] = []
    for i, subject in enumerate(prior.names):
        kept += prior.photos_of(subject)[: share + (i < extra)]
    return replace(prior, photos=kept)


def _load(folder: str, args: TrainingArgs, complaints: list[str]) -> Subjects | None:
    try:
        return load_subjects(
            folder,
            min_subjects=2 if args.segmix_prob > 0 else 1,
            caption_key=args.caption_column or DEFAULT_CAPTION_KEY,
            resolution=args.resolution,
        )
    except MetadataError as error:
        complaints += error.problems
        return None


def _load_prior(
    folder: str, args: TrainingArgs, subjects: Subjects | None, complaints: list[str]
) -> Subjects | None:
    path = f"{folder}/{PRIOR_FILENAME}"
    try:
        prior = load_subjects(
            folder,
            PRIOR_FILENAME,
            caption_key=args.caption_column or DEFAULT_CAPTION_KEY,
            resolution=args.resolution,
        )
    except MetadataError as error:
        complaints += [f"{problem} ({PRIOR_POINTER})" for problem in error.problems[:1]]
        complaints += error.problems[1:]
        return None
    if prior.scenes or prior.shares:
        complaints.append(f'{path}: "subjects" and "shares" are for the photos, not for classes')
    ids = subjects.names if subjects else prior.names
    missing = [subject for subject in ids if subject not in prior.names]
    if missing:
        complaints.append(f"{path}:1: no class for subject {', '.join(missing)}; {PRIOR_POINTER}")
    if args.num_class_images < len(ids):
        complaints.append(f"--num_class_images {args.num_class_images}: fewer than classes")
    names = {subject: name for subject, name in prior.names.items() if subject in ids}
    photos = [photo for photo in prior.photos if photo.subject in names]
    return replace(prior, names=names, photos=photos)


def mixing_complaints(args: TrainingArgs, subjects: Subjects, style: SegMixStyle) -> list[str]:
    """Complain about collages that can't be made of these subjects."""
    complaints = []
    if args.segmix_pool and subjects.shares:
        complaints.append(
            "--segmix_pool takes collages whichever picture is drawn, so the metadata's shares "
            "would not hold: leave one of them out"
        )
    if args.segmix_prob == 0:
        return complaints
    alone = {photo.subject for photo in subjects.photos}
    lacking = [name for subject, name in subjects.names.items() if subject not in alone]
    if args.mix == "cutmix" and lacking:
        complaints.append(
            f"--mix cutmix joins photos of one subject each; {', '.join(lacking)} has none"
        )
    count, total = args.segmix_num_subjects, len(subjects.names)
    columns = style.reference_size / style.margin_fit
    if count > total >= 2:
        complaints.append(f"--segmix_num_subjects {count}: the metadata has {total} subjects")
    if count >= columns:
        complaints.append(f"--segmix_num_subjects {count}: a canvas has room for {columns - 1:.0f}")
    collages = perm(total, max(count, 0)) * len(segmix.backgrounds(style))
    if collages > MAX_PROMPTS:
        complaints.append(
            f"--segmix_num_subjects {count}: {collages} different collage prompts, more than "
            f"the {MAX_PROMPTS} that are encoded beforehand; mix fewer at a time"
        )
    return complaints


def _warnings(args: TrainingArgs, subjects: Subjects, prior: Subjects | None) -> list[str]:
    """What is legal but unwise."""
    warnings = list(subjects.warnings)
    for name, count in Counter(subjects.names.values()).items():
        if count > 1:
            warnings.append(f'{count} subjects are named "{name}"; prompts cannot tell them apart')
    if args.class_data_dir and not args.with_prior_preservation:
        warnings.append("--class_data_dir is not used without --with_prior_preservation")
    if prior is not None:
        warnings += prior.warnings
        if len(prior.photos) < args.num_class_images:
            warnings.append(
                f"--num_class_images {args.num_class_images}: the prior set has only "
                f"{len(prior.photos)}"
            )
    return warnings
