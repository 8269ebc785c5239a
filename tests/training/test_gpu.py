"""What only a GPU can show: precisions, few bits, memory, copies, NCCL. `make test-gpu` runs them.

Each compares with the CPU, or with what was simulated; the random models are small, so they take
minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import ROOT, SCRIPT_FOLDERS
from PIL import Image
from safetensors.torch import load_file
from test_launch import offline
from test_stats import stats_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import EXAMPLE, Backbone, lora_of, reset_accelerate, sdxl_on

import inference
from mudi import lora
from mudi.backbones.table import backbone_of
from mudi.data import make_loader
from mudi.ground.devices import accelerate_device
from mudi.latents import LatentCache, encode_images
from mudi.training import dry_run, runtime, saving
from mudi.training.checkpoints import read_state

pytestmark = pytest.mark.gpu

MINIATURE = ROOT / "mini/weights/sdxl"
STEPS = "--max_train_steps 4 --checkpointing_steps 2"
# Largest difference from the CPU's float32, as a share of the largest value there
TOLERANCES = {"no": 0.01, "bf16": 0.1, "fp16": 0.02}


def device() -> torch.device:
    """The GPU, if the process works on one."""
    reset_accelerate()
    return accelerate_device()


def move(models) -> None:
    """Take the adapters away from their start, on any device by the same amounts."""
    generator = torch.Generator().manual_seed(5)
    for model in models.adapted.values():
        for parameter in model.parameters():
            if parameter.requires_grad:
                moved = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.data += moved.to(parameter.device)


def prediction(
    backbone: Backbone, folder: Path, precision: str, more: str = "", cpu: bool = False
) -> Tensor:
    """What the network answers to fixed latents, float32 on the CPU."""
    reset_accelerate()
    args = backbone.script.parse_args(backbone.flags(folder, more))
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    torch.manual_seed(0)
    models = backbone.script.load_models(args, accelerator, ["a olis robot"])
    move(models)
    generator, where = torch.Generator().manual_seed(1), accelerator.device
    sample = torch.randn(1, models.vae.config.latent_channels, 8, 8, generator=generator)
    sdxl = backbone.denoiser == "unet"
    time = torch.tensor([500] if sdxl else [0.5])
    conditions = torch.tensor([[64.0, 64, 0, 0, 64, 64]]) if sdxl else torch.empty(1, 0)
    with torch.no_grad(), accelerator.autocast():
        asked = (sample.to(where), time.to(where), ["a olis robot"], conditions.to(where))
        return models.denoiser(*asked).float().cpu()


def distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_network_answers_as_on_the_cpu(backbone, tmp_path, precision):
    on_cpu = prediction(backbone, tmp_path, "no", cpu=True)
    assert distance(prediction(backbone, tmp_path, precision), on_cpu) < TOLERANCES[precision]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_of_each_precision_saves_float32_and_goes_on(backbone, tmp_path, precision):
    """fp16's scale is in the checkpoint; a step that overflowed moves no rate."""
    more = f"{STEPS} --mixed_precision {precision} --lr_scheduler linear --validation_prompt dog "
    more += "--num_validation_images 1 --num_validation_inference_steps 2"
    backbone.train(tmp_path, more)
    state = lora_of(tmp_path / "checkpoint-4")
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in state.values())
    lines = stats_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    skipped = sum(line["grad_norm"] is None for line in lines)
    schedule = json.loads((tmp_path / "checkpoint-4" / saving.SCHEDULE_NAME).read_text())
    assert schedule["steps"] == 4 - skipped
    assert skipped == 0 or precision == "fp16"
    assert (tmp_path / "checkpoint-4" / saving.SCALER_NAME).is_file() is (precision == "fp16")
    assert "peak_gb" in lines[0] and lines[0]["peak_gb"] > 0
    backbone.train(tmp_path, more, "--max_train_steps 5 --resume_from_checkpoint latest")
    assert [line["step"] for line in stats_of(tmp_path)] == [1, 2, 3, 4, 5]


def test_two_and_two_steps_are_four(backbone, tmp_path):
    """Draws and noise are the same; kernels may add in another order."""
    straight = backbone.train(tmp_path / "straight", STEPS)
    whole = stats_of(straight)
    (tmp_path / "resumed").mkdir()
    (straight / "checkpoint-2").rename(tmp_path / "resumed/checkpoint-2")
    resumed = backbone.train(tmp_path / "resumed", STEPS, "--resume_from_checkpoint latest")
    torch.testing.assert_close(lora_of(resumed), lora_of(straight), rtol=1e-2, atol=1e-4)
    losses = [line["loss"] for line in stats_of(resumed)]
    assert losses == pytest.approx([line["loss"] for line in whole[2:]], rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "package", "tolerance"), [("nf4", "bitsandbytes", 0.5), ("int8", "torchao", 0.1)]
)
def test_few_bits_answer_nearly_the_same_and_train(backbone, tmp_path, kind, package, tolerance):
    pytest.importorskip(package)
    more = f"--quantize_base {kind}"
    whole = prediction(backbone, tmp_path / "none", "bf16")
    assert 0 < distance(prediction(backbone, tmp_path / "none", "bf16", more), whole) < tolerance
    out = backbone.train(tmp_path / "out", STEPS, more, "--mixed_precision bf16")
    ups = [v for k, v in lora_of(out).items() if k.endswith(("lora.up.weight", "lora_B.weight"))]
    assert ups and all(up.isfinite().all() and up.any() for up in ups)


def test_adam_in_8_bits_keeps_its_states_so_and_goes_on(backbone, tmp_path):
    pytest.importorskip("bitsandbytes")
    more = f"{STEPS} --use_8bit_adam --rank 128"  # smaller tensors than 4096 stay in float32
    backbone.train(tmp_path, more)
    states = torch.load(tmp_path / "checkpoint-4" / saving.OPTIMIZER_NAME, weights_only=True)
    found = [v.dtype for s in states["state"].values() for v in s.values() if v.numel() >= 4096]
    assert torch.uint8 in found
    backbone.train(tmp_path, more, "--max_train_steps 5 --resume_from_checkpoint latest")
    assert all(value.isfinite().all() for value in lora_of(tmp_path).values())


def test_attention_kernels_agree(backbone, tmp_path):
    """PyTorch's own choice, its plain formula, and xformers where that is installed."""
    with sdpa_kernel(SDPBackend.MATH):
        plain = prediction(backbone, tmp_path, "bf16")
    assert distance(prediction(backbone, tmp_path, "bf16"), plain) < TOLERANCES["bf16"]
    pytest.importorskip("xformers")
    flag = "--enable_xformers_memory_efficient_attention"
    assert distance(prediction(backbone, tmp_path, "bf16", flag), plain) < TOLERANCES["bf16"]


def test_batches_and_cached_latents_are_pinned_and_come_back_the_same(
    backbone, tmp_path, monkeypatch
):
    found = []

    def look(_args, accelerator, models, dataset, plan):
        batch = next(iter(make_loader(dataset, plan.draws(0), 0)))
        cache, pixels = LatentCache(), batch.to(accelerator.device).pixels
        with torch.no_grad():
            answers = [encode_images(models.vae, pixels, None, cache, ["a"]) for _ in range(2)]
        host = [batch.pixels, batch.mask, *cache._entries.values()]
        found.append((answers, [tensor.is_pinned() for tensor in host]))

    more = f"{STEPS} --cache_latents --dataloader_num_workers 2"
    out = backbone.train(tmp_path / "out", more)
    assert all(value.isfinite().all() for value in lora_of(out).values())
    monkeypatch.setattr(backbone.script, "train", look)
    backbone.train(tmp_path / "look", more)
    [((first, second), pinned)] = found
    assert pinned == [True, True, True]
    assert first.device.type == "cuda" and torch.equal(first, second)


def pictures(backbone: Backbone, folder: Path, *more: str) -> list[np.ndarray]:
    reset_accelerate()
    words = f"--pretrained_model_name_or_path={backbone.base} --instance_data_dir={EXAMPLE} "
    words += f"--output_dir={folder} --num_images=2 --width=64 --height=64 --steps=2 --gamma=0.5"
    prompt = "--prompt=a photo of a olis robot and a hta teddy bear"
    inference.main(inference.parse_args([*words.split(), prompt, "--seed=3", *more]))
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("0*.png"))]


def test_cpu_offload_makes_the_same_pictures(backbone, tmp_path):
    whole = pictures(backbone, tmp_path / "whole")
    offloaded = pictures(backbone, tmp_path / "offloaded", "--cpu_offload")
    assert len(whole) == len(offloaded) == 2
    assert max(abs(a - b).max() for a, b in zip(whole, offloaded, strict=True)) <= 2


def test_one_process_under_nccl_trains_as_one_without(backbone, tmp_path):
    alone = backbone.train(tmp_path / "alone", STEPS)
    words = backbone.flags(tmp_path / "out", STEPS)
    # `accelerate launch --multi_gpu` starts no single process; what it calls does
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    worker = [str(ROOT / "tests/two_processes.py"), backbone.script.__name__, str(tmp_path)]
    path = os.pathsep.join(SCRIPT_FOLDERS)
    environment = offline(PYTHONPATH=path)
    subprocess.run([*launch, *worker, *words], env=environment, check=True)
    assert json.loads((tmp_path / "rank0.json").read_text())["backend"] == "nccl"
    ours = load_file(tmp_path / "out" / lora.WEIGHTS_NAME)
    torch.testing.assert_close(ours, lora_of(alone), rtol=1e-2, atol=1e-4)


def test_noise_is_drawn_on_the_gpu_by_its_place_in_the_run(backbone, tmp_path):
    where = device()
    accelerator = Accelerator()
    ones, same, others = (runtime.step_generator(accelerator, 7, n) for n in (3, 3, 4))
    assert {g.device.type for g in (ones, same, others)} == {where.type} == {"cuda"}
    a, b, c = (torch.randn(8, generator=g, device=where) for g in (ones, same, others))
    assert torch.equal(a, b) and not torch.equal(a, c)
    _, models = backbone.loaded(tmp_path)
    indices = models.schedule.timestep_indices(5, ones)
    assert indices.device.type == "cuda"
    out = backbone.train(tmp_path / "out", STEPS)
    assert read_state(out / "checkpoint-4")["step"] == 4


def warm_up() -> None:
    """Let the libraries take their workspaces, which a simulation does not count."""
    images = torch.zeros(1, 8, 32, 32, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(7200, 8)).cuda()
        layers(images).sum().backward()


MEMORY = {
    "plain": "--mixed_precision no",
    "checkpointing": "--mixed_precision bf16 --gradient_checkpointing --dco_beta 100",
    "batch": "--mixed_precision bf16 --train_batch_size 4 --vae_slicing",
}


@pytest.mark.parametrize("flags", MEMORY.values(), ids=MEMORY.keys())
def test_what_is_simulated_is_within_a_tenth_of_what_a_run_takes(tmp_path, flags):
    """The miniature at 512 px, the images large enough for its attention to matter."""
    backbone = sdxl_on(MINIATURE)
    kind = backbone_of(backbone.pipeline_class.__name__)
    script, size = backbone.script, "--resolution 512 --max_train_steps 2"
    args = script.parse_args(backbone.flags(tmp_path / "dry", "--dry_run", size, flags))
    reset_accelerate()
    run = runtime.set_up(args, script.check_args(args), kind)
    parts = (run, kind, script.load_models, script.run_pass)
    simulated = dry_run.simulate(args, *parts).peak

    warm_up()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    backbone.train(tmp_path / "real", size, flags)
    real = torch.cuda.max_memory_allocated() - before
    assert simulated == pytest.approx(real, rel=0.1)


def test_float32_products_may_be_rounded_only_where_asked(backbone, tmp_path):
    assert not torch.backends.cuda.matmul.allow_tf32
    backbone.train(tmp_path, "--max_train_steps 1 --mixed_precision no --allow_tf32")
    assert torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
