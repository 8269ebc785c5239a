"""The SDXL losses against hand-computed cases, on the tiny pipeline where a network is needed."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from training import move_weights

from mudi import denoising, lora
from mudi.backbones import sdxl
from mudi.latents import LatentCache, decode_latents, encode_images
from mudi.losses import dco_loss

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPTS = ["a olis robot", "a robot"]


def alphas() -> np.ndarray:
    """The cumulative alphas of SDXL's schedule, from its definition."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1 - betas)


class Constant(torch.nn.Module):
    """A network that answers the same number everywhere."""

    def __init__(self, value: float):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, sample, *conditions):
        return torch.zeros_like(sample) + self.value


def make_task(schedule, indices, latent=2.0, noise=0.5, weight=1.0):
    """A 2 x 2 task with one value everywhere."""
    shape = (len(indices), 4, 2, 2)
    latents, epsilon = torch.full(shape, latent), torch.full(shape, noise)
    indices = torch.tensor(indices)
    return denoising.DenoisingTask(
        schedule.corrupt(latents, epsilon, indices),
        weight=torch.full((len(indices), 1, 2, 2), weight),
        prompts=[""] * len(indices),
        conditions=torch.zeros(len(indices), 6),
    )


def real_task(schedule, count=2):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 4, 8, 8, generator=generator)
    ids = sdxl.size_conditions(torch.tensor([[64, 64, 0, 0]] * count), 64, real_sizes=False)
    weight = torch.ones(count, 1, 8, 8)
    return denoising.make_task(schedule, latents, weight, PROMPTS[:count], ids, generator)


def loss_of(args, denoiser, task, num_subjects):
    return denoising.training_loss(
        denoiser, denoiser, task, num_subjects, args.dco_beta, args.prior_loss_weight
    )


def test_noise_prediction_error_by_hand():
    schedule = sdxl.NoiseSchedule(DDPMScheduler(**BETAS))
    errors = denoising.denoising_errors(Constant(0.2), make_task(schedule, [10, 900], weight=0.5))
    assert errors.tolist() == pytest.approx([0.5 * (0.5 - 0.2) ** 2] * 2, rel=1e-5)


def test_velocity_prediction_error_by_hand():
    schedule = sdxl.NoiseSchedule(DDPMScheduler(prediction_type="v_prediction", **BETAS))
    errors = denoising.denoising_errors(Constant(0.2), make_task(schedule, [10, 900]))
    a = alphas()[[10, 900]]
    velocity = np.sqrt(a) * 0.5 - np.sqrt(1 - a) * 2.0
    assert errors.tolist() == pytest.approx(list((velocity - 0.2) ** 2), rel=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_error_by_hand(kind):
    schedule = sdxl.NoiseSchedule(DDPMScheduler(prediction_type=kind, **BETAS), snr_gamma=5.0)
    plain = sdxl.NoiseSchedule(schedule.scheduler)
    errors = denoising.denoising_errors(Constant(0.2), make_task(schedule, [10, 900]))
    unweighted = denoising.denoising_errors(Constant(0.2), make_task(plain, [10, 900]))
    snr = alphas()[[10, 900]] / (1 - alphas()[[10, 900]])
    weight = np.minimum(snr, 5.0) / snr + (kind == "v_prediction")
    assert (errors / unweighted).tolist() == pytest.approx(list(weight), rel=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_style_error_by_hand(kind):
    """Prediction as clean latent: x - s*F, or x/(s^2+1) - s*F/sqrt(s^2+1); weight s^-2."""
    schedule = sdxl.NoiseSchedule(EulerDiscreteScheduler(prediction_type=kind, **BETAS))
    indices = [100, 950]  # EDM indices run from the noisiest
    errors = denoising.denoising_errors(Constant(0.2), make_task(schedule, indices, weight=0.5))
    a = alphas()[[999 - index for index in indices]]
    s = np.sqrt((1 - a) / a)
    x = 2.0 + s * 0.5
    clean = x - s * 0.2 if kind == "epsilon" else x / (s**2 + 1) - s * 0.2 / np.sqrt(s**2 + 1)
    assert errors.tolist() == pytest.approx(list(0.5 * (clean - 2.0) ** 2 / s**2), rel=1e-3)


def test_edm_style_tells_the_network_scaled_latents_and_matching_timesteps():
    schedule = sdxl.NoiseSchedule(EulerDiscreteScheduler(**BETAS))
    task = make_task(schedule, [100])
    s = math.sqrt((1 - alphas()[899]) / alphas()[899])
    assert task.corrupted.network_input.flatten()[0].item() == pytest.approx(
        (2 + 0.5 * s) / math.sqrt(s**2 + 1), rel=1e-4
    )
    assert task.corrupted.timesteps.tolist() == [899.0]


def test_edm_base_error_by_hand():
    """EDM preconditioning (arXiv 2206.00364, table 1) with sigma_data 0.5."""
    schedule = sdxl.NoiseSchedule(EDMEulerScheduler())
    task = make_task(schedule, [500])
    s = schedule.scheduler.sigmas[500].item()
    skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / math.sqrt(s**2 + 0.25)
    expected = (skip * (2 + 0.5 * s) + out * 0.2 - 2.0) ** 2
    errors = denoising.denoising_errors(Constant(0.2), task)
    assert errors.item() == pytest.approx(expected, rel=1e-4)


def test_indices_cover_the_schedule_evenly():
    schedule = sdxl.NoiseSchedule(DDPMScheduler(**BETAS))
    indices = schedule.timestep_indices(20_000, torch.Generator().manual_seed(0))
    assert (indices.min().item(), indices.max().item()) == (0, 999)
    assert indices.float().mean().item() == pytest.approx(499.5, abs=8)


def test_unknown_prediction_types_and_edm_with_min_snr_are_refused():
    with pytest.raises(ValueError, match="sample"):
        sdxl.NoiseSchedule(DDPMScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="min-SNR"):
        sdxl.NoiseSchedule(EulerDiscreteScheduler(), snr_gamma=5.0)


def test_a_base_with_an_edm_scheduler_is_trained_edm_style(sdxl_backbone, tmp_path):
    plain = sdxl.load_schedule(str(sdxl_backbone.base), edm_style=False, snr_gamma=None)
    assert (type(plain.scheduler), plain.edm_style) == (DDPMScheduler, False)
    wished = sdxl.load_schedule(str(sdxl_backbone.base), edm_style=True, snr_gamma=None)
    assert (type(wished.scheduler), wished.edm_style) == (EulerDiscreteScheduler, True)
    EDMEulerScheduler().save_pretrained(tmp_path / "scheduler")
    edm = sdxl.load_schedule(str(tmp_path), edm_style=False, snr_gamma=None)
    assert (type(edm.scheduler), edm.edm_style) == (EDMEulerScheduler, True)


@pytest.mark.parametrize(
    "more",
    ["", "--use_dora", "--train_text_encoder", "--train_text_encoder --use_dora",
     "--snr_gamma 5", "--do_edm_style_training", "--gradient_checkpointing",
     "--train_text_encoder --gradient_checkpointing --use_dora"],
)  # fmt: skip
def test_dco_of_a_fresh_lora_is_log_two(sdxl_backbone, tmp_path, more):
    args, models = sdxl_backbone.loaded(tmp_path, more)
    denoiser = models.denoiser.train()
    loss = loss_of(args, denoiser, real_task(models.schedule), 2)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    loss.backward()
    for model in models.adapted.values():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("more", ["", "--use_dora"])
@pytest.mark.parametrize("gradient_checkpointing", ["", "--gradient_checkpointing"])
def test_the_reference_pass_is_the_base_model_after_the_weights_moved(
    sdxl_backbone, tmp_path, more, gradient_checkpointing
):
    """Text encoders included, and with DoRA's trained magnitudes out of the way."""
    _, models = sdxl_backbone.loaded(tmp_path, "--train_text_encoder", more, gradient_checkpointing)
    task = real_task(models.schedule)
    denoiser = models.denoiser.train()
    with torch.no_grad():
        with lora.adapters_off(denoiser):
            before = denoising.denoising_errors(denoiser, task)
        move_weights(models)
        adapted = denoising.denoising_errors(denoiser, task)
        with lora.adapters_off(denoiser):
            reference = denoising.denoising_errors(denoiser, task)
        again = denoising.denoising_errors(denoiser, task)
    assert torch.equal(reference, before)
    assert not torch.allclose(adapted, before, rtol=1e-3)
    assert torch.equal(again, adapted)


def test_adapters_off_leaves_trainability_as_it_was(sdxl_backbone, tmp_path):
    _, models = sdxl_backbone.loaded(tmp_path)
    unet = models.adapted["unet"]
    first = next(p for p in unet.parameters() if p.requires_grad)
    first.requires_grad_(False)
    wanted = [p.requires_grad for p in unet.parameters()]
    adapted = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]

    def are_off() -> set[bool]:
        return {layer.disable_adapters for layer in adapted}

    with lora.adapters_off(unet):
        assert are_off() == {True}
        with lora.adapters_off(unet):  # nested: the inner one must not switch them on again
            pass
        assert are_off() == {True}
        assert [p.requires_grad for p in unet.parameters()] == wanted
    assert are_off() == {False}
    assert [p.requires_grad for p in unet.parameters()] == wanted
    with pytest.raises(ValueError, match="no adapters"), lora.adapters_off(torch.nn.Linear(1, 1)):
        pass


def test_prior_and_dco_split_their_halves(sdxl_backbone, tmp_path):
    args, models = sdxl_backbone.loaded(tmp_path, "--dco_beta 3 --prior_loss_weight 0.25")
    move_weights(models)
    denoiser, task = models.denoiser, real_task(models.schedule)
    errors = denoising.denoising_errors(denoiser, task)
    with lora.adapters_off(denoiser):
        reference = denoising.denoising_errors(denoiser, task)
    loss = loss_of(args, denoiser, task, 1)
    expected = dco_loss(errors[0], reference[0], 3.0) + 0.25 * errors[1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    args.dco_beta = 0.0
    loss = loss_of(args, denoiser, task, 1)
    assert loss.item() == pytest.approx((errors[0] + 0.25 * errors[1]).item(), rel=1e-5)
    loss = loss_of(args, denoiser, task, 2)
    assert loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)


@pytest.mark.parametrize("more", ["--dco_beta 0", "--dco_beta 1000", "--do_edm_style_training"])
def test_a_masked_out_region_gets_no_gradient(sdxl_backbone, tmp_path, more):
    args, models = sdxl_backbone.loaded(tmp_path, more)
    task = real_task(models.schedule)
    task.weight[:, :, :, :4] = 0.0  # soft_alpha 0 with the subject in the right half
    outputs = []
    models.denoiser.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    loss = loss_of(args, models.denoiser, task, 2)
    gradient = torch.autograd.grad(loss, outputs[-1])[0]
    assert gradient[..., :4].abs().max() == 0
    assert gradient[..., 4:].abs().min() > 0


def test_latents_are_scaled_by_the_vaes_own_statistics(sdxl_backbone):
    vae = AutoencoderKL.from_pretrained(sdxl_backbone.base, subfolder="vae")
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    plain = encode_images(vae, pixels, torch.Generator().manual_seed(0))
    assert plain.shape == (2, 4, 4, 4)
    raw = vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    expected = raw.sample(torch.Generator().manual_seed(0)) * vae.config.scaling_factor
    assert torch.allclose(plain, expected)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 4.0, 8.0]
    vae.register_to_config(latents_mean=mean, latents_std=std)
    latents = encode_images(vae, pixels, torch.Generator().manual_seed(0))
    unscaled = plain[1, :, 2, 3] / vae.config.scaling_factor
    by_hand = (unscaled - torch.tensor(mean)) * vae.config.scaling_factor / torch.tensor(std)
    assert torch.allclose(latents[1, :, 2, 3], by_hand, atol=1e-6)
    decoded = vae.decode(raw.sample(torch.Generator().manual_seed(0))).sample
    assert torch.allclose(decode_latents(vae, latents), decoded, atol=1e-4)


def test_cached_latents_equal_fresh_ones_with_sampling_noise_alive(sdxl_backbone):
    vae = AutoencoderKL.from_pretrained(sdxl_backbone.base, subfolder="vae")
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    cache = LatentCache()

    def encode(rows, keys, seed):
        generator = torch.Generator().manual_seed(seed)
        fresh = encode_images(vae, pixels[rows], torch.Generator().manual_seed(seed))
        cached = encode_images(vae, pixels[rows], generator, cache, keys)
        assert torch.allclose(cached, fresh, atol=1e-5)
        return cached

    first = encode([0, 1], ["x", None], seed=1)
    assert len(cache) == 1  # a collage is not kept
    again = encode([2, 0, 1], ["z", "x", "y"], seed=2)
    assert len(cache) == 3
    assert not torch.allclose(again[1], first[0])  # another draw of the VAE's noise
    calls = []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    encode_images(vae, pixels, torch.Generator(), cache, ["x", "y", "z"])
    assert calls == []


def test_a_full_cache_drops_what_was_used_least_recently(sdxl_backbone):
    vae = AutoencoderKL.from_pretrained(sdxl_backbone.base, subfolder="vae")
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    cache = LatentCache(max_bytes=3 * 8 * 4 * 4 * 4)  # three distributions of 8 x 4 x 4 float32
    for key in "abcd":
        encode_images(vae, pixels, torch.Generator(), cache, [key])
    assert len(cache) == 3


def test_the_vae_decodes_in_its_own_precision_whatever_is_around(sdxl_backbone):
    vae = AutoencoderKL.from_pretrained(sdxl_backbone.base, subfolder="vae")
    latents = torch.randn(1, 4, 4, 4, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert decode_latents(vae, latents).dtype == torch.float32


def test_size_conditions_are_a_full_square_or_the_photos_own():
    conditioning = torch.tensor([[3024, 4032, 5, 170]])
    assert sdxl.size_conditions(conditioning, 1024, False).tolist() == [
        [1024, 1024, 0, 0, 1024, 1024]
    ]
    assert sdxl.size_conditions(conditioning, 1024, True).tolist() == [
        [3024, 4032, 5, 170, 1024, 1024]
    ]


def test_our_prediction_equals_the_stock_pipelines(sdxl_backbone, tmp_path):
    """One sampler step of the stock pipeline calls the UNet with what our Denoiser makes."""
    _, models = sdxl_backbone.loaded(tmp_path)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_backbone.base)
    seen = []
    pipeline.unet.register_forward_hook(
        lambda _m, args, output: seen.append((*args, output)), with_kwargs=False
    )
    pipeline(
        PROMPTS[0], height=64, width=64, num_inference_steps=1, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    sample, timestep, output = seen[0]
    ids = sdxl.size_conditions(torch.zeros(1, 4, dtype=torch.int64), 64, real_sizes=False)
    with torch.no_grad():
        ours = models.denoiser(sample, timestep[None], PROMPTS[:1], ids)
    assert torch.allclose(ours, output[0], atol=1e-6)


def test_cached_prompts_equal_live_ones(sdxl_backbone):
    pipeline = sdxl.load_text_pipeline(str(sdxl_backbone.base), torch.float32)
    table = denoising.PromptTable(
        partial(sdxl.encode_prompts, pipeline), PROMPTS, torch.device("cpu")
    )
    with torch.no_grad():
        for cached, live in zip(
            table(PROMPTS), sdxl.encode_prompts(pipeline, PROMPTS), strict=True
        ):
            assert torch.allclose(cached, live, atol=1e-6)
    sdxl.free_text_encoders(pipeline)
    assert pipeline.text_encoder is None
    assert table(PROMPTS[:1])[0].shape == (1, 77, 64)


def test_kohyas_file_says_the_same_as_diffusers(sdxl_backbone, tmp_path):
    _, models = sdxl_backbone.loaded(tmp_path, "--train_text_encoder")
    move_weights(models)
    lora.save_lora(tmp_path, StableDiffusionXLPipeline, models.adapted)
    lora.save_kohya(tmp_path, models.adapted)

    def picture(name):
        pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_backbone.base)
        if name:
            pipeline.load_lora_weights(tmp_path, weight_name=name)
        generator = torch.Generator().manual_seed(0)
        return pipeline("a robot", height=64, width=64, num_inference_steps=2,
                        generator=generator, output_type="np").images  # fmt: skip

    plain, ours, kohyas = map(picture, (None, lora.WEIGHTS_NAME, lora.KOHYA_WEIGHTS_NAME))
    assert abs(ours - plain).max() > 1e-3
    assert abs(ours - kohyas).max() < 1e-5


def test_edm_style_and_min_snr_runs_train_with_a_half_safe_vae(sdxl_backbone, tmp_path):
    vae = f"--pretrained_vae_model_name_or_path {sdxl_backbone.base}/vae --mixed_precision bf16"
    for name, more in ("edm", "--do_edm_style_training"), ("snr", "--snr_gamma 5"):
        sdxl_backbone.train(tmp_path / name, more, vae, "--max_train_steps 2")
        assert (tmp_path / name / lora.WEIGHTS_NAME).is_file()


def test_what_contradicts_or_is_not_there_is_refused(sdxl_backbone, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="--snr_gamma and --do_edm_style_training"):
        sdxl_backbone.train(tmp_path, "--snr_gamma 5 --do_edm_style_training")
    flag = "--pretrained_vae_model_name_or_path"
    with pytest.raises(SystemExit, match="path /nowhere: no such folder"):
        sdxl_backbone.train(tmp_path, f"{flag} /nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match=f"^{flag} nobody/nothing: "):
        sdxl_backbone.train(tmp_path, f"{flag} nobody/nothing")
