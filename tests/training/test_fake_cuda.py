"""The GPU path without a GPU: tensors on "cuda" that have no data, in all that runs forward.

What stays behind on the CPU, or has a precision that the next operation can't take, raises.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.z_image import pipeline_z_image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from training import Backbone, reset_accelerate

from mudi import denoising
from mudi.backbones.parts import shapes_only
from mudi.backbones.table import backbone_of
from mudi.data import Batch, make_loader
from mudi.denoising import Models, PromptTable
from mudi.ground.memory import fake_tensors
from mudi.latents import LatentCache, decode_latents, encode_images
from mudi.training import runtime
from mudi.training.optimizers import Training

CUDA = torch.device("cuda")


@contextmanager
def autocast_for_absent_cuda(dtype: torch.dtype, enabled: bool) -> Iterator[None]:
    """`torch.autocast` switches itself off where there is no GPU."""
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", enabled)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


class CudaGenerator(torch.Generator):
    """A CPU's generator that says it is CUDA's, as one made for a device that is not there."""

    device = CUDA

    def __new__(cls, device: object = None) -> "CudaGenerator":
        assert device is None or torch.device(device).type == "cuda"
        return super().__new__(cls)


class ForwardOnly:
    """What a pass asks of accelerate, on a device that is not there and has no backward pass."""

    device = CUDA
    sync_gradients = False

    def accumulate(self, model: nn.Module) -> nullcontext:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)


class Loaded:
    """A script's models as it loads them for a GPU, and a batch of its data."""

    def __init__(self, backbone: Backbone, folder: Path, words: str, precision: str):
        self.script, kind = backbone.script, backbone_of(backbone.pipeline_class.__name__)
        words = f"--dry_run --mixed_precision {precision} --segmix_prob 1 {words}"
        self.args = self.script.parse_args(backbone.flags(folder, words))
        reset_accelerate()
        run = runtime.set_up(self.args, self.script.check_args(self.args), kind)
        self.prompts = run.dataset.prompts()
        self.batch: Batch = next(iter(make_loader(run.dataset, run.plan.draws(0), 0)))
        self._device = SimpleNamespace(mixed_precision=precision, device=CUDA)
        self._dtype, self._mixed = runtime.weight_dtype(self._device), precision != "no"

    def models(self) -> Models:
        return self.script.load_models(self.args, self._device, self.prompts)

    def run_pass(self, models: Models, cache: LatentCache) -> None:
        optimizer = SimpleNamespace(step=lambda: None, zero_grad=lambda: None)
        training = Training(models.denoiser, models.denoiser, optimizer, None, [], 0)
        with autocast_for_absent_cuda(self._dtype, self._mixed):
            self.script.run_pass(
                self.args, ForwardOnly(), models, training, self.batch, CudaGenerator(), cache
            )


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("--dco_beta 100", "no"),
        ("--dco_beta 100", "fp16"),
        ("--train_text_encoder", "no"),
        ("--train_text_encoder", "bf16"),
        ("--quantize_base nf4", "bf16"),
    ],
)
def test_a_pass_runs_forward(backbone: Backbone, flags: str, precision: str, tmp_path) -> None:
    """The second takes its latents from the cache."""
    loaded = Loaded(backbone, tmp_path, flags, precision)
    cache = LatentCache()
    with shapes_only(), fake_tensors():
        models = loaded.models()
        for _ in range(2):
            loaded.run_pass(models, cache)


def test_what_stays_on_the_cpu_is_found(backbone: Backbone, tmp_path) -> None:
    """Prompts in host memory, then a layer."""
    loaded = Loaded(backbone, tmp_path, "--dco_beta 0", "no")
    with shapes_only(), fake_tensors():
        models = loaded.models()
        table = models.denoiser._encode
        table._device = torch.device("cpu")
        table._entries = {k: denoising._moved(e, table._device) for k, e in table._entries.items()}
        with pytest.raises(RuntimeError, match="device"):
            loaded.run_pass(models, LatentCache())
        models = loaded.models()
        layer = next(m for m in models.denoiser.modules() if isinstance(m, nn.Linear))
        layer.to("cpu")
        with pytest.raises(RuntimeError, match="device"):
            loaded.run_pass(models, LatentCache())


def test_dco_s_reference_is_asked_on_the_device_without_gradients(
    backbone: Backbone, tmp_path, monkeypatch
) -> None:
    told: list[tuple] = []
    errors = denoising.denoising_errors

    def note(denoiser, task):
        result = errors(denoiser, task)
        told.append((result.requires_grad, result.device.type, result.dtype, *result.shape))
        return result

    monkeypatch.setattr(denoising, "denoising_errors", note)
    loaded = Loaded(backbone, tmp_path, "--dco_beta 100 --train_batch_size 2", "bf16")
    with shapes_only(), fake_tensors():
        loaded.run_pass(loaded.models(), LatentCache())
    assert told == [(grad, "cuda", torch.float32, 2) for grad in (False, True)]


@pytest.mark.parametrize("kept_bytes", [1 << 20, 0], ids=["kept", "copied each time"])
@pytest.mark.parametrize("encodes_on", ["cuda", "cpu"])
def test_prompts_come_from_the_table_on_the_device(kept_bytes: int, encodes_on: str) -> None:
    def encode(prompts: list[str]) -> tuple[Tensor, Tensor]:
        made = {"device": encodes_on, "dtype": torch.bfloat16}
        return torch.zeros(len(prompts), 3, 4, **made), torch.zeros(len(prompts), 4, **made)

    with fake_tensors():
        table = PromptTable(encode, ["a", "b"], CUDA, kept_bytes)
        assert {t.device.type for entry in table._entries.values() for t in entry} == {"cpu"}
        for _ in range(2):
            tokens, pooled = table(["a", "b", "a"])
            assert (tokens.shape, pooled.shape) == ((3, 3, 4), (3, 4))
            assert {t.device.type for t in (tokens, pooled)} == {"cuda"}
            assert {t.dtype for t in (tokens, pooled)} == {torch.bfloat16}
        where = {t.device.type for entry in table._entries.values() for t in entry}
    assert where == {"cuda" if kept_bytes else "cpu"}


@pytest.mark.parametrize("flags", ["", "--vae_slicing"])
@pytest.mark.parametrize("cached", [False, True])
def test_latents_are_float32_on_the_device_and_the_cache_is_in_host_memory(
    backbone: Backbone, tmp_path, flags: str, cached: bool
) -> None:
    loaded = Loaded(backbone, tmp_path, f"--train_batch_size 2 {flags}", "bf16")
    cache = LatentCache() if cached else None
    space = backbone_of(backbone.pipeline_class.__name__).module.SPACE
    with shapes_only(), fake_tensors():
        vae = loaded.models().vae
        pixels = loaded.batch.to(CUDA).pixels
        for generator in (CudaGenerator(), None):  # the second finds what the first kept
            latents = encode_images(vae, pixels, generator, cache, ["a", None], space)
            assert (latents.device.type, latents.dtype) == ("cuda", torch.float32)
            assert latents.shape[1:] == space.shape(vae.config.latent_channels, (8, 8))[1:]
        if cache is not None:
            assert {entry.device.type for entry in cache._entries.values()} == {"cpu"}
            assert len(cache) == 1
        decoded = decode_latents(vae, latents, space)
    assert (decoded.device.type, decoded.dtype) == ("cuda", vae.dtype)
    assert decoded.shape == (2, 3, 64, 64)


def test_a_half_safe_vae_encodes_in_half_precision_on_the_device(sdxl_backbone, tmp_path) -> None:
    half = f"--pretrained_vae_model_name_or_path {sdxl_backbone.base / 'vae'}"
    loaded = Loaded(sdxl_backbone, tmp_path, half, "fp16")
    with shapes_only(), fake_tensors():
        vae = loaded.models().vae
        latents = encode_images(vae, loaded.batch.to(CUDA).pixels, CudaGenerator())
        assert (vae.dtype, vae.device.type) == (torch.float16, "cuda")
        assert (latents.dtype, latents.device.type) == (torch.float32, "cuda")
        assert decode_latents(vae, latents).dtype == torch.float16


def shown_by(pipeline) -> list[Tensor]:
    """Let a pipeline keep the pictures that it would turn into files, which takes data.

    Its scheduler, whose noise levels are computed on the CPU, computes them with data.
    """
    shown: list[Tensor] = []

    def keep(image: Tensor, output_type: str) -> list[Tensor]:
        shown.append(image)
        return [image]

    scheduler = pipeline.scheduler
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)  # pipelines look at its parameters
    def set_with_data(*given: Any, device: Any = None, **more: Any) -> None:
        with unset_fake_temporarily():
            set_timesteps(*given, device="cpu", **more)
            scheduler.sigmas = scheduler.sigmas.double().numpy()  # its steps compare them
        scheduler.timesteps = scheduler.timesteps.to(device)

    scheduler.set_timesteps = set_with_data
    scheduler.index_for_timestep = lambda *_: 0  # compares values
    pipeline.image_processor.postprocess = keep
    return shown


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_validation_picture_is_sampled_on_the_device(
    backbone: Backbone, tmp_path, monkeypatch, precision: str
) -> None:
    words = "--validation_prompt dog --num_validation_inference_steps 2"
    if "zimage" in backbone.script.__name__:  # guiding, its pipeline reads the levels' values
        words += " --validation_guidance_scale 0"
    loaded = Loaded(backbone, tmp_path, words, precision)
    monkeypatch.setattr(torch, "Generator", CudaGenerator)
    levels = unset_fake_temporarily()(pipeline_z_image.get_default_z_image_sigmas)  # with data
    monkeypatch.setattr(pipeline_z_image, "get_default_z_image_sigmas", levels)
    with shapes_only(), fake_tensors():
        models = loaded.models()
        sample: Callable = models.sample
        shown = shown_by(sample.args[0])
        with autocast_for_absent_cuda(loaded._dtype, loaded._mixed):
            sample(7)
    [picture] = shown
    assert (picture.device.type, picture.dtype) == ("cuda", torch.float32)
    assert picture.shape == (1, 3, 64, 64)
