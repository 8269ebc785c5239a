"""Runs a training script as it is, from `main` on, and watches what its own calls cost.

Nothing of the script's loop is repeated here: its functions are looked up where it looks them up,
and wrapped. A call that is no longer there makes the benchmark fail rather than lie.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from benchmarks.common import import_script
from benchmarks.parts import Cost, Meter, Parts, swapped
from mudi import lora
from mudi.backbones.table import BACKBONES
from mudi.data import Batch, SegMixDataset, make_loader
from mudi.denoising import Models, PromptTable
from mudi.latents import LatentCache
from mudi.training import publish, runtime, saving, stats
from mudi.training.args import TrainingArgs
from mudi.training.optimizers import Training

DATA, PROMPT, VAE, NOISE = "data", "prompt", "VAE", "noise"
REFERENCE, FORWARD, BACKWARD = "network: reference", "network: forward", "network: backward"
LOSS, OPTIMIZER, LOGGING = "loss", "optimizer", "logging"
STEP_PARTS = (
    DATA, PROMPT, VAE, NOISE, REFERENCE, FORWARD, BACKWARD, LOSS, OPTIMIZER, LOGGING
)  # fmt: skip
NETWORK_PARTS = (REFERENCE, FORWARD, BACKWARD)


def step_calls(family: str) -> list[tuple[Any, str, str | Callable[[], str]]]:
    """Return the calls of a training step: owner, name there, part that it is charged to."""
    script, backbone = import_script(family), BACKBONES[family].module

    def network() -> str:
        return FORWARD if torch.is_grad_enabled() else REFERENCE

    calls: list[tuple[Any, str, str | Callable[[], str]]] = [
        (Batch, "to", DATA),
        (PromptTable, "__call__", PROMPT),
        (script, "encode_images", VAE),
        (runtime, "step_generator", NOISE),
        (script, "latent_weight", NOISE),
        (script, "make_task", NOISE),
        (backbone.Denoiser, "forward", network),
        (Accelerator, "backward", BACKWARD),
        (script, "training_loss", LOSS),
        (Accelerator, "clip_grad_norm_", OPTIMIZER),
        (AcceleratedOptimizer, "step", OPTIMIZER),
        (AcceleratedOptimizer, "zero_grad", OPTIMIZER),
        (stats.StepLog, "add", LOGGING),
        (saving, "save_if_due", LOGGING),
        (runtime, "validate_if_due", LOGGING),
    ]
    told_sizes = hasattr(backbone, "size_conditions")
    return [*calls, (backbone, "size_conditions", NOISE)] if told_sizes else calls


LOADED = ("VAE weights", "text encoder weights", "network weights")


def start_calls(family: str) -> list[tuple[Any, str, str]]:
    """Return the calls before and after the loop, as `step_calls` does those inside."""
    script, row = import_script(family), BACKBONES[family]
    backbone, network = row.module, f"load_{row.denoiser}"
    return [
        (runtime, "set_up", "checks and data"),
        (script, "load_models", "models to the device"),
        (backbone, "load_vae", LOADED[0]),
        (backbone, "load_text_pipeline", LOADED[1]),
        (PromptTable, "__init__", "prompts encoded"),
        (backbone, "free_text_encoders", "encoders freed"),
        (backbone, network, LOADED[2]),
        (lora, "add_lora", "adapters"),
        (script, "prepare_training", "optimizer set up"),
        (publish, "finish", "results written"),
    ]


@dataclass
class Running:
    """What a running script works with, as it comes to be.

    Attributes:
        training: None until the loop is set up.
        cache: of latents; None without --cache_latents.
    """

    args: TrainingArgs
    accelerator: Accelerator
    models: Models
    dataset: SegMixDataset
    plan: runtime.Plan
    training: Training | None = None
    cache: LatentCache | None = None

    @property
    def network(self) -> nn.Module:
        """The adapted UNet or transformer."""
        return next(iter(self.models.adapted.values()))


# Hands batches on to the loop, and measures on the way.
Driver = Callable[[Running, Iterator[Batch]], Iterator[Batch]]


def run(family: str, words: list[str], parts: Parts, drive: Driver, with_start: bool) -> None:
    """Run a training script's `main`, its calls charged to parts, its batches handed on by drive.

    Args:
        words: the script's command line.
        with_start: charge the calls outside the loop too.
    """
    script = import_script(family)
    calls = step_calls(family) + (start_calls(family) if with_start else [])
    with ExitStack() as stack:
        for owner, name, part in calls:
            charged = parts.wrap(part, getattr(owner, name))
            stack.enter_context(swapped(owner, **{name: charged}))
        stack.enter_context(_driven(script, drive))
        script.main(script.parse_args(words))
    if not torch.distributed.is_initialized():
        forget_accelerate()


@contextmanager
def _driven(script: ModuleType, drive: Driver) -> Iterator[None]:
    """Let the script's `train` take its batches from drive."""
    train, prepare, loader_of = script.train, script.prepare_training, script.make_loader
    running: list[Running] = []

    def watched_train(*given: Any) -> None:
        running.append(Running(*given))
        train(*given)

    def watched_prepare(*given: Any) -> Training:
        running[0].training = prepare(*given)
        return running[0].training

    def watched_loader(*given: Any) -> Iterator[Batch]:
        return drive(running[0], iter(loader_of(*given)))

    def watched_cache() -> LatentCache:
        running[0].cache = LatentCache()
        return running[0].cache

    with swapped(
        script,
        train=watched_train,
        prepare_training=watched_prepare,
        make_loader=watched_loader,
        LatentCache=watched_cache,
    ):
        yield


def forget_accelerate() -> None:
    """Let the next script in this process set accelerate up anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def fill_cache(running: Running) -> None:
    """Encode the unmixed photos of all draws to come, as if an earlier epoch had."""
    if running.cache is None:
        return
    for batch in make_loader(running.dataset, running.plan.draws(0), num_workers=0):
        plain = [i for i, key in enumerate(batch.keys) if key is not None]
        if plain:
            pixels = batch.pixels[plain].to(running.accelerator.device)
            keys = [batch.keys[i] for i in plain]
            with torch.no_grad():
                running.cache.distributions(running.models.vae, pixels, keys)


@dataclass(frozen=True)
class _Call:
    """What the network was called with, and how."""

    args: tuple
    kwargs: dict[str, Any]
    with_grad: bool
    autocast: torch.dtype | None


class Floor:
    """The arithmetic that a step cannot do without, repeated on the inputs of the script's own.

    That is, for each pass: the adapted network forward and backward, before it one forward without
    adapters and gradients if the loss wants it, and the VAE if it is asked for. No data, prompts,
    noise, loss, optimizer or logging.
    """

    def __init__(self, running: Running):
        self._running = running
        self._calls: list[_Call] = []
        self._pixels: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what network and VAE are called with inside; one pass' calls are kept."""
        vae, device = self._running.models.vae, self._running.accelerator.device.type
        encode = vae.encode

        def note_call(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            mixed = torch.is_autocast_enabled(device)
            autocast = torch.get_autocast_dtype(device) if mixed else None
            given, named = _detached(args), _detached(kwargs)
            self._calls.append(_Call(given, named, torch.is_grad_enabled(), autocast))

        def note_pixels(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._pixels.append(pixels)
            return encode(pixels, *args, **kwargs)

        self._calls.clear()
        self._pixels.clear()
        hook = self._running.network.register_forward_pre_hook(note_call, with_kwargs=True)
        vae.encode = note_pixels
        try:
            yield
        finally:
            hook.remove()
            del vae.encode

    def run(self, parts: Parts, passes: int, with_vae: bool) -> Cost:
        """Do the arithmetic of that many passes; switching adapters off and on is left out.

        Args:
            parts: what VAE and network are charged to, if it has a meter.
        """
        network, vae = self._running.network, self._running.models.vae
        device = self._running.accelerator.device
        weights = [p for p in network.parameters() if p.requires_grad]
        references = [call for call in self._calls if not call.with_grad] * passes
        adapted = [call for call in self._calls if call.with_grad] * passes
        cost = Cost()
        if references:
            with lora.adapters_off(network), torch.no_grad():
                meter = Meter(device)
                for call in references:
                    with parts.part(REFERENCE):
                        self._forward(call)
                cost = meter.read()
        meter = Meter(device)
        for pixels in self._pixels * passes * with_vae:
            with parts.part(VAE), torch.no_grad():
                vae.encode(pixels)
        for call in adapted:
            with parts.part(FORWARD):
                output = self._forward(call)
            with parts.part(BACKWARD):
                answers = output if isinstance(output, list) else [output]
                torch.autograd.grad(answers, weights, list(map(torch.ones_like, answers)))
        return cost.then(meter.read())

    def _forward(self, call: _Call) -> Tensor:
        device = self._running.accelerator.device.type
        with torch.autocast(device, call.autocast) if call.autocast else nullcontext():
            return self._running.network(*call.args, **call.kwargs)[0]


def _detached(value: Any) -> Any:
    """Copy a call's arguments without their history."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_detached(item) for item in value)
    return copy.copy(value)
