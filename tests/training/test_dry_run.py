"""--dry_run: what is counted without data is what a real run takes; verdicts."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from helpers import ROOT
from torch import nn
from training import Backbone, reset_accelerate, sdxl_on

from mudi.backbones import quantization
from mudi.backbones.table import backbone_of
from mudi.ground.memory import StorageMeter, cuda_autocast, fake_tensors
from mudi.learned_words import fresh_words
from mudi.training import dry_run, runtime
from mudi.words import words_of

MINIATURE = ROOT / "mini/weights/sdxl"
EXACT = ("weights", "adapters", "optimizer", "gradients", "vae", "prompts")
# On a CPU group norm keeps the VAE's pixels channels-last, on CUDA and without data it does not:
# a copy of a small tensor more or less.
LAYOUT_BYTES = 2048
FLAGS = {
    "plain": "--rank 4 --mixed_precision no",
    "half": "--rank 4 --mixed_precision bf16 --dco_beta 100 --gradient_checkpointing",
    "dora": "--rank 2 --mixed_precision no --use_dora --train_text_encoder "
    "--gradient_accumulation_steps 2",
}


def both_ways(backbone: Backbone, folder: Path, flags: str) -> tuple[dry_run.Need, dry_run.Need]:
    """Return what is needed without data and with it."""
    script, kind = backbone.script, backbone_of(backbone.pipeline_class.__name__)
    words = backbone.flags(folder, "--dry_run --validation_prompt robot", flags)
    args = script.parse_args(words)
    reset_accelerate()
    run = runtime.set_up(args, script.check_args(args), kind)
    load = script.load_models
    if args.learn_words:
        load = partial(load, names=run.dataset.subjects.names.values())
    parts = (run, kind, load, script.run_pass)
    simulated = dry_run.simulate(args, *parts)
    batch = dry_run.first_batch(run)
    with cuda_autocast(), StorageMeter() as meter:
        real = dry_run.measure(args, *parts, batch, meter)
    return simulated, real


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_without_data_every_byte_is_counted_that_a_real_run_takes(
    backbone: Backbone, flags: str, tmp_path: Path
) -> None:
    simulated, real = both_ways(backbone, tmp_path, flags)
    assert [getattr(simulated, name) for name in EXACT] == [getattr(real, name) for name in EXACT]
    slack = LAYOUT_BYTES if "dora" in flags else 0
    assert abs(simulated.step - real.step) <= slack
    assert simulated.pictures == real.pictures > simulated.vae
    assert simulated.step > simulated.adapters


def test_a_validation_model_is_counted_apart(flux_backbone: Backbone, tmp_path: Path) -> None:
    plain, _ = both_ways(flux_backbone, tmp_path, FLAGS["plain"])
    flags = f"{FLAGS['plain']} --validation_model {flux_backbone.base}"
    simulated, real = both_ways(flux_backbone, tmp_path, flags)
    assert simulated.drawn == real.drawn == plain.weights + plain.adapters
    tables = simulated.prompts - plain.prompts  # its scheduler's, counted where prompts are
    assert simulated.prompts == real.prompts and 0 <= tables < 1 << 15
    assert simulated.pictures - simulated.drawn - tables == plain.pictures


def test_the_miniature_is_counted_to_the_byte(tmp_path: Path) -> None:
    simulated, real = both_ways(sdxl_on(MINIATURE), tmp_path, FLAGS["half"])
    assert replace(simulated, loading=0) == replace(real, loading=0)


def test_learned_words_and_the_encoders_that_stay_for_them_are_counted(
    sdxl_backbone: Backbone, tmp_path: Path
) -> None:
    plain, _ = both_ways(sdxl_backbone, tmp_path, FLAGS["plain"])
    simulated, real = both_ways(sdxl_backbone, tmp_path, f"{FLAGS['plain']} --learn_words")
    assert [getattr(simulated, name) for name in EXACT] == [getattr(real, name) for name in EXACT]
    assert abs(simulated.step - real.step) <= LAYOUT_BYTES
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_backbone.base)
    words = fresh_words(pipeline, words_of(["olis robot", "hta teddy bear"]))
    rows = sum(values.nbytes for values in words.rows.values())
    norms = sum(values.nbytes for values in words.buffers())
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    kept = sum(t.nbytes for e in encoders for t in (*e.parameters(), *e.buffers()))
    assert simulated.weights - plain.weights == kept + norms
    assert simulated.adapters - plain.adapters == rows


@pytest.mark.parametrize("backbone", ["sdxl"], indirect=True)  # the verdict is shared
def test_the_verdict_is_an_exit_code_and_names_what_helps(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone.run(backbone.flags(tmp_path, "--dry_run --fits 1"))
    assert "fits 1 GB (0.5 of 1)" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(SystemExit, match=r"does not fit 0\.1 GB; .*\(--.*--quantize_base nf4"):
        backbone.run(backbone.flags(tmp_path, "--dry_run --fits 0.1 --rank 64"))
    told = capsys.readouterr().out
    assert "--quantize_base nf4" in told and "--use_8bit_adam" in told
    assert "--gradient_checkpointing" in told


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4 + 32 / 64), ("int8", 8 + 32 / 256)])
def test_few_bits_take_what_the_formula_says_and_a_product_unpacks(kind: str, bits: float) -> None:
    with fake_tensors(), StorageMeter() as meter:
        layer = quantization.formula(nn.Sequential(nn.Linear(256, 512, False)), kind)
        held = sum(t.numel() * t.element_size() for t in layer.buffers())
        assert held == 512 * 256 * bits / 8
        layer = layer.to_empty(device="cpu").requires_grad_(False)
        x = torch.zeros(2, 256, requires_grad=True)
        before = meter.reset_peak()
        layer(x).sum().backward()
        assert x.grad is not None and x.grad.shape == (2, 256)
        assert meter.peak - meter.now >= 512 * 256 * 4
        assert before > 0


def test_nothing_is_advised_that_the_checks_refuse(backbone: Backbone, tmp_path: Path) -> None:
    script = backbone.script

    def advised(more: str) -> set[str]:
        args = script.parse_args(backbone.flags(tmp_path, "--dry_run --fits 0.1", more))
        return {flag for flag, _ in dry_run.allowed_savers(args, script.check_args)}

    general = {"vae_slicing", "gradient_checkpointing", "quantize_base"}
    own = {"encode_on_cpu"} if hasattr(script.parse_args([]), "encode_on_cpu") else set()
    assert advised("") == general | own | {"use_8bit_adam"}
    assert advised("--optimizer adafactor") == general | own
    if backbone.text_encoders:
        assert advised("--train_text_encoder") == general | {"use_8bit_adam"}
    assert advised("--quantize_base nf4 --vae_slicing") == own | {
        "gradient_checkpointing", "use_8bit_adam"
    }  # fmt: skip


def test_precision_is_what_a_saved_configuration_makes_it(
    sdxl_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` passes it on by the environment; "no" means something if it is saved."""
    args = sdxl_backbone.script.parse_args(sdxl_backbone.flags(tmp_path, "--dry_run"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(runtime, "default_config_file", str(tmp_path / "absent"))
    assert runtime.wanted_precision(args, "fp16", True) == "fp16"
    (tmp_path / "saved.yaml").touch()
    monkeypatch.setattr(runtime, "default_config_file", str(tmp_path / "saved.yaml"))
    assert runtime.wanted_precision(args, "fp16", True) == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert runtime.wanted_precision(args, "fp16", True) == "bf16"
