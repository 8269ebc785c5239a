"""What `inference.py` is asked for: its flags read and checked, before anything large is loaded."""

from dataclasses import dataclass
from pathlib import Path

from detect_and_compare.judge import Basis, read_basis
from mudi.backbones.table import Backbone
from mudi.best_of.args import BestArgs
from mudi.best_of.candidates import best_of_complaints
from mudi.ground.errors import SetupError
from mudi.init_noise import Layout, LayoutError, load_layout
from mudi.metadata import Subjects
from mudi.pictures.args import LLM, RANDOM, PictureArgs
from mudi.pictures.sampling import SamplingError, photo_named
from mudi.pictures.shot_args import (
    backbone_complaints,
    named_subjects,
    number_complaints,
    read_gamma,
    read_prompts,
    read_reward,
    read_scales,
    read_subjects,
    reward_complaints,
    start_complaints,
)

PerSubject = float | dict[str, float] | None


@dataclass(frozen=True)
class Asked:
    """What the flags say.

    Attributes:
        gamma: as told; None: the backbone's own, see `gamma_for`.
        basis: what candidates are judged by; None: there is one picture each.
    """

    prompts: list[str]
    subjects: Subjects | None
    gamma: PerSubject
    reward: PerSubject
    scales: dict[str, float] | None
    basis: Basis | None

    def gamma_for(self, backbone: Backbone) -> float | dict[str, float]:
        if self.gamma is not None:
            return self.gamma
        return backbone.gamma if self.subjects else 0.0


def read_asked(args: BestArgs, problems: list[str]) -> Asked:
    """Read the flags; add what is wrong with them, whatever the backbone."""
    problems += number_complaints(args)
    prompts = read_prompts(args, problems)
    subjects = read_subjects(args, problems)
    ids = subjects.names if subjects else ()
    gamma = read_gamma(args.gamma, ids, problems)
    reward = read_reward(args.reward_guidance, ids, problems)
    scales = read_scales(args.scales, ids, problems)
    problems += best_of_complaints(args, prompts, subjects)
    basis = None
    if args.best_of > 1 and subjects:
        basis = read_basis(args, subjects.folder, "--instance_data_dir", problems)
    return Asked(prompts, subjects, gamma, reward, scales, basis)


def complaints_of(args: BestArgs, asked: Asked, backbone: Backbone) -> list[str]:
    """Complain about what does not go with the backbone, or with the prompts there."""
    gamma = asked.gamma_for(backbone)
    found = backbone_complaints(args, backbone)
    found += reward_complaints(args, backbone, asked.reward, gamma)
    found += start_complaints(args, asked.prompts, asked.subjects, gamma)
    return found + _layout_complaints(args, asked)


def _layout_complaints(args: PictureArgs, asked: Asked) -> list[str]:
    """Complain about a layout's file that does not fit a prompt; a chat model's comes later."""
    if asked.subjects is None or args.layout in (RANDOM, LLM):
        return []
    found = []
    for prompt in asked.prompts:
        try:
            file_layout(Path(args.layout), prompt, asked.subjects)
        except SetupError as error:
            found.append(f'{error} (prompt "{prompt}")')
    return found


def file_layout(path: Path, prompt: str, subjects: Subjects) -> Layout:
    """Return a file's layout of the subjects that a prompt names.

    Raises:
        SetupError: it is none of them.
    """
    ids = named_subjects(prompt, subjects.names)
    try:
        layout = load_layout(path, [subjects.names[subject] for subject in ids])
        for subject, photo in zip(ids, layout.photos, strict=False):
            if photo is not None:
                photo_named(photo, subjects.photos_of(subject), subjects.folder)
    except (LayoutError, SamplingError) as error:
        raise SetupError(f"--layout {path}: {error}") from error
    return layout
