"""Which device is worked on: accelerate's, whatever the machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from cpu_beside_gpu import work
from helpers import ROOT, SCRIPT_FOLDERS
from PIL import Image
from test_launch import offline
from training import lora_of, reset_accelerate

from mini.tiny import save_tiny_dinov2, save_tiny_owlv2
from mudi.backbones import quantization
from mudi.ground.devices import accelerate_device, cpu_is_meant, on_gpu

# torch and torchao themselves are told the truth: they would start the GPU when imported
A_GPU_SEEMS_THERE = """
import sys
import torch

def is_available():
    return sys._getframe(1).f_globals["__name__"].split(".")[0] not in ("torch", "torchao")

torch.cuda.is_available = is_available
"""


@pytest.mark.parametrize(
    "use_cpu, named, is_there, expected",
    [
        (None, None, False, "cpu"),
        (None, None, True, "cuda"),
        ("false", None, True, "cuda"),
        ("true", None, True, "cpu"),
        ("True", None, True, "cpu"),
        ("true", "cuda:1", True, "cuda:1"),
        (None, "cpu", True, "cpu"),
    ],
)
def test_the_device_is_the_one_that_accelerate_will_take(
    monkeypatch, use_cpu, named, is_there, expected
):
    reset_accelerate()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: is_there)
    for name, value in (("ACCELERATE_USE_CPU", use_cpu), ("ACCELERATE_TORCH_DEVICE", named)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert str(accelerate_device()) == expected
    assert cpu_is_meant() is (use_cpu in ("true", "True") or not is_there)
    assert on_gpu() is expected.startswith("cuda")
    told = "".join(quantization.complaints("nf4"))
    assert ("needs a CUDA GPU" in told) is (expected == "cpu")
    assert not PartialState._shared_state  # nothing was started


def test_the_device_is_the_one_that_accelerate_has_taken(monkeypatch):
    reset_accelerate()
    PartialState(cpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert accelerate_device() == torch.device("cpu")
    reset_accelerate()


def test_the_suite_sees_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


@pytest.fixture(scope="module")
def models(sdxl_backbone, flux_backbone, tmp_path_factory) -> list[Path]:
    """An SDXL, a FLUX, a detector and an embedder."""
    folder = tmp_path_factory.mktemp("metric")
    owlv2 = save_tiny_owlv2(folder / "owlv2", grid=2)
    return [sdxl_backbone.base, flux_backbone.base, owlv2, save_tiny_dinov2(folder / "dinov2")]


def scores(output: Path) -> list[dict]:
    lines = (output / "scores/scores.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_work_on_the_cpu_is_the_same_where_a_gpu_is_there(models, tmp_path):
    """Both trainings, inference.py and Detect-and-Compare, with their default precision."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(A_GPU_SEEMS_THERE)
    path = os.pathsep.join([str(tmp_path / "site"), *SCRIPT_FOLDERS, str(ROOT / "tests")])
    environment = offline(ACCELERATE_USE_CPU="true", PYTHONPATH=path)
    words = [str(word) for word in (tmp_path / "beside", *models)]
    script = str(ROOT / "tests/cpu_beside_gpu.py")
    subprocess.run([sys.executable, script, *words], env=environment, check=True)
    work(tmp_path / "alone", models[:2], *models[2:])

    for part in ("unet", "transformer"):
        alone, beside = (lora_of(tmp_path / name / part) for name in ("alone", "beside"))
        torch.testing.assert_close(beside, alone, rtol=0, atol=0)
        ours, theirs = (pixels(tmp_path / n / f"pictures/{part}.png") for n in ("alone", "beside"))
        assert abs(ours - theirs).max() <= 1
    alone, beside = (scores(tmp_path / name) for name in ("alone", "beside"))
    assert [line["image"] for line in beside] == ["transformer.png", "unet.png"]
    assert [line["boxes"] for line in beside] == [line["boxes"] for line in alone]
    for ours, theirs in zip(alone, beside, strict=True):
        for name, scored in ours["scores"].items():
            np.testing.assert_allclose(
                theirs["scores"][name]["similarity"], scored["similarity"], atol=0.05
            )


@pytest.mark.gpu
def test_a_checkpoint_of_a_cpu_goes_on_on_a_gpu_in_half_precision(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    more = "--max_train_steps 2 --checkpointing_steps 1"
    backbone.train(tmp_path, more)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    (tmp_path / "pytorch_lora_weights.safetensors").unlink()
    backbone.train(tmp_path, more, "--max_train_steps 4 --resume_from_checkpoint latest")
    assert PartialState().device.type == "cuda"
    assert all(value.isfinite().all() for value in lora_of(tmp_path).values())
