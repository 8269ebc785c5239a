"""Where the time of an SDXL training pass goes: the script's own parts, one after the other.

    python -m mini.tiny sdxl /tmp/tiny-sdxl
    python benchmarks/bench_step.py --pretrained_model_name_or_path /tmp/tiny-sdxl \
        --instance_data_dir dataset/category/robot_and_teddy --output_dir /tmp/bench \
        --train_batch_size 1 --rank 32

Takes the flags of train_segmix_lora_sdxl.py. A pass is one micro-step; an optimizer step has
--gradient_accumulation_steps of them. Prints medians over 5 passes after 1 warm-up.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
PASSES, WARM_UP = 5, 1


def main(argv: list[str] | None = None) -> None:
    sys.path.insert(0, str(ROOT))  # the training script is no package
    import train_segmix_lora_sdxl as script
    from mudi import checks, lora, runtime, sdxl
    from mudi.data import SegMixDataset, collate
    from mudi.denoising import denoising_errors, make_task
    from mudi.latents import encode_images
    from mudi.losses import dco_loss, latent_weight
    from mudi.optimizers import make_optimizer, trainable
    from mudi.segmix import SDXL_STYLE

    args = script.parse_args(argv)
    args.max_train_steps = (PASSES + WARM_UP) // args.gradient_accumulation_steps + 1
    data = checks.load_data(args, SDXL_STYLE, script.check_args(args))
    accelerator = runtime.make_accelerator(args, on_gpu="fp16")
    plan = runtime.plan_run(accelerator, args, data.subjects)
    options = runtime.sample_options(args, SDXL_STYLE, data.scales)
    dataset = SegMixDataset(data.subjects, options, data.prior)
    for draws in plan.draws(0):  # decode the photos beforehand, as a run has after its first epoch
        collate([dataset[draw] for draw in draws])
    models = script.load_models(args, accelerator, dataset.prompts())
    denoiser = models.denoiser.train()
    parameters = trainable(denoiser)
    optimizer = make_optimizer(args, parameters, [], 1)

    clock = Clock(accelerator.device)
    for micro_step, draws in zip(range(PASSES + WARM_UP), plan.draws(0), strict=False):
        with clock("data"):
            batch = collate([dataset[draw] for draw in draws]).to(accelerator.device)
        generator = runtime.step_generator(accelerator, args.seed, micro_step)
        with clock("VAE"), torch.no_grad():
            latents = encode_images(models.vae, batch.pixels, generator)
        with clock("noise and mask"):
            weight = latent_weight(batch.mask, latents.shape[-2:], args.soft_alpha)
            ids = sdxl.size_conditions(batch.conditioning, args.resolution, False)
            task = make_task(models.schedule, latents, weight, batch.prompts, ids, generator)
        with clock("adapters off and on"), lora.adapters_off(denoiser):
            pass
        with clock("reference pass"), torch.no_grad(), lora.adapters_off(denoiser):
            reference = denoising_errors(denoiser, task)
        with clock("adapted pass"):
            errors = denoising_errors(denoiser, task)
        with clock("backward"):
            dco_loss(errors, reference, max(args.dco_beta, 1.0)).mean().backward()
        with clock("clip and optimizer"):
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    clock.report(args.resolution)


class Clock:
    """Gathers the seconds of named parts, with the device idle at both ends."""

    def __init__(self, device: torch.device):
        self._device = device
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._seconds.setdefault(part, []).append(time.perf_counter() - start)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def report(self, resolution: int) -> None:
        medians = {part: median(times[WARM_UP:]) for part, times in self._seconds.items()}
        print(f"\n{resolution} px on {self._device}, torch {torch.__version__}; ms a pass")
        for part, seconds in medians.items():
            share = seconds / sum(medians.values())
            print(f"  {part:24}{1e3 * seconds:10.1f}{share:8.1%}")
        print(f"  {'all':24}{1e3 * sum(medians.values()):10.1f}")


if __name__ == "__main__":
    main()
