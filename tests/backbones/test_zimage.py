"""Z-Image's arithmetic against its stock pipeline's and diffusers' training script's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from safetensors.torch import load_file, save_file
from training import move_weights

from mudi import denoising, lora
from mudi.backbones import zimage
from mudi.backbones.table import BACKBONES
from mudi.denoising import denoising_errors
from mudi.ground.lora_names import DOWN
from mudi.latents import encode_images
from mudi.lora_files import split
from mudi.pictures.loras import lora_outlines
from mudi.pictures.sampling import Sampler, Sampling, Shot

PROMPTS = ["a olis robot", "a robot"]
NOTHING = torch.zeros(2, 0)


@pytest.fixture
def stock(zimage_backbone):
    """Diffusers' own pipeline, float32."""
    pipeline = ZImagePipeline.from_pretrained(zimage_backbone.base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(count=2, size=(64, 64)):
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8)


def real_task(schedule, count=2):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 16, 8, 8, generator=generator)
    weight = torch.ones(count, 1, 8, 8)
    return denoising.make_task(
        schedule, latents, weight, PROMPTS[:count], NOTHING[:count], generator
    )


def test_latents_are_the_scripts_mode_shifted_and_scaled(stock):
    shown = pixels(size=(64, 96))
    vae = stock.vae
    with torch.no_grad():
        raw = vae.encode(shown.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        ours = encode_images(vae, shown, None)
    theirs = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    assert ours.shape == (2, 16, 8, 12)
    torch.testing.assert_close(ours, theirs)


def test_prompts_are_the_pipelines_without_padding(zimage_backbone, tmp_path, stock):
    """Also one that is cut off."""
    _, models = zimage_backbone.loaded(tmp_path)
    (kept,) = models.denoiser._encode(PROMPTS)  # from the table
    cut = ["a very long prompt" * 30]
    with torch.no_grad():
        theirs, _ = stock.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
        (ours,) = zimage.encode_prompts(stock, 64, cut)
        whole, _ = stock.encode_prompt(
            list(cut), do_classifier_free_guidance=False, max_sequence_length=64
        )
    assert len({len(tokens) for tokens in kept}) == 2
    for found, wanted in zip([*kept, *ours], [*theirs, *whole], strict=True):
        torch.testing.assert_close(found, wanted)
    assert len(ours[0]) == 64


def test_our_velocity_is_what_the_stock_pipeline_steps_by(zimage_backbone, tmp_path, stock):
    """Every call of a picture wider than high: the network's answer, negated; both halves."""
    _, models = zimage_backbone.loaded(tmp_path)
    seen, stepped = [], []
    stock.transformer.register_forward_pre_hook(lambda _, args: seen.append(args))
    step = stock.scheduler.step
    stock.scheduler.step = lambda v, *args, **more: stepped.append(v) or step(v, *args, **more)
    stock(
        PROMPTS[0], height=64, width=96, num_inference_steps=2, guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    assert len(seen) == len(stepped) == 2
    for (pictures, told, _), velocity in zip(seen, stepped, strict=True):
        sample = torch.stack(pictures).squeeze(2)
        with torch.no_grad():
            ours = models.denoiser(sample, 1 - told, PROMPTS[:1], NOTHING[:1])
        torch.testing.assert_close(ours, velocity, rtol=1e-4, atol=2e-5)


def test_prompts_of_two_lengths_do_not_touch_each_other(zimage_backbone, tmp_path):
    _, models = zimage_backbone.loaded(tmp_path)
    sample, sigmas = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        together = models.denoiser(sample, sigmas, PROMPTS, NOTHING)
        alone = [
            models.denoiser(sample[i : i + 1], sigmas[i : i + 1], PROMPTS[i : i + 1], NOTHING[:1])
            for i in range(2)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "sigma_sqrt", "cosmap"])
def test_a_steps_loss_is_the_published_scripts(zimage_backbone, tmp_path, stock, scheme):
    """Noise, level, told time, target, weighting: from the pipeline's scheduler and network.

    Two subjects and one of the prior: the script's weighting is the whole batch's for both halves,
    which is a fault; here each sample has its own.
    """
    _, models = zimage_backbone.loaded(tmp_path, f"--weighting_scheme {scheme} --logit_mean 0.3")
    move_weights(models)
    file = lora.save_lora(tmp_path, ZImagePipeline, models.adapted)
    stock.load_lora_weights(file)
    latents = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    generator = torch.Generator().manual_seed(2)
    weight, nothing = torch.ones(3, 1, 8, 8), torch.zeros(3, 0)
    task = denoising.make_task(models.schedule, latents, weight, prompts, nothing, generator)
    with torch.no_grad():
        denoiser = models.denoiser
        ours = denoising.training_loss(denoiser, denoiser, task, 2, 0.0, 0.7)

    generator.manual_seed(2)
    noise = torch.randn(latents.shape, generator=generator)
    u = compute_density_for_timestep_sampling(scheme, 3, 0.3, 1.0, 1.29, generator=generator)
    indices = (u * stock.scheduler.config.num_train_timesteps).long()
    timesteps = stock.scheduler.timesteps[indices]
    sigmas = stock.scheduler.sigmas[indices][:, None, None, None]
    noisy = ((1 - sigmas) * latents + sigmas * noise).unsqueeze(2)
    with torch.no_grad():
        tokens, _ = stock.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        answers = stock.transformer(list(noisy.unbind()), (1000 - timesteps) / 1000, tokens)[0]
    velocity = -torch.stack(answers).squeeze(2)
    weighting = compute_loss_weighting_for_sd3(scheme, sigmas)
    errors = (weighting * (velocity - (noise - latents)) ** 2).mean(dim=(1, 2, 3))
    theirs = errors[:2].mean() + 0.7 * errors[2:].mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("more", ["", "--use_dora", "--gradient_checkpointing"])
def test_dco_of_a_fresh_lora_is_log_two_and_all_that_trains_moves(zimage_backbone, tmp_path, more):
    _, models = zimage_backbone.loaded(tmp_path, more)
    denoiser = models.denoiser.train()
    loss = denoising.training_loss(denoiser, denoiser, real_task(models.schedule), 2, 1000.0, 1.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    loss.backward()
    [transformer] = models.adapted.values()
    moved = {
        name.split(".")[0]
        for name, parameter in transformer.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert moved == {"layers", "noise_refiner", "context_refiner"}


def test_without_adapters_it_is_the_base_bit_for_bit(zimage_backbone, tmp_path, stock):
    _, models = zimage_backbone.loaded(tmp_path, "--use_dora")
    task = real_task(models.schedule)
    move_weights(models)
    with torch.no_grad():
        adapted = denoising_errors(models.denoiser, task)
        with lora.adapters_off(models.denoiser):
            reference = denoising_errors(models.denoiser, task)
            base = zimage.Denoiser(stock.transformer, models.denoiser._encode)
            plain = denoising_errors(base, task)
    assert torch.equal(reference, plain)
    assert not torch.allclose(adapted, plain, rtol=1e-3)


def test_half_precision_starts_from_the_noise_that_the_pipeline_draws(zimage_backbone):
    """That is float32's, whatever the network's precision."""
    pipeline = ZImagePipeline.from_pretrained(zimage_backbone.base, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    sampler = Sampler(pipeline, Sampling(size=(96, 64), steps=2))
    [ours] = sampler.draw([Shot(PROMPTS[0], seed=5)])
    [plain] = pipeline(
        PROMPTS[0], width=96, height=64, num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    assert ours.image.tobytes() == plain.tobytes()


@pytest.mark.parametrize(("on_turbo", "guidance"), [(False, 4.0), (True, 0.0)])
def test_a_validation_picture_is_the_stock_pipelines(
    zimage_backbone, tmp_path, stock, on_turbo, guidance
):
    more = f"--validation_model {zimage_backbone.base}" if on_turbo else ""
    _, models = zimage_backbone.loaded(
        tmp_path, "--validation_prompt dog --num_validation_inference_steps 2", more
    )
    [plain] = stock(
        "dog", height=64, width=64, num_inference_steps=2, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(9),
    ).images  # fmt: skip
    difference = np.asarray(models.sample(9)).astype(int) - np.asarray(plain)
    assert abs(difference).max() <= 1


def test_its_loras_are_known_by_all_names_and_told_from_the_others(zimage_backbone, tmp_path):
    """Ours, ComfyUI's with q, k and v fused, ai-toolkit's, musubi-tuner's."""
    _, models = zimage_backbone.loaded(tmp_path)
    move_weights(models)
    [(part, state)] = lora.adapter_weights(models.adapted).items()
    toolkit, musubi = tmp_path / "toolkit.safetensors", tmp_path / "musubi.safetensors"
    save_file({f"diffusion_model.{key}": value for key, value in state.items()}, toolkit)
    flat = {}
    for key, value in state.items():
        layer, tensor = split(key)
        name = f"lora_unet_{layer.replace('.', '_')}"
        flat[f"{name}.{'lora_down' if tensor == DOWN else 'lora_up'}.weight"] = value
        flat[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(flat, musubi)
    ours = lora.save_lora(tmp_path, ZImagePipeline, models.adapted)
    comfys = lora.save_kohya(tmp_path, models.adapted)
    assert "lora_unet_layers_1_attention_qkv.lora_up.weight" in load_file(comfys)
    for file in (ours, comfys, toolkit, musubi):
        torch.testing.assert_close(lora.read_lora(file), {part: state}, rtol=0, atol=0)
        for name, backbone in BACKBONES.items():
            problems: list[str] = []
            lora_outlines([str(file)], backbone, problems)
            assert len(problems) == (name != "zimage"), (file, problems)
            assert not problems or "a LoRA of Z-Image, and the base model is" in problems[0]


@pytest.mark.parametrize("other", ["sdxl", "flux", "klein"])
def test_loras_and_folders_of_the_others_are_one_line(zimage_backbone, request, tmp_path, other):
    backbone = request.getfixturevalue(f"{other}_backbone")
    _, models = backbone.loaded(tmp_path / "out")
    for file in (
        lora.save_lora(tmp_path, backbone.pipeline_class, models.adapted),
        lora.save_kohya(tmp_path, models.adapted),
    ):
        with pytest.raises(SystemExit, match=r"--resume_lora .* is Z-Image") as stopped:
            zimage_backbone.train(tmp_path / "out", f"--resume_lora {file}")
        assert str(stopped.value).startswith("1 problem; nothing was loaded")
    with pytest.raises(SystemExit, match=f"a {backbone.pipeline_class.__name__}; this script"):
        replace(zimage_backbone, base=backbone.base).train(tmp_path / "out")
    with pytest.raises(SystemExit, match="a ZImagePipeline; this script"):
        replace(backbone, base=zimage_backbone.base).train(tmp_path / "out")
