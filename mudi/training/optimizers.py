"""The optimizers and learning-rate schedules that the flags name, ready to step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from mudi.denoising import Models
from mudi.training.args import TrainingArgs
from mudi.training.planning import Plan
from mudi.training.saving import keep_in_checkpoints, remove_overwritten, restore

logger = get_logger("mudi")


@dataclass(frozen=True)
class Training:
    """All that changes in a run, as accelerate wrapped it.

    Attributes:
        denoiser: the network to train.
        base: the same network unwrapped; its adapters can be switched off.
        parameters: what the optimizer steps.
        first_step: optimizer steps done already, by the run that is continued.
    """

    denoiser: nn.Module
    base: nn.Module
    optimizer: Any
    lr_scheduler: Any
    parameters: list[Parameter]
    first_step: int

    def step(self, accelerator: Accelerator, loss: Tensor, max_grad_norm: float) -> Tensor | None:
        """Add a loss's gradients; with a step's last pass clip them and step the optimizer.

        Returns:
            The length of all gradients together before they are clipped, a scalar on the device;
            None but for the last pass.
        """
        accelerator.backward(loss)
        norm = None
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(self.parameters, max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def prepare_training(
    accelerator: Accelerator,
    args: TrainingArgs,
    plan: Plan,
    pipeline_class: Any,
    models: Models,
) -> Training:
    """Build optimizer and rates over the adapters, wrap them, restore the checkpoint if any."""
    encoders = trainable(models.denoiser.get_submodule("text_encoders"))
    words = trainable(models.words) if models.words else []
    others = {id(parameter) for parameter in (*encoders, *words)}
    denoiser_only = [p for p in trainable(models.denoiser) if id(p) not in others]
    optimizer = make_optimizer(args, denoiser_only, encoders, accelerator.num_processes, words)
    if models.words:
        optimizer.register_step_post_hook(models.words.rescale)
    lr_scheduler = make_lr_scheduler(args, optimizer, plan.num_steps)
    denoiser, optimizer = accelerator.prepare(models.denoiser.train(), optimizer)
    keep_in_checkpoints(accelerator, pipeline_class, models.adapted, lr_scheduler, models.words)
    first_step = 0
    if plan.resume:
        parts = (models.adapted, optimizer, lr_scheduler, models.words)
        first_step = restore(accelerator, plan.resume, plan.settings, *parts)
    if args.overwrite_output_dir:
        remove_overwritten(accelerator, plan.output_dir, plan.resume)
    return Training(
        denoiser=denoiser,
        base=accelerator.unwrap_model(denoiser),
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        parameters=[*denoiser_only, *encoders, *words],
        first_step=first_step,
    )


def trainable(module: nn.Module) -> list[Parameter]:
    """Return the parameters that want gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def make_optimizer(
    args: TrainingArgs,
    parameters: list[Parameter],
    text_encoder_parameters: list[Parameter],
    num_processes: int,
    word_parameters: Sequence[Parameter] = (),
) -> Optimizer:
    """Build --optimizer over the denoiser's and, where they train, the text encoders' LoRA.

    Args:
        word_parameters: learned words' rows. Weight decay would be undone by their rescaling.
    """
    scale = 1
    if args.scale_lr:
        scale = args.gradient_accumulation_steps * args.train_batch_size * num_processes
    prodigy = args.optimizer.lower() == "prodigy"
    # Prodigy finds its own rate; two different ones confuse it
    text_encoder_lr = args.learning_rate * scale if prodigy else args.text_encoder_lr
    word_lr = args.learning_rate * scale if prodigy else args.word_learning_rate
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": args.learning_rate * scale,
            "weight_decay": args.adam_weight_decay,
        }
    ]
    if text_encoder_parameters:
        groups.append(
            {
                "params": text_encoder_parameters,
                "lr": text_encoder_lr,
                "weight_decay": args.adam_weight_decay_text_encoder,
            }
        )
    if word_parameters:
        groups.append({"params": [*word_parameters], "lr": word_lr, "weight_decay": 0.0})
    shared: dict[str, Any] = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if args.dry_run and (args.use_8bit_adam or args.optimizer.lower() != "adamw"):
        return FormulaOptimizer(groups, "adam8bit" if args.use_8bit_adam else args.optimizer)
    if prodigy:
        return _prodigy(args, groups, shared)
    if args.optimizer.lower() == "adafactor":  # at the flag's rate, as trainers use it
        return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)
    if args.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(groups, **shared)
    # On a CPU the fused step takes a third of the time. On a GPU PyTorch's own choice stays: there
    # a fused step hides from accelerate that float16 overflowed, and the rate would move on.
    on_cpu = parameters[0].device.type == "cpu"
    return torch.optim.AdamW(groups, fused=True if on_cpu else None, **shared)


def _prodigy(args: TrainingArgs, groups: list[dict], shared: dict[str, Any]) -> Optimizer:
    import prodigyopt

    if args.learning_rate <= 0.1:
        logger.warning("--optimizer prodigy scales its own rate: use --learning_rate 1.0 or so")
    return prodigyopt.Prodigy(
        groups,
        beta3=args.prodigy_beta3,
        decouple=args.prodigy_decouple,
        use_bias_correction=args.prodigy_use_bias_correction,
        safeguard_warmup=args.prodigy_safeguard_warmup,
        **shared,
    )


class FormulaOptimizer(Optimizer):
    """An optimizer that only makes its states, of the size that another's have; see .dry_run."""

    def __init__(self, groups: list[dict], kind: str):
        super().__init__(groups, {})
        self._state_bytes = STATE_BYTES[kind.lower()]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    size = self._state_bytes(parameter)
                    state = torch.empty(size, dtype=torch.uint8, device=parameter.device)
                    self.state[parameter]["all"] = state


def _adam8bit_bytes(p: Parameter) -> int:
    """Two bytes a weight and two float32 scales a block of 256; small tensors stay in float32."""
    return 8 * p.numel() if p.numel() < 4096 else 2 * p.numel() + 8 * -(-p.numel() // 256)


def _adafactor_bytes(p: Parameter) -> int:
    """Float32 means of rows and columns (arXiv 1804.04235, algorithm 4)."""
    return 4 * (p.shape[0] + p.shape[1]) if p.ndim == 2 else 4 * p.numel()


def _prodigy_bytes(p: Parameter) -> int:
    """Adam's two, the start and the sum of gradients, float32."""
    return 16 * p.numel()


STATE_BYTES: dict[str, Callable[[Parameter], int]] = {
    "adam8bit": _adam8bit_bytes,
    "adafactor": _adafactor_bytes,
    "prodigy": _prodigy_bytes,
}


def make_lr_scheduler(args: TrainingArgs, optimizer: Optimizer, num_steps: int) -> Any:
    """Build --lr_scheduler; it is stepped once an optimizer step, whatever the process count."""
    return get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=num_steps,
        num_cycles=args.lr_num_cycles,
        power=args.lr_power,
    )
