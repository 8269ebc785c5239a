"""What the miniature's training commands share: flags, time budget, checkpoint, running means.

A run ends when its minutes are over, its steps are done, or SIGTERM or Ctrl-C comes; it saves its
state then, and every few minutes before. The same command continues it.
"""

import json
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mini.training.checkpoint import Learner, load_learner, save_learner
from mini.training.stream import default_workers
from mini.world import SIZE
from mudi.ground.devices import cpu_is_meant, on_gpu
from mudi.ground.errors import SetupError, refuse
from mudi.ground.files import clean_up, finish_folder, temporary_folder, write_text
from mudi.ground.flags import flag, range_complaints

STATE_DIR = Path.home() / ".cache" / "mudi-mini2"  # outlives a work tree
CHECKPOINT, PROGRESS = "checkpoint", "progress.json"
HEAD_WIDTH = 32  # channels an attention head, in all networks
WARM_UP_STEPS = 200
EMA_DECAY = 0.9995  # at most; it starts lower
LOSS_MEMORY = 0.98  # of the mean that the progress bar shows
QUIET_SECONDS = 60  # between two lines of progress in a file; a terminal sees them at once


@dataclass
class Progress:
    """How far a run is: optimizer steps, pictures seen, seconds spent training, in all sessions."""

    step: int = 0
    pictures: int = 0
    seconds: float = 0.0


@dataclass
class LearnArgs:
    """training"""

    output: Path = flag(Path(), "folder for the result", required=True)
    state_dir: Path = flag(STATE_DIR, "folder for the checkpoint")
    start_from: Path | None = flag(None, "earlier result to start from if there's no checkpoint")
    minutes: float = flag(30.0, "time budget of this session")
    cool_minutes: float = flag(0.0, "of them, the last, in which the rate falls")
    max_steps: int | None = flag(None, "optimizer steps of all sessions; None is no limit")
    save_minutes: float = flag(5.0, "minutes between two checkpoints")
    sheet_minutes: float = flag(10.0, "minutes between two sheets")
    batch_size: int = flag(16, "pictures an optimizer step", at_least=1)
    learning_rate: float = flag(1e-3, "after the warm-up", above=0)
    num_workers: int = flag(default_workers(), "processes that draw scenes", at_least=0)
    seed: int = flag(0, "of weights, scenes and noise")
    mixed_precision: str = flag(
        "bf16" if on_gpu() or torch.cpu.get_capabilities().get("avx512_bf16") else "no",
        "bf16 is twice as fast on a GPU and on a CPU with AVX512-BF16, ten times as slow on others",
        choices=("no", "bf16", "fp16"),
    )


@dataclass
class TransformerArgs(LearnArgs):
    """vision transformer"""

    width: int = flag(160, f"of the tokens; multiple of {HEAD_WIDTH}", at_least=1)
    layers: int = flag(6, "of the transformer that sees the picture", at_least=1)
    patch: int = flag(8, f"side of a patch (px); divides {SIZE}", at_least=1)


def shape_complaints(args: TransformerArgs) -> list[str]:
    """Complain about sizes that do not divide each other."""
    complaints = []
    if args.width % HEAD_WIDTH:
        complaints.append(f"--width {args.width}: must be a multiple of {HEAD_WIDTH}")
    if args.patch < 1 or SIZE % args.patch:
        complaints.append(f"--patch {args.patch}: must divide {SIZE}")
    return complaints


def make_accelerator(args: LearnArgs) -> Accelerator:
    """Start accelerate for one process.

    Raises:
        SetupError: the flags or the launch ask for what cannot be had.
    """
    refuse(range_complaints(args))
    if args.start_from and not args.start_from.is_dir():
        raise SetupError(f"--start_from {args.start_from}: no such folder")
    if args.mixed_precision == "fp16" and not on_gpu():
        raise SetupError("--mixed_precision fp16 needs a GPU; use bf16 or no here")
    accelerator = Accelerator(cpu=cpu_is_meant(), mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise SetupError("the miniature is trained by one process; launch without accelerate")
    torch.manual_seed(args.seed)
    return accelerator


def plain_attention(accelerator: Accelerator, *models: Any) -> None:
    """Have models of diffusers or transformers attend by matrix products where that is faster.

    On a CPU the backward pass of PyTorch's fused attention takes a third of a training step.
    """
    if accelerator.device.type != "cpu":
        return
    for model in models:
        if isinstance(model, PreTrainedModel):
            model.set_attn_implementation("eager")
        else:
            model.set_attn_processor(AttnProcessor())


def prepare(accelerator: Accelerator, model: Any, muon: bool = False) -> Learner:
    """Put a model on its device, with AdamW and its parameters' running mean.

    With muon, Muon optimizes the matrices of linear layers, at the same rate.
    """
    matrices = [
        module.weight for module in model.modules() if muon and isinstance(module, nn.Linear)
    ]
    taken = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        )
    ema = EMAModel(list(model.parameters()), decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    model, *prepared = accelerator.prepare(model, *optimizers)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters / 1e6:.2f} M parameters on {accelerator.device}")
    return Learner(model, tuple(prepared), ema)


def learn(loss: Tensor, learner: Learner, run: "Run") -> None:
    """Take an optimizer step at the rate that is due."""
    run.accelerator.backward(loss)
    run.accelerator.clip_grad_norm_(learner.model.parameters(), 1.0)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = run.rate
        optimizer.step()
        optimizer.zero_grad()
    learner.ema.step(learner.model.parameters())


def learning_rate(args: LearnArgs, step: int, minutes: float) -> float:
    """Return the rate: it warms up linearly, stays, and falls linearly to 0 at a session's end.

    A continued run takes a new rate from its flags.

    Args:
        args: see `LearnArgs`.
        step: optimizer steps of all sessions before this one.
        minutes: since this session began.
    """
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    left = max(0.0, args.minutes - minutes)
    cool = min(1.0, left / args.cool_minutes) if args.cool_minutes else 1.0
    return args.learning_rate * warm * cool


def save_in_half(model: PreTrainedModel, folder: Path) -> None:
    """Save a transformers model with fp16 weights and a config that has them loaded as float32."""
    halves = {
        name: weights.half() if weights.is_floating_point() else weights
        for name, weights in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=halves)


def hold_settings(folder: Path, settings: Mapping[str, str | int]) -> None:
    """Note what a folder's pictures are made by.

    Raises:
        SetupError: it holds pictures made otherwise.
    """
    path = folder / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise SetupError(f"--output {folder}: holds pictures of {path.read_text()}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings))


class Run:
    """A run's progress, its checkpoint, and when to save, to draw a sheet and to stop.

    As a context manager it turns SIGTERM and Ctrl-C into `finished`.

    Args:
        accelerator: has prepared the learner.
        learner: what `prepare` returned.
        args: see `LearnArgs`.
        identity: what a checkpoint must have been trained on to be continued, in words.
    """

    def __init__(self, accelerator: Accelerator, learner: Learner, args: LearnArgs, identity: str):
        self.accelerator = accelerator
        self.learner = learner
        self.args = args
        self.identity = identity
        self.folder: Path = args.state_dir
        self.progress = Progress()
        self.loss: float | None = None
        self._stop = False
        self._previous: dict[int, Any] = {}
        self._start = self._ticked = self._saved = self._drawn = 0.0  # moments; set on entry

    def __enter__(self) -> "Run":
        """Read the checkpoint, if there is one, and begin to count the time.

        Raises:
            SetupError: the checkpoint is of something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clean_up(self.folder)
        if (self.folder / CHECKPOINT).is_dir():
            self._restore(self.folder / CHECKPOINT)
        self._previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._start = self._ticked = self._saved = self._drawn = time.monotonic()
        interval = 0.5 if sys.stderr.isatty() else QUIET_SECONDS
        self._bar = tqdm(
            total=self.args.max_steps, initial=self.progress.step, mininterval=interval, unit="step"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Save, unless an error ended the run."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._bar.close()
        if error is None:
            self.save()

    def _restore(self, checkpoint: Path) -> None:
        saved = json.loads((checkpoint / PROGRESS).read_text())
        trained = saved.pop("identity")
        if trained != self.identity:
            raise SetupError(f"{checkpoint} is of {trained}, this run of {self.identity}")
        load_learner(self.learner, checkpoint)
        self.progress = Progress(**saved)
        print(f"continuing {checkpoint} after {self.progress.pictures} pictures")

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True

    @property
    def finished(self) -> bool:
        """Whether the loop must end: a signal came, or the steps or minutes are used up."""
        steps_done = self.args.max_steps is not None and self.progress.step >= self.args.max_steps
        return self._stop or steps_done or self._since(self._start) >= self.args.minutes

    @property
    def rate(self) -> float:
        return learning_rate(self.args, self.progress.step, self._since(self._start))

    def count(self, pictures: int, loss: Tensor) -> None:
        """Count one optimizer step; loss is a scalar. Saves when it is time to.

        Raises:
            SetupError: the loss is no longer a finite number; nothing is saved.
        """
        value = loss.item()
        if not value < float("inf"):
            raise SetupError(f"step {self.progress.step}: the loss is {value}; nothing was saved")
        now = time.monotonic()
        self.progress.step += 1
        self.progress.pictures += pictures
        self.progress.seconds += now - self._ticked
        self._ticked = now
        memory = LOSS_MEMORY if self.loss is not None else 0.0
        self.loss = memory * (self.loss or 0.0) + (1 - memory) * value
        self._bar.set_postfix(
            loss=f"{self.loss:.4f}", pictures=self.progress.pictures, refresh=False
        )
        self._bar.update()
        if self._since(self._saved) >= self.args.save_minutes:
            self.save()

    def sheet_due(self) -> bool:
        """Return whether it is time for a sheet, at most once each time."""
        due = self._since(self._drawn) >= self.args.sheet_minutes
        if due:
            self._drawn = time.monotonic()
        return due

    def save(self) -> None:
        """Write the checkpoint, complete or not at all, and a line to log.jsonl."""
        checkpoint = self.folder / CHECKPOINT
        temporary = temporary_folder(checkpoint)
        save_learner(self.learner, temporary)
        saved = {"identity": self.identity, **asdict(self.progress)}
        write_text(temporary / PROGRESS, json.dumps(saved))
        finish_folder(checkpoint)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({**asdict(self.progress), "loss": self.loss}) + "\n")
        self._saved = time.monotonic()

    @staticmethod
    def _since(moment: float) -> float:
        return (time.monotonic() - moment) / 60
