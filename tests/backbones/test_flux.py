"""FLUX's flow matching, packing and quantized base against hand-computed cases and the pipeline."""

import math

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file
from training import lora_of, move_weights

from mudi import denoising, lora
from mudi.backbones import flow, flux, quantization
from mudi.denoising import denoising_errors
from mudi.training.args import WEIGHTING_SCHEMES
from mudi.training.results import save_dtype

PROMPTS = ["a olis robot", "a robot"]
SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0}


class Constant(torch.nn.Module):
    """A network that answers the same number everywhere."""

    def forward(self, sample, *conditions):
        return torch.full_like(sample, 0.2)


def make_task(schedule, indices, latent=2.0, noise=0.5, weight=1.0):
    """A 2 x 2 task with one value everywhere."""
    shape = (len(indices), 16, 2, 2)
    latents, epsilon, indices = (
        torch.full(shape, latent),
        torch.full(shape, noise),
        torch.tensor(indices),
    )
    return denoising.DenoisingTask(
        schedule.corrupt(latents, epsilon, indices),
        weight=torch.full((len(indices), 1, 2, 2), weight),
        prompts=[""] * len(indices),
        conditions=torch.zeros(len(indices), 0),
    )


def schedule_of(scheme="none", **density):
    return flow.FlowSchedule(FlowMatchEulerDiscreteScheduler(**SCHEDULER), scheme, **density)


def real_task(schedule, count=2):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(count, 16, 8, 8, generator=generator)
    nothing, weight = torch.zeros(count, 0), torch.ones(count, 1, 8, 8)
    return denoising.make_task(schedule, latents, weight, PROMPTS[:count], nothing, generator)


def test_flow_matching_error_by_hand():
    """x_t = (1 - s) x_0 + s e, target e - x_0; level 250 of 1000 from the noisiest is s = 0.75."""
    task = make_task(schedule_of(), [250, 999], weight=0.5)
    assert task.corrupted.network_input[:, 0, 0, 0].tolist() == pytest.approx(
        [0.25 * 2 + 0.75 * 0.5, 1.9985]
    )
    assert task.corrupted.timesteps.tolist() == pytest.approx([0.75, 0.001])
    errors = denoising_errors(Constant(), task)
    assert errors.tolist() == pytest.approx([0.5 * (0.5 - 2.0 - 0.2) ** 2] * 2)


@pytest.mark.parametrize(
    ("scheme", "weight"),
    [("none", 1.0), ("logit_normal", 1.0), ("mode", 1.0), ("sigma_sqrt", 1 / 0.75**2),
     ("cosmap", 2 / (math.pi * (1 - 2 * 0.75 + 2 * 0.75**2)))],
)  # fmt: skip
def test_the_schemes_weigh_a_level_as_published(scheme, weight):
    errors = denoising_errors(Constant(), make_task(schedule_of(scheme), [250]))
    assert errors.item() == pytest.approx(weight * 1.7**2, rel=1e-4)


def test_the_schemes_draw_indices_as_published():
    def indices(scheme, **density):
        generator = torch.Generator().manual_seed(0)
        return schedule_of(scheme, **density).timestep_indices(20_000, generator).float() / 1000

    for scheme in ("none", "sigma_sqrt", "cosmap"):
        assert indices(scheme).mean().item() == pytest.approx(0.5, abs=0.01)
        assert indices(scheme).std().item() == pytest.approx(12**-0.5, abs=0.01)
    logit = torch.logit(indices("logit_normal", logit_mean=0.5, logit_std=0.7).clamp(1e-3, 0.999))
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((0.5, 0.7), abs=0.02)
    # u -> 1 - u - s (cos^2(pi u / 2) - 1 + u): its mean is 1/2 for every s
    mode = indices("mode", mode_scale=1.29)
    assert mode.mean().item() == pytest.approx(0.5, abs=0.01)
    assert mode.std().item() < indices("none").std().item()
    assert 0 <= mode.min() and mode.max() < 1


def test_packing_is_undone_by_unpacking_and_equals_the_pipelines():
    latents = torch.randn(2, 16, 6, 4)
    packed = flux.pack(latents)
    assert packed.shape == (2, 6, 64)
    assert torch.equal(flux.unpack(packed, (6, 4)), latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 6, 4))
    ids = flux.image_ids((6, 4), torch.device("cpu"), torch.float32)
    theirs = FluxPipeline._prepare_latent_image_ids(2, 3, 2, torch.device("cpu"), torch.float32)
    assert torch.equal(ids, theirs)
    assert ids.tolist()[:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_our_velocity_equals_the_stock_pipelines(flux_backbone, tmp_path, guidance):
    """What the stock pipeline's first call gets and answers, a picture wider than high."""
    _, models = flux_backbone.loaded(tmp_path, f"--guidance_scale {guidance}")
    pipeline = FluxPipeline.from_pretrained(flux_backbone.base)
    seen = []
    pipeline.transformer.register_forward_hook(
        lambda _module, _args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True
    )
    pipeline(
        PROMPTS[0], height=64, width=96, num_inference_steps=1, guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    inputs, output = seen[0]
    sample = flux.unpack(inputs["hidden_states"], (8, 12))
    with torch.no_grad():
        ours = models.denoiser(sample, inputs["timestep"], PROMPTS[:1], torch.zeros(1, 0))
    assert torch.allclose(flux.pack(ours), output[0], atol=1e-6)


def test_a_transformer_without_guidance_embedding_is_told_none(flux_backbone, tmp_path):
    _, models = flux_backbone.loaded(tmp_path)
    transformer = models.denoiser.transformer
    transformer.register_to_config(guidance_embeds=False)
    assert flux.Denoiser(transformer, None, {}, 3.5)._guidance is None


@pytest.mark.parametrize(
    "more", ["", "--use_dora", "--train_text_encoder", "--gradient_checkpointing"]
)
def test_dco_of_a_fresh_lora_is_log_two_and_moves_all_that_trains(flux_backbone, tmp_path, more):
    _, models = flux_backbone.loaded(tmp_path, more)
    denoiser = models.denoiser.train()
    loss = denoising.training_loss(denoiser, denoiser, real_task(models.schedule), 2, 1000.0, 1.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    loss.backward()
    for model in models.adapted.values():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_reference_pass_is_the_base_model_clip_included(flux_backbone, tmp_path):
    _, models = flux_backbone.loaded(tmp_path, "--train_text_encoder --use_dora")
    denoiser, task = models.denoiser, real_task(models.schedule)
    with torch.no_grad(), lora.adapters_off(denoiser):
        before = denoising_errors(denoiser, task)
    move_weights(models)
    with torch.no_grad():
        adapted = denoising_errors(denoiser, task)
        with lora.adapters_off(denoiser):
            reference = denoising_errors(denoiser, task)
    assert torch.equal(reference, before)
    assert not torch.allclose(adapted, before, rtol=1e-3)


def test_live_clip_equals_the_cached_embeddings(flux_backbone, tmp_path):
    _, cached = flux_backbone.loaded(tmp_path)
    _, live = flux_backbone.loaded(tmp_path, "--train_text_encoder")
    with torch.no_grad():
        for ours, theirs in zip(
            live.denoiser._encode(PROMPTS), cached.denoiser._encode(PROMPTS), strict=True
        ):
            assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_masked_out_region_gets_no_gradient(flux_backbone, tmp_path):
    """The mask counts, patch by packed patch."""
    _, models = flux_backbone.loaded(tmp_path)
    task = real_task(models.schedule)
    task.weight[:, :, :, :4] = 0.0
    outputs = []
    models.denoiser.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    loss = denoising.training_loss(models.denoiser, models.denoiser, task, 2, 0.0, 1.0)
    gradient = torch.autograd.grad(loss, outputs[-1])[0]
    assert gradient[..., :4].abs().max() == 0
    assert gradient[..., 4:].abs().min() > 0


def test_text_encoders_are_freed_before_the_transformer_is_loaded(
    flux_backbone, tmp_path, monkeypatch
):
    freed = []
    load = flux.load_transformer
    text = flux.load_text_pipeline
    pipelines = []
    monkeypatch.setattr(
        flux, "load_text_pipeline", lambda *a, **k: pipelines.append(text(*a, **k)) or pipelines[-1]
    )

    def load_and_look(*args, **kwargs):
        freed.extend([pipelines[0].text_encoder, pipelines[0].text_encoder_2])
        return load(*args, **kwargs)

    monkeypatch.setattr(flux, "load_transformer", load_and_look)
    flux_backbone.loaded(tmp_path)
    assert freed == [None, None]


@pytest.mark.parametrize("scheme", WEIGHTING_SCHEMES)
def test_every_scheme_trains(flux_backbone, tmp_path, scheme):
    flux_backbone.train(tmp_path, f"--weighting_scheme {scheme} --max_train_steps 1")
    assert lora_of(tmp_path)


def test_a_quantized_base_that_cannot_be_had_is_one_line(flux_backbone, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="--quantize_base nf4 needs a CUDA GPU"):
        flux_backbone.train(tmp_path, "--quantize_base nf4")
    with monkeypatch.context() as several:
        several.setenv("WORLD_SIZE", "2")
        assert "one process only" in quantization.complaints("int8")[0]
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'int8: not installed; pip install -e "\.\[quantize\]"'):
        flux_backbone.train(tmp_path, "--quantize_base int8")


def test_flags_of_flux_are_checked(flux_backbone, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        flux_backbone.train(
            tmp_path, "--resolution 72 --logit_std 0 --max_sequence_length 0",
            "--encode_on_cpu --train_text_encoder",
        )  # fmt: skip
    told = str(stopped.value)
    for text in ("multiple of 16", "--logit_std 0", "--max_sequence_length 0", "--encode_on_cpu"):
        assert text in told


def test_precision_is_bf16_unless_the_flags_say_otherwise(flux_backbone, tmp_path):
    unset = flux_backbone.script.parse_args([])
    assert save_dtype(unset, FluxPipeline) == torch.bfloat16
    assert save_dtype(unset, StableDiffusionXLPipeline) == torch.float16
    for name, more, dtype in (
        ("a", "--save_precision bf16", torch.bfloat16),
        ("b", "--upcast_before_saving", torch.float32),
        ("c", "--save_precision fp16", torch.float16),
    ):
        folder = flux_backbone.train(tmp_path / name, more, "--max_train_steps 1 --save_steps 1")
        for file in (*folder.glob("*.safetensors"), *folder.glob("save-1/*.safetensors")):
            found = {v.dtype for k, v in load_file(file).items() if not k.endswith("alpha")}
            assert found == {dtype}, file
    with pytest.raises(SystemExit, match="--upcast_before_saving means float32"):
        flux_backbone.train(tmp_path, "--upcast_before_saving --save_precision bf16")


def test_the_kohya_file_has_q_k_and_v_fused_and_the_text_encoder(flux_backbone, tmp_path):
    _, models = flux_backbone.loaded(tmp_path, "--train_text_encoder")
    move_weights(models)
    file = lora.save_kohya(tmp_path, models.adapted)
    state = load_file(file)
    for module, rank in (
        ("lora_unet_double_blocks_0_img_attn_proj", 2),
        ("lora_unet_double_blocks_0_img_attn_qkv", 6),
        ("lora_unet_single_blocks_1_linear1", 6),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 2),
    ):
        assert state[f"{module}.lora_down.weight"].shape[0] == rank
        assert state[f"{module}.alpha"].item() == rank
    single = models.adapted["transformer"].single_transformer_blocks[0]
    wanted = sum(
        layer.out_features for layer in (single.attn.to_q, single.attn.to_k, single.attn.to_v)
    )
    height = len(state["lora_unet_single_blocks_0_linear1.lora_up.weight"])
    assert height == wanted + single.proj_mlp.out_features
    torch.testing.assert_close(
        lora.read_lora(file), lora.adapter_weights(models.adapted), rtol=0, atol=0
    )
