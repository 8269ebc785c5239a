"""The course of a run, known before a model is loaded: its steps, epochs, seed and checkpoint."""

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, set_seed

from mudi.data import DrawSchedule
from mudi.ground.errors import SetupError
from mudi.ground.files import clean_up
from mudi.ground.flags import FIXED, FREE, differences, resuming
from mudi.metadata import Subjects
from mudi.training.args import TrainingArgs
from mudi.training.checkpoints import read_state, resolve_resume, run_of, step_of
from mudi.training.checks import Data
from mudi.training.saving import public_arguments

VALIDATION = "validation"  # folder of the images made while training
logger = get_logger("mudi")


@dataclass(frozen=True)
class Plan:
    """The course of a run, known before a model is loaded.

    Attributes:
        resume: checkpoint to go on from.
        num_steps: optimizer steps of the whole run.
        epoch_steps: optimizer steps of an epoch.
        validation_epochs: epochs between validation images.
        settings: what a checkpoint remembers, to compare when it is continued.
        run: the run's id, which the runs that continue it keep.
    """

    output_dir: Path
    resume: Path | None
    num_steps: int
    epoch_steps: int
    validation_epochs: int
    settings: dict[str, Any]
    run: str
    schedule: DrawSchedule

    @property
    def seed(self) -> int:
        """The run's: the flag's, the checkpoint's or a new one."""
        return self.schedule.seed

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        return {"run": self.run, "settings": self.settings}

    def validates(self, step: int) -> bool:
        """Say whether a step is followed by validation images.

        As in the original, the first come after the first epoch; the last after the last step.
        """
        epochs, rest = divmod(step, self.epoch_steps)
        return step == self.num_steps or (rest == 0 and (epochs - 1) % self.validation_epochs == 0)

    def draws(self, first_step: int) -> DrawSchedule:
        """Return the draws from an optimizer step on."""
        return replace(self.schedule, first_step=first_step)


def plan_run(accelerator: Accelerator, args: TrainingArgs, data: Data) -> Plan:
    """Mend what a killed run left, find the checkpoint to resume, settle the seed, count steps.

    Gives args.seed a value that all processes share: the flag's, the checkpoint's or a new one.

    Raises:
        SetupError: the checkpoint is of a run with other weights' shapes.
    """
    output_dir = Path(args.output_dir)
    if accelerator.is_main_process and output_dir.is_dir() and not args.dry_run:
        clean_up(output_dir, VALIDATION)
    accelerator.wait_for_everyone()
    resume = _find_resume(args, output_dir)
    if args.seed is None and resume is not None:
        args.seed = read_state(resume)["settings"]["seed"]
    run = (run_of(resume) if resume else None) or secrets.token_hex(8)
    seed, run = broadcast_object_list([secrets.randbits(31), run])
    if args.seed is None:
        args.seed = seed
        logger.info(f"--seed is unset; this run's is {args.seed}")
    set_seed(args.seed)

    subjects = data.subjects
    epoch_steps = _epoch_steps(accelerator, args, data)
    num_steps = args.max_train_steps or args.num_train_epochs * epoch_steps
    _warn_of_warm_up(args, num_steps)
    _tell_of_checkpoints(args, num_steps)
    if resume is not None and step_of(resume) > num_steps:
        logger.warning(f"{resume.name} is past the run's {num_steps} steps; nothing is trained")
    schedule = DrawSchedule(
        num_photos=len(subjects.pictures),
        seed=args.seed,
        batch_size=args.train_batch_size,
        first_step=0,
        last_step=num_steps,
        accumulation=args.gradient_accumulation_steps,
        repeats=args.repeats,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        sources=subjects.sources,
    )
    return Plan(
        output_dir=output_dir,
        resume=resume,
        num_steps=num_steps,
        epoch_steps=epoch_steps,
        validation_epochs=args.validation_epochs,
        settings=_run_settings(accelerator, args, subjects),
        run=run,
        schedule=schedule,
    )


def _epoch_steps(accelerator: Accelerator, args: TrainingArgs, data: Data) -> int:
    """Return the optimizer steps in which every photo, or every class picture, comes once.

    Whichever are more: so the original counts epochs, and with them validation.
    """
    epoch = len(data.subjects.pictures) * args.repeats
    if data.prior is not None:
        epoch = max(epoch, len(data.prior.photos))
    samples = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    return math.ceil(epoch / samples)


def _warn_of_warm_up(args: TrainingArgs, num_steps: int) -> None:
    """Warn of a rate that rises for the whole run, and say how far."""
    if args.lr_scheduler == "constant" or args.lr_warmup_steps < num_steps:
        return
    last = args.learning_rate * (num_steps - 1) / args.lr_warmup_steps
    logger.warning(
        f"--lr_warmup_steps {args.lr_warmup_steps}: no fewer than the run's {num_steps} steps, so "
        f"the rate only rises, from 0 to {last:.3g}, and never is --learning_rate "
        f"{args.learning_rate:g}"
    )


def _tell_of_checkpoints(args: TrainingArgs, num_steps: int) -> None:
    """Say so where a run writes nothing that it could be continued from."""
    if args.checkpointing_steps > num_steps:
        logger.info(
            f"--checkpointing_steps {args.checkpointing_steps}: more than the run's {num_steps} "
            "steps, so no checkpoint is written and a stopped run begins anew; fewer let it go on"
        )


def _find_resume(args: TrainingArgs, output_dir: Path) -> Path | None:
    if not args.resume_from_checkpoint:
        return None
    warnings: list[str] = []
    checkpoint = resolve_resume(output_dir, args.resume_from_checkpoint, warnings)
    for warning in warnings:
        logger.warning(warning)
    if checkpoint is None:
        logger.info(f"--resume_from_checkpoint latest: none in {output_dir}, starting anew")
        return None
    now = {key: value for key, value in vars(args).items() if key in resuming(args, FIXED)}
    if changed := differences(read_state(checkpoint)["settings"], now, vars(type(args)())):
        raise SetupError(f"{checkpoint} cannot be continued: {'; '.join(changed)}")
    return checkpoint


def _run_settings(
    accelerator: Accelerator, args: TrainingArgs, subjects: Subjects
) -> dict[str, Any]:
    """Return what a checkpoint remembers of its run, to compare when it is continued."""
    free = set(resuming(args, FREE))
    if not args.lr_scheduler.startswith("constant"):
        free.remove("max_train_steps")  # the rates of the others depend on the run's length
    settings = {key: value for key, value in public_arguments(args).items() if key not in free}
    photos = [[p.image.name, p.subject, p.caption] for p in subjects.photos]
    scenes = [[s.image.name, *s.subjects, s.caption] for s in subjects.scenes]
    return {
        **settings,
        "num_processes": accelerator.num_processes,
        "names": subjects.names,
        "photos": photos + scenes,
        **({"shares": subjects.shares} if subjects.shares else {}),
    }
