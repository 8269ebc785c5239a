"""--dry_run: what a run needs of a GPU's memory, by its own step on tensors without data.

Nothing but configurations is read of the base model. What differs from a real GPU is stated: the
kernels' own workspaces, the CUDA context and fragmentation come in as an allowance.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import snapshot_download
from torch import Tensor

from mudi.backbones.parts import shapes_only
from mudi.backbones.table import Backbone
from mudi.data import TENSORS, Batch, make_loader
from mudi.denoising import Models
from mudi.ground.errors import SetupError, loading
from mudi.ground.memory import StorageMeter, cuda_autocast, fake_tensors
from mudi.latents import LatentSpace, decode_latents, encode_images
from mudi.training.args import TrainingArgs
from mudi.training.optimizers import Training, prepare_training
from mudi.training.runtime import Run, step_generator
from mudi.training.stats import Pass

GB = 10**9  # as cards are sold; none has less than its name says
CARDS = (6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141)
CONTEXT = 0.5 * GB  # CUDA's context, kernels and the libraries' workspaces
FRAGMENTATION = 0.05  # of the peak
# Flags that save memory, those first that cost least; tried in turn, each on top of the last.
SAVERS: tuple[tuple[str, Any], ...] = (
    ("encode_on_cpu", True),
    ("vae_slicing", True),
    ("gradient_checkpointing", True),
    ("use_8bit_adam", True),
    ("quantize_base", "int8"),
    ("quantize_base", "nf4"),
)
WORTH = 0.01  # what a flag must save, as a share
CONFIG_FILES = ["*.json", "*.txt", "*.model"]

LoadModels = Callable[[Any, Accelerator, list[str]], Models]
RunPass = Callable[..., Pass]
CheckArgs = Callable[[Any], list[str]]


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory; those of the first six live throughout the steps.

    Attributes:
        weights: the frozen network's, and those of text encoders that train.
        gradients: kept between the passes of a step; 0 where each pass is a step.
        step: what a step's activations and temporary tensors add at its worst moment.
        loading: the peak until the first step: text encoders, prompts.
        pictures: the peak while a validation picture is decoded; 0 without.
        drawn: the weights and the LoRA of --validation_model, throughout the steps as well.
    """

    weights: int
    adapters: int
    optimizer: int
    gradients: int
    vae: int
    prompts: int
    step: int
    loading: int
    pictures: int
    drawn: int = 0

    @property
    def peak(self) -> int:
        """The most that lives at one time."""
        resident = self.weights + self.adapters + self.optimizer + self.gradients
        resident += self.vae + self.prompts + self.drawn
        return max(self.loading, self.pictures, resident + self.step)

    @property
    def total(self) -> float:
        """The peak with the allowance for what is not counted."""
        return self.peak * (1 + FRAGMENTATION) + CONTEXT


def tell(
    args: TrainingArgs,
    run: Run,
    backbone: Backbone,
    check_args: CheckArgs,
    load_models: LoadModels,
    run_pass: RunPass,
) -> None:
    """Print what the run needs; with --fits, end with exit code 1 where that is too much.

    Args:
        check_args, load_models, run_pass: the script's own.

    Raises:
        SetupError: it does not fit.
    """
    args = with_local_configs(args)
    parts = (run, backbone, load_models, run_pass)
    need = simulate(args, *parts)
    print(table(args, backbone, need, len(run.dataset.prompts())))
    if args.fits is None:
        return
    if need.total <= args.fits * GB:
        print(f"fits {args.fits:g} GB ({need.total / GB:.1f} of {args.fits:g})")
        return
    changes = allowed_savers(args, check_args)
    advice = save_memory(args, changes, args.fits * GB, need, lambda a: simulate(a, *parts))
    raise SetupError(f"does not fit {args.fits:g} GB; {advice}")


def allowed_savers(args: TrainingArgs, check_args: CheckArgs) -> list[tuple[str, Any]]:
    """Return the SAVERS that this script has, that are not given, and go with what is given."""
    allowed = []
    for flag, value in SAVERS:
        if getattr(args, flag, value) not in (value, "nf4"):
            changed = copy.copy(args)
            setattr(changed, flag, value)
            if not check_args(changed):
                allowed.append((flag, value))
    return allowed


def save_memory(
    args: TrainingArgs,
    changes: Iterable[tuple[str, Any]],
    card: float,
    need: Need,
    again: Callable[[TrainingArgs], Need],
) -> str:
    """Try flags that save memory, each on top of those that helped; say which make it fit.

    Args:
        changes: the flags, with their values.
        card: bytes.
        again: what a run with other flags needs.
    """
    given: dict[str, str] = {}
    for flag, value in changes:
        changed = copy.copy(args)
        setattr(changed, flag, value)
        saved = again(changed)
        word = f"--{flag}" if value is True else f"--{flag} {value}"
        helps = saved.peak < (1 - WORTH) * need.peak
        print(f"  {word:<34}{saved.total / GB:8.2f}{'' if helps else '  (left out again)'}")
        if helps:
            args, need = changed, saved
            given[flag] = word
        if need.total <= card:
            return f"it does with {' '.join(given.values())} ({need.total / GB:.1f} GB)"
    return f"with all that helps it needs {need.total / GB:.1f} GB ({' '.join(given.values())})"


def with_local_configs(args: TrainingArgs) -> TrainingArgs:
    """Return args that name folders; of a model on the hub its small files are downloaded.

    Raises:
        SetupError: there is no such model, or it can't be reached.
    """
    args = copy.copy(args)
    for flag in (
        "pretrained_model_name_or_path",
        "pretrained_vae_model_name_or_path",
        "validation_model",
    ):
        name = getattr(args, flag, None)
        if name and not Path(name).is_dir():
            of_base = flag == "pretrained_model_name_or_path"
            with loading(f"--{flag}", name):
                folder = snapshot_download(
                    name,
                    revision=args.revision if of_base else None,
                    cache_dir=args.cache_dir,
                    allow_patterns=CONFIG_FILES,
                    ignore_patterns=["*.index.json"],
                )
            setattr(args, flag, folder)
    return args


def simulate(
    args: TrainingArgs, run: Run, backbone: Backbone, load_models: LoadModels, run_pass: RunPass
) -> Need:
    """Load, prepare and run one pass on tensors without data; return what that took."""
    batch = first_batch(run)
    with shapes_only(), fake_tensors(), cuda_autocast(), StorageMeter() as meter:
        return measure(args, run, backbone, load_models, run_pass, batch, meter)


def first_batch(run: Run) -> Batch:
    """Return the batch that a fresh run begins with."""
    return next(iter(make_loader(run.dataset, run.plan.draws(0), 0)))


def measure(
    args: TrainingArgs,
    run: Run,
    backbone: Backbone,
    load_models: LoadModels,
    run_pass: RunPass,
    batch: Batch,
    meter: StorageMeter,
) -> Need:
    """Do what a run does up to the end of its second step; return what that took by the meter.

    The first step is one of gradients that are there already, so that only its states remain.
    """
    accelerator, plan = run.accelerator, run.plan
    models = load_models(args, accelerator, run.dataset.prompts())
    drawn = models.drawn or torch.nn.Module()
    for module in (models.denoiser, models.vae, drawn):
        for tensor in (*module.parameters(), *module.buffers()):
            meter.count(tensor)
    loading = meter.reset_peak()
    if getattr(args, "encode_on_cpu", False):  # what the text encoders took is host memory
        loading = meter.now
    weights, adapters = _sizes(models.denoiser)
    vae = sum(_sizes(models.vae))
    others = sum(_sizes(drawn))
    prompts = meter.now - weights - adapters - vae - others

    training = prepare_training(accelerator, args, plan, backbone.pipeline_class, models)
    for parameter in training.parameters:
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    if args.gradient_accumulation_steps == 1:
        training.optimizer.zero_grad()
    optimizer = _state_bytes(training)
    gradients = sum(_bytes(p.grad) for p in training.parameters if p.grad is not None)

    resident = meter.now
    meter.reset_peak()
    generator = step_generator(accelerator, plan.seed, 0)
    moved = replace(batch, **{name: getattr(batch, name).clone() for name in TENSORS})
    run_pass(args, accelerator, models, training, moved, generator, None)
    del moved
    step = meter.reset_peak() - resident
    pictures = 0
    if args.validation_prompt:
        pictures = _decoding_peak(args, models, backbone.module.SPACE, meter)
    kept = (weights, adapters, optimizer, gradients, vae, prompts)
    return Need(*kept, step, loading, pictures, others)


def _decoding_peak(
    args: TrainingArgs, models: Models, space: LatentSpace, meter: StorageMeter
) -> int:
    size = (1, args.resolution, args.resolution, 3)
    with torch.no_grad():
        pixels = torch.zeros(size, dtype=torch.uint8)
        latents = encode_images(models.vae, pixels, None, space=space)
        meter.reset_peak()
        decode_latents(models.vae, latents, space)
    return meter.reset_peak()


def _sizes(module: torch.nn.Module) -> tuple[int, int]:
    """Return the bytes of what is frozen and of what trains."""
    trains = [p for p in module.parameters() if p.requires_grad]
    frozen = [p for p in module.parameters() if not p.requires_grad]
    return _total([*frozen, *module.buffers()]), _total(trains)


def _state_bytes(training: Training) -> int:
    states = training.optimizer.state.values()
    return _total(
        value for state in states for value in state.values() if isinstance(value, Tensor)
    )


def _total(tensors: Iterable[Tensor]) -> int:
    return sum(map(_bytes, tensors))


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def table(args: TrainingArgs, backbone: Backbone, need: Need, num_prompts: int) -> str:
    """Return the figures as lines of text."""
    kept = {"none": args.mixed_precision}.get(args.quantize_base, args.quantize_base)
    adapters = "adapters, words" if args.learn_words else "adapters"
    rows = [
        (f"frozen weights ({'fp32' if kept == 'no' else kept})", need.weights),
        (f"{adapters} (rank {args.rank}, fp32)", need.adapters),
        ("optimizer's states", need.optimizer),
        ("gradients between passes", need.gradients),
        ("VAE", need.vae),
        (f"prompts ({num_prompts}){', encoder' if args.caption_boxes else ''}", need.prompts),
        ("a step's activations, at most", need.step),
        ("peak", need.peak),
        ("of it until the first step", need.loading),
        ("with the allowance", need.total),
    ]
    if need.drawn:
        rows.insert(6, ("validation model", need.drawn))
    size = f"{args.resolution} px, batch {args.train_batch_size}"
    lines = [f"{backbone.title}, {size}: GB of GPU memory, simulated; no weights were read"]
    lines += [f"  {what:<34}{count / GB:8.2f}" for what, count in rows]
    lines.append(
        f"  (the allowance: {CONTEXT / GB:g} GB for CUDA itself, {FRAGMENTATION:.0%} for "
        "fragmentation)"
    )
    card = next((card for card in CARDS if need.total <= card * GB), None)
    if args.fits is None and card is not None:
        lines.append(f"fits {card} GB ({need.total / GB:.1f} of {card})")
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        lines.append(f"this machine's GPU has {free / GB:.1f} GB free of {whole / GB:.1f}")
    return "\n".join(lines)
