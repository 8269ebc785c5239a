"""FLUX.2-klein's arithmetic against the stock pipeline's own methods, and its LoRA's files."""

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.training_utils import compute_loss_weighting_for_sd3
from safetensors.torch import load_file, save_file
from training import move_weights

from mudi import denoising, lora
from mudi.backbones import klein
from mudi.data import to_float
from mudi.denoising import make_task, training_loss
from mudi.ground.lora_outline import outline
from mudi.images import Box
from mudi.latents import decode_latents, encode_images
from mudi.losses import latent_weight
from mudi.segmix import box_rows

PROMPTS = ["a olis robot", "a robot"]
BITWISE = {"rtol": 0, "atol": 0}


def stock(backbone) -> Flux2KleinPipeline:
    pipeline = Flux2KleinPipeline.from_pretrained(backbone.base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels_of(count=2, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def test_latents_packing_and_ids_are_the_pipelines_own(klein_backbone):
    pipeline, pixels = stock(klein_backbone), pixels_of()
    with torch.no_grad():
        ours = encode_images(pipeline.vae, pixels, None, space=klein.SPACE)
        theirs = pipeline._encode_vae_image(to_float(pixels), None)
        decoded = decode_latents(pipeline.vae, ours, klein.SPACE)
        raw = pipeline.vae.encode(to_float(pixels)).latent_dist.mode()
        torch.testing.assert_close(decoded, pipeline.vae.decode(raw).sample)
    assert ours.shape == (2, 128, 4, 6) == (2, *klein.SPACE.shape(32, (8, 12))[1:])
    torch.testing.assert_close(ours, theirs)
    packed = klein.pack(ours)
    torch.testing.assert_close(packed, pipeline._pack_latents(ours), **BITWISE)
    torch.testing.assert_close(klein.unpack(packed, (4, 6)), ours, **BITWISE)
    ids = pipeline._prepare_latent_ids(ours)
    assert torch.equal(klein.image_ids((4, 6), ours.device), ids[0])
    torch.testing.assert_close(pipeline._unpack_latents_with_ids(packed, ids), ours, **BITWISE)
    tokens = torch.zeros(2, 5, 8)
    assert torch.equal(klein.text_ids(5, ours.device), pipeline._prepare_text_ids(tokens)[1])


@torch.no_grad()
def test_our_velocity_equals_the_stock_pipelines(klein_backbone, tmp_path):
    """What the stock pipeline's first call gets and answers, a picture wider than high."""
    _, models = klein_backbone.loaded(tmp_path)
    pipeline, seen = stock(klein_backbone), []
    pipeline.transformer.register_forward_hook(
        lambda _module, _args, kwargs, output: seen.append((kwargs, output)), with_kwargs=True
    )
    pipeline(
        prompt=PROMPTS[0], height=64, width=96, num_inference_steps=1, max_sequence_length=128,
        generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    inputs, output = seen[0]  # the prompt's; then the null prompt's
    assert len(seen) == 2 and inputs["guidance"] is None
    sample = klein.unpack(inputs["hidden_states"], (4, 6))
    ours = models.denoiser(sample, inputs["timestep"], PROMPTS[:1], torch.zeros(1, 0))
    torch.testing.assert_close(klein.pack(ours), output[0])


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "logit_normal"])
def test_a_steps_loss_is_that_of_the_published_script(klein_backbone, tmp_path, scheme):
    """Encode, corrupt, ask, weigh: all by the pipeline's methods and the scheduler's tables."""
    _, models = klein_backbone.loaded(tmp_path, f"--weighting_scheme {scheme}")
    move_weights(models)
    pipeline, pixels = stock(klein_backbone), pixels_of(height=64, width=64)
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    mask[:, :, 16:, :32] = True

    with torch.no_grad():
        latents = encode_images(models.vae, pixels, None, space=klein.SPACE)
        weight = latent_weight(mask, latents.shape[-2:], 0.25)
        task = make_task(
            models.schedule, latents, weight, PROMPTS, latents.new_empty(2, 0),
            torch.Generator().manual_seed(3),
        )  # fmt: skip
        ours = training_loss(models.denoiser, models.denoiser, task, 1, 0.0, 0.5)

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(latents.shape, generator=generator)
    indices = models.schedule.timestep_indices(2, generator)
    with torch.no_grad():
        x = pipeline._encode_vae_image(to_float(pixels), None)
        timesteps = pipeline.scheduler.timesteps[indices]
        sigmas = pipeline.scheduler.sigmas[indices].view(-1, 1, 1, 1)
        tokens, text_ids = pipeline.encode_prompt(PROMPTS, max_sequence_length=128)
        ids = pipeline._prepare_latent_ids(x)
        answer = models.adapted["transformer"](
            hidden_states=pipeline._pack_latents((1.0 - sigmas) * x + sigmas * noise),
            timestep=timesteps / 1000, guidance=None, encoder_hidden_states=tokens,
            txt_ids=text_ids, img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        velocity = pipeline._unpack_latents_with_ids(answer, ids)
        weighting = compute_loss_weighting_for_sd3(scheme, sigmas)
        # the mask's own 4 x 4 squares, of 16 px each
        soft = torch.full((4, 4), 0.25)
        soft[1:, :2] = 1.0
        errors = (weighting * soft * (velocity - (noise - x)) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours, errors[0] + 0.5 * errors[1])


@torch.no_grad()
def test_adapters_off_is_the_base_bit_for_bit(klein_backbone, tmp_path):
    for more in ("", "--use_dora"):
        _, models = klein_backbone.loaded(tmp_path, more)
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 128, 4, 4, generator=generator)
        given = (sample, torch.tensor([0.3, 0.9]), PROMPTS, torch.zeros(2, 0))
        base = klein.load_transformer(str(klein_backbone.base), torch.float32)
        plain = klein.Denoiser(base, models.denoiser._encode)(*given)
        move_weights(models)
        with lora.adapters_off(models.denoiser):
            torch.testing.assert_close(models.denoiser(*given), plain, **BITWISE)
        assert not torch.allclose(models.denoiser(*given), plain, rtol=1e-3)


def test_the_default_targets_are_all_attention_of_both_kinds_of_blocks(klein_backbone, tmp_path):
    _, models = klein_backbone.loaded(tmp_path)
    state = lora.adapter_weights(models.adapted)["transformer"]
    layers = {key.split(".lora_")[0] for key in state}
    double = {f"transformer_blocks.{i}.attn.{x}" for i in range(2)
              for x in ("to_q", "to_k", "to_v", "to_out.0")}  # fmt: skip
    single = {f"single_transformer_blocks.{i}.attn.{x}" for i in range(2)
              for x in ("to_qkv_mlp_proj", "to_out")}  # fmt: skip
    assert layers == double | single


@torch.no_grad()
def test_stock_diffusers_reads_both_files_as_the_same_lora(klein_backbone, tmp_path):
    """Kohya's names by its own reader, which knows nothing of ours."""
    _, models = klein_backbone.loaded(tmp_path)
    move_weights(models)
    pipeline = stock(klein_backbone)
    generator = torch.Generator().manual_seed(0)
    given = {
        "hidden_states": torch.randn(1, 16, 128, generator=generator),
        "encoder_hidden_states": torch.randn(1, 7, 48, generator=generator),
        "timestep": torch.tensor([0.5]),
        "img_ids": klein.image_ids((4, 4), torch.device("cpu")),
        "txt_ids": klein.text_ids(7, torch.device("cpu")),
    }
    wanted = models.adapted["transformer"](**given).sample
    for file in (
        lora.save_lora(tmp_path, Flux2KleinPipeline, models.adapted),
        lora.save_kohya(tmp_path, models.adapted),
    ):
        pipeline.load_lora_weights(str(file))
        torch.testing.assert_close(pipeline.transformer(**given).sample, wanted)
        pipeline.unload_lora_weights()
        torch.testing.assert_close(
            lora.read_lora(file), lora.adapter_weights(models.adapted), **BITWISE
        )
        assert [family.title for family in outline(file).families] == ["FLUX.2-klein"]
    names = {key.split(".")[0] for key in load_file(file)}
    assert {"lora_unet_double_blocks_1_img_attn_qkv", "lora_unet_single_blocks_0_linear1",
            "lora_unet_single_blocks_1_linear2"} <= names  # fmt: skip


def test_a_file_of_double_blocks_alone_is_told_by_its_header(klein_backbone, tmp_path):
    """Its names and sizes are FLUX.1's as well."""
    _, models = klein_backbone.loaded(tmp_path, "--lora_targets to_q")
    for file in (
        lora.save_lora(tmp_path, Flux2KleinPipeline, models.adapted),
        lora.save_kohya(tmp_path, models.adapted),
    ):
        assert [family.title for family in outline(file).families] == ["FLUX.2-klein"]
        state = load_file(file)
        save_file(state, tmp_path / "bare.safetensors")
        titles = [family.title for family in outline(tmp_path / "bare.safetensors").families]
        assert titles == ["FLUX", "FLUX.2-klein"]


@pytest.mark.parametrize(("height", "title"), [(9, "FLUX.2-klein"), (7, "FLUX")])
def test_an_original_name_that_both_have_is_told_by_its_height(tmp_path, height, title):
    """q, k and v, then 4 of MLP; or 2 x 3 of a gated one."""
    name = "diffusion_model.single_blocks.0.linear1"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 4),
            f"{name}.lora_B.weight": torch.ones(4 * height, 2)}  # fmt: skip
    save_file(pair, tmp_path / "a.safetensors")
    assert [family.title for family in outline(tmp_path / "a.safetensors").families] == [title]


def test_what_klein_has_not_is_told(klein_backbone, tmp_path):
    for more, told in (
        ("--train_text_encoder", "--train_text_encoder: FLUX.2-klein's LoRAs have no part for it"),
        ("--learn_words", "--learn_words: not with FLUX.2-klein"),
        ("--resolution 72", "multiple of 16"),
    ):
        words = klein_backbone.flags(tmp_path)
        with pytest.raises(SystemExit, match=told):
            klein_backbone.run([*words, *more.split()])


# --caption_boxes


def test_a_collages_boxes_go_into_its_prompt_as_rows(klein_backbone, tmp_path, monkeypatch):
    """Each collage's prompt is encoded by itself, once a pass; photos' are looked up."""
    asked, seen = [], []
    encode, errors = klein.encode_prompts, denoising.denoising_errors
    monkeypatch.setattr(
        klein, "encode_prompts", lambda p, n, texts: asked.extend(texts) or encode(p, n, texts)
    )
    monkeypatch.setattr(
        denoising, "denoising_errors", lambda d, task: seen.extend(task.prompts) or errors(d, task)
    )
    more = "--caption_boxes --segmix_prob 0.5 --train_batch_size 4 --max_sequence_length 200"
    klein_backbone.train(tmp_path, more, "--max_train_steps 2 --dco_beta 10")
    collages = [prompt for prompt in dict.fromkeys(seen) if prompt.endswith("}]")]
    assert 2 <= len(collages) < 8 and len(seen) == 16
    assert all(asked.count(prompt) == 1 for prompt in seen)
    for prompt in collages:
        text, _, rows = prompt.partition(" [")
        assert text.startswith("A sticker collage") and text.endswith("background.")
        for row in json.loads(f"[{rows}"):
            top, left, bottom, right = row["bbox"]
            assert 0 <= top < bottom <= 1000 and 0 <= left < right <= 1000
            assert row["desc"] in text


def test_boxes_are_rows_of_a_thousandth_by_hand():
    rows = box_rows([("olis robot", Box(left=16, top=8, right=32, bottom=64))], 64)
    assert rows == '[{"bbox": [125, 250, 1000, 500], "desc": "olis robot"}]'


def test_boxes_that_no_prompt_can_carry_are_told(flux_backbone, klein_backbone, tmp_path):
    for backbone, more, told in (
        (flux_backbone, "", "--caption_boxes: FLUX's prompts carry no boxes"),
        (klein_backbone, "--mix cutmix", "not with --mix cutmix"),
        (klein_backbone, "--encode_on_cpu", "leave --encode_on_cpu out"),
    ):
        with pytest.raises(SystemExit, match=told):
            backbone.train(tmp_path, "--caption_boxes", more)
