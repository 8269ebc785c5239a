"""The optimizers and learning-rate schedules that the flags name."""

import argparse
from typing import Any

import torch
from accelerate.logging import get_logger
from diffusers.optimization import get_scheduler
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

logger = get_logger("mudi")


def trainable(module: nn.Module) -> list[Parameter]:
    """Return the parameters that want gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def make_optimizer(
    args: argparse.Namespace,
    parameters: list[Parameter],
    text_encoder_parameters: list[Parameter],
    num_processes: int,
) -> Optimizer:
    """Build --optimizer over the denoiser's and, where they train, the text encoders' LoRA."""
    scale = 1
    if args.scale_lr:
        scale = args.gradient_accumulation_steps * args.train_batch_size * num_processes
    prodigy = args.optimizer.lower() == "prodigy"
    # Prodigy finds its own rate; two different ones confuse it
    text_encoder_lr = args.learning_rate if prodigy else args.text_encoder_lr
    groups = [
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
                "lr": text_encoder_lr * scale,
                "weight_decay": args.adam_weight_decay_text_encoder,
            }
        )
    shared = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if prodigy:
        return _prodigy(args, groups, shared)
    if args.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(groups, **shared)
    return torch.optim.AdamW(groups, **shared)


def _prodigy(args: argparse.Namespace, groups: list[dict], shared: dict[str, Any]) -> Optimizer:
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


def make_lr_scheduler(args: argparse.Namespace, optimizer: Optimizer, num_steps: int) -> Any:
    """Build --lr_scheduler; it is stepped once an optimizer step, whatever the process count."""
    return get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=num_steps,
        num_cycles=args.lr_num_cycles,
        power=args.lr_power,
    )
