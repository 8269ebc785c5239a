"""What pictures are asked for, from the flags of `inference.py`; knows no torch."""

from collections.abc import Collection, Sequence
from pathlib import Path

from mudi.backbones.table import BUILT_IN, Backbone
from mudi.ground.files import unwritable
from mudi.ground.flags import id_numbers, looks_local, range_complaints
from mudi.metadata import MetadataError, Subjects, load_subjects
from mudi.pictures.args import LLM, RANDOM, PictureArgs
from mudi.segmix import COLLAGE_NEGATIVE_PROMPT
from mudi.texts import has_half_character, mark_names

MAX_SEED = 2**63 - 1  # torch's

SIZE_UNIT = 8  # px; no stock pipeline takes other sizes
LATENT_SUFFIX = ".latent"
SIGNAL_UNIT = "x"  # ends a --gamma that counts in the scheduler's own signal at the first step


def named_subjects(prompt: str, names: dict[str, str]) -> list[str]:
    """Return the ids of the subjects whose names stand in a prompt, in the names' order.

    What counts as one: see `mudi.texts.mark_names`.
    """
    text, marks = mark_names(prompt, names.values())
    found = {name for mark, name in marks.items() if mark in text}
    return [subject for subject, name in names.items() if name in found]


def number_complaints(args: PictureArgs) -> list[str]:
    """Complain about numbers out of range and about flags that contradict each other."""
    complaints = range_complaints(args)
    if not -MAX_SEED <= args.seed <= MAX_SEED - args.num_images:
        complaints.append(
            f"--seed {args.seed}: picture k has seed + k, which must fit into 64 bits"
        )
    if args.lora_scale and len(args.lora_scale) != len(args.lora):
        complaints.append(
            f"--lora_scale: {len(args.lora_scale)} numbers for {len(args.lora)} LoRAs"
        )
    if args.scales and args.layout != RANDOM:
        complaints.append("--scales are of a random layout: drop them or --layout")
    if (args.layout == LLM) != bool(args.llm_url and args.llm_model):
        complaints.append("--layout llm, --llm_url and --llm_model go together")
    for path in args.lora:
        if looks_local(path) and not Path(path).exists():
            complaints.append(
                f"--lora {path}: no such file or folder (nor a hub id, <owner>/<name>)"
            )
    if why := unwritable(args.output_dir):
        complaints.append(f"--output_dir {args.output_dir}: {why}")
    return complaints + _export_complaints(args) + _size_complaints(args)


def _export_complaints(args: PictureArgs) -> list[str]:
    path = args.export_noise
    if path is None:
        return []
    complaints = []
    if path.suffix != LATENT_SUFFIX:
        complaints.append(f"--export_noise {path}: ComfyUI lists files in {LATENT_SUFFIX} only")
    if why := f"{path} is a folder" if path.is_dir() else unwritable(path.parent):
        complaints.append(f"--export_noise {path}: {why}")
    return complaints


def _size_complaints(args: PictureArgs) -> list[str]:
    complaints = []
    if args.resolution and (args.height or args.width):
        complaints.append("--resolution is height and width in one: give it, or those two")
    if bool(args.height) != bool(args.width):
        complaints.append("--height and --width go together; for a square there is --resolution")
    for flag in ("resolution", "height", "width"):
        if (getattr(args, flag) or 0) % SIZE_UNIT:
            complaints.append(f"--{flag} {getattr(args, flag)}: must be a multiple of {SIZE_UNIT}")
    return complaints


def read_prompts(args: PictureArgs, problems: list[str]) -> list[str]:
    """Return the prompts, blank lines left out."""
    if (args.prompt is None) == (args.prompt_file is None):
        problems.append("give --prompt or --prompt_file")
        return []
    lines = [args.prompt or ""]
    if args.prompt_file:
        try:
            lines = args.prompt_file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"--prompt_file {args.prompt_file}: cannot be read ({error})")
            return []
    prompts = [line.strip() for line in lines if line.strip()]
    for text in [*prompts, args.negative_prompt or ""]:
        if has_half_character(text):
            problems.append(f"the prompt {text!a} holds half a character; type it again")
    if not prompts:
        problems.append("there is no prompt: all lines are empty")
    return prompts


def read_subjects(args: PictureArgs, problems: list[str]) -> Subjects | None:
    if not args.instance_data_dir:
        return None
    try:
        return load_subjects(args.instance_data_dir, caption_key=None)
    except MetadataError as error:
        problems += error.problems
        return None


def read_gamma(
    words: list[str] | None, ids: Collection[str], problems: list[str], unit: float = 1.0
) -> float | dict[str, float] | None:
    """Return one number, or one by subject id; None where the flag is not given.

    Args:
        unit: what the x of "3x" stands for.
    """
    plain = [_without_unit(word, unit) for word in words or []]
    return _one_or_by_subject(plain, "--gamma", ids, problems)


def read_reward(
    words: list[str] | None, ids: Collection[str], problems: list[str]
) -> float | dict[str, float] | None:
    """Return --reward_guidance: one number, or one by subject id; None where it is not given."""
    return _one_or_by_subject(words or [], "--reward_guidance", ids, problems)


def _one_or_by_subject(
    words: list[str], flag: str, ids: Collection[str], problems: list[str]
) -> float | dict[str, float] | None:
    if not words:
        return None
    if len(words) > 1 or "=" in words[0]:
        return id_numbers(words, flag, ids, problems)
    return id_numbers([f"all={words[0]}"], flag, ["all"], problems).get("all")


def has_unit(words: list[str] | None) -> bool:
    """Say whether a --gamma is given in units of the signal at the first step."""
    return any(word.endswith(SIGNAL_UNIT) for word in words or [])


def _without_unit(word: str, unit: float) -> str:
    name, equals, number = word.rpartition("=")
    try:
        times = float(number.removesuffix(SIGNAL_UNIT))
    except ValueError:  # told by who reads the number
        return word
    return f"{name}{equals}{times * unit!r}" if number.endswith(SIGNAL_UNIT) else word


def negative_prompt(args: PictureArgs) -> str | None:
    """Return what the pictures are to avoid, in one text."""
    texts = [args.negative_prompt, COLLAGE_NEGATIVE_PROMPT if args.no_collage_look else None]
    return ", ".join(text for text in texts if text) or args.negative_prompt


def read_scales(
    words: list[str], ids: Collection[str], problems: list[str]
) -> dict[str, float] | None:
    """Return the relative sizes by subject id; None where they are drawn."""
    if not words:
        return None
    if not ids:
        problems.append("--scales needs --instance_data_dir, the subjects to scale")
        return None
    scales = id_numbers(words, "--scales", ids, problems)
    for subject, scale in scales.items():
        if not 0 < scale <= 1:
            problems.append(f"--scales {subject}={scale}: must be above 0, at most 1")
    return scales


def backbone_complaints(args: PictureArgs, backbone: Backbone) -> list[str]:
    """Complain about what a backbone has no use for, once it is known which it is."""
    complaints = [
        f"--{flag}: {backbone.title} takes none; leave it out"
        for flag, takes in (
            ("negative_prompt", backbone.negative_prompt),
            ("no_collage_look", backbone.negative_prompt),
            ("scheduler", not backbone.flow),
        )
        if getattr(args, flag) and not takes
    ]
    if backbone.flow and args.export_noise:
        complaints.append(
            f"--export_noise: ComfyUI starts {backbone.title} from noise alone, which no latent "
            "holds; use the node in comfyui/"
        )
    unit = backbone.size_unit
    return complaints + [
        f"--{flag} {getattr(args, flag)}: must be a multiple of {unit} for {backbone.title}"
        for flag in ("resolution", "height", "width")
        if unit > SIZE_UNIT and (getattr(args, flag) or 0) % unit
    ]


def reward_complaints(
    args: PictureArgs,
    backbone: Backbone,
    reward: float | dict[str, float] | None,
    gamma: float | dict[str, float],
) -> list[str]:
    """Complain about reward guidance that lacks what it is reckoned from."""
    if reward is None:
        return []
    complaints = []
    if not any(args.lora_scales):
        complaints.append("needs a --lora of a scale other than 0, whose pull it sets")
    if not args.instance_data_dir:
        complaints.append("needs --instance_data_dir: the base is asked without the names there")
    scale, least = args.guidance_scale, backbone.unguided
    if backbone.guidance != BUILT_IN and scale is not None and scale <= least:
        complaints.append(f"needs a --guidance_scale above {least:g}, not {scale}")
    if isinstance(reward, dict) and gamma == 0:
        complaints.append("one number a subject needs places: give one for all, or a --gamma")
    return [f"--reward_guidance: {complaint}" for complaint in complaints]


def start_complaints(
    args: PictureArgs,
    prompts: list[str],
    subjects: Subjects | None,
    gamma: float | dict[str, float],
) -> list[str]:
    """Complain about prompts that name no subject to start from, or a start that is not used."""
    if gamma == 0:
        unused = ["--scales"] * bool(args.scales) + ["--layout"] * (args.layout != RANDOM)
        return [
            f"{f} does nothing with gamma 0 (flow matching's default); give a --gamma"
            for f in unused
        ]
    if subjects is None:
        return ["--gamma needs --instance_data_dir, the subjects to start from"]
    return nameless_complaints(prompts, subjects.names, "; or use --gamma 0")


def nameless_complaints(
    prompts: Sequence[str], names: dict[str, str], way_out: str = ""
) -> list[str]:
    """Complain about prompts that name no subject.

    Args:
        way_out: what else can be done, for the end of the line.
    """
    known = ", ".join(f'"{name}"' for name in names.values())
    return [
        f'the prompt "{prompt}" names no subject; there are {known}{way_out}'
        for prompt in prompts
        if not named_subjects(prompt, names)
    ]
