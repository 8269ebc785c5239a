"""Everything about a run's data that can be checked before a model is loaded. Knows no torch."""

import argparse
import logging
import os
from collections import Counter
from dataclasses import dataclass, replace
from math import perm

from mudi import segmix
from mudi.args import PRIOR_POINTER, subject_scales
from mudi.metadata import MetadataError, Photo, Subjects, load_subjects
from mudi.segmix import SegMixStyle

PRIOR_FILENAME = "class_metadata.jsonl"
MAX_PROMPTS = 2000  # each is encoded once and kept; SDXL's take 0.3 MB apiece in half precision

logger = logging.getLogger("mudi")


@dataclass(frozen=True)
class Data:
    """What a run trains on; `scales` is the fixed scale of each subject id, or None."""

    subjects: Subjects
    prior: Subjects | None
    scales: dict[str, float] | None


def refuse(complaints: list[str]) -> None:
    """Stop the program with all complaints, one a line, if there are any."""
    if not complaints:
        return
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        raise SystemExit(1)  # the first process tells them
    count = f"{len(complaints)} problem{'s' * (len(complaints) > 1)}"
    raise SystemExit(f"{count}; nothing was loaded:\n" + "\n".join(complaints))


def load_data(args: argparse.Namespace, style: SegMixStyle, complaints: list[str]) -> Data:
    """Read and check the data sets that the flags name.

    Args:
        complaints: what is wrong with the flags; told together with what is wrong with the data.

    Raises:
        SystemExit: anything is wrong; the message lists all of it.
    """
    complaints = list(complaints)
    subjects = prior = scales = None
    if args.instance_data_dir:
        subjects = _load(args, complaints)
    if subjects is not None:
        complaints += _mixing_complaints(args, subjects, style)
        try:
            scales = subject_scales(args, subjects.names)
        except ValueError as error:
            complaints.append(str(error))
    if args.with_prior_preservation and args.class_data_dir:
        prior = _load_prior(args, subjects, complaints)
    refuse(complaints)
    if subjects is None:  # cannot be: each way to get here left a complaint
        raise SystemExit("--instance_data_dir is missing")
    for warning in _warnings(args, subjects, prior):
        logger.warning(warning)
    return Data(subjects, prior and limit_prior(prior, args.num_class_images), scales)


def limit_prior(prior: Subjects, num_images: int) -> Subjects:
    """Keep num_images class pictures, spread evenly over the classes (fewer where there are)."""
    share, extra = divmod(num_images, len(prior.names))
    kept: list[Photo] = []
    for i, subject in enumerate(prior.names):
        kept += prior.photos_of(subject)[: share + (i < extra)]
    return replace(prior, photos=kept)


def _load(args: argparse.Namespace, complaints: list[str]) -> Subjects | None:
    try:
        return load_subjects(
            args.instance_data_dir,
            min_subjects=2 if args.segmix_prob > 0 else 1,
            caption_key=args.caption_column,
        )
    except MetadataError as error:
        complaints += error.problems
        return None


def _load_prior(
    args: argparse.Namespace, subjects: Subjects | None, complaints: list[str]
) -> Subjects | None:
    path = f"{args.class_data_dir}/{PRIOR_FILENAME}"
    try:
        prior = load_subjects(args.class_data_dir, PRIOR_FILENAME, caption_key=args.caption_column)
    except MetadataError as error:
        complaints += [f"{problem} ({PRIOR_POINTER})" for problem in error.problems[:1]]
        complaints += error.problems[1:]
        return None
    ids = subjects.names if subjects else prior.names
    missing = [subject for subject in ids if subject not in prior.names]
    if missing:
        complaints.append(f"{path}:1: no class for subject {', '.join(missing)}; {PRIOR_POINTER}")
    if args.num_class_images < len(ids):
        complaints.append(f"--num_class_images {args.num_class_images}: fewer than classes")
    names = {subject: name for subject, name in prior.names.items() if subject in ids}
    photos = [photo for photo in prior.photos if photo.subject in names]
    return replace(prior, names=names, photos=photos)


def _mixing_complaints(
    args: argparse.Namespace, subjects: Subjects, style: SegMixStyle
) -> list[str]:
    if args.segmix_prob == 0:
        return []
    found = []
    count, total = args.segmix_num_subjects, len(subjects.names)
    columns = style.reference_size / style.margin_fit
    if count > total >= 2:
        found.append(f"--segmix_num_subjects {count}: the metadata has {total} subjects")
    if count >= columns:
        found.append(f"--segmix_num_subjects {count}: a canvas has room for {columns - 1:.0f}")
    collages = perm(total, count) * len(segmix.backgrounds(style))
    if collages > MAX_PROMPTS:
        found.append(
            f"--segmix_num_subjects {count}: {collages} different collage prompts, more than "
            f"the {MAX_PROMPTS} that are encoded beforehand; mix fewer at a time"
        )
    return found


def _warnings(args: argparse.Namespace, subjects: Subjects, prior: Subjects | None) -> list[str]:
    """What is legal but unwise."""
    found = list(subjects.warnings)
    for name, count in Counter(subjects.names.values()).items():
        if count > 1:
            found.append(f'{count} subjects are named "{name}"; prompts cannot tell them apart')
    if args.class_data_dir and not args.with_prior_preservation:
        found.append("--class_data_dir is not used without --with_prior_preservation")
    if prior is not None:
        found += prior.warnings
        if len(prior.photos) < args.num_class_images:
            found.append(
                f"--num_class_images {args.num_class_images}: the prior set has only "
                f"{len(prior.photos)}"
            )
    return found
