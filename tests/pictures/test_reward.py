"""Reward guidance: a stock pipeline against its formula, reckoned by explicit passes."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from test_inference import PROMPT, SMALL, largest_difference, loaded, pictures, run, words
from training import EXAMPLE, reset_accelerate

import inference
from detect_and_compare import default_query
from mudi.backbones import flux, klein
from mudi.backbones.table import BUILT_IN, CALLS, LISTS, ROWS
from mudi.ground.errors import SetupError
from mudi.learned_words import attach, detach, fresh_words
from mudi.lora import ATTENTION_TARGETS, TEXT_ENCODER_TARGETS, adapters_off, add_lora, save_lora
from mudi.metadata import load_subjects
from mudi.pictures.loras import load_loras
from mudi.pictures.reward import reward_guidance, reward_map
from mudi.pictures.sampling import Sampler, SamplingError, Shot, start_sheet
from mudi.texts import class_noun, replace_names
from mudi.words import words_of

BASE_PROMPT = "a photo of a robot and a teddy bear"
WIDTH, HEIGHT = SMALL.size
SHOT = Shot(PROMPT, seed=3, gamma=0.5, reward_guidance=3.0)


@pytest.fixture(scope="module")
def lora(backbone, tmp_path_factory):
    """A LoRA with random weights, of the network and of the text encoders."""
    pipeline = loaded(backbone)
    parts = [backbone.denoiser, *backbone.text_encoders]
    models = {name: getattr(pipeline, name) for name in parts}
    torch.manual_seed(0)
    for name, model in models.items():
        add_lora(model, 2, TEXT_ENCODER_TARGETS if "text" in name else ATTENTION_TARGETS)
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.data.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("lora")
    save_lora(folder, backbone.pipeline_class, models)
    return str(folder)


@pytest.fixture(scope="module")
def adapted(backbone, lora):
    """A pipeline with two LoRAs on it."""
    pipeline = loaded(backbone)
    load_loras(pipeline, [lora, lora], [0.4, 0.6])
    return pipeline


@pytest.fixture(scope="module")
def sampler(adapted):
    return Sampler(adapted, SMALL, load_subjects(EXAMPLE))


def picture(sampler, shot):
    return next(sampler.draw([shot])).image


def models_of(pipeline):
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


@torch.no_grad()
def sdxl_by_passes(pipeline, noise, formula, negative):
    """Two steps in which the guided answer is formula(u, b, own), each a pass of one row."""
    off = models_of(pipeline)
    tokens, _, pooled, _ = pipeline.encode_prompt([PROMPT])
    with adapters_off(*off):
        base, null, base_pooled, null_pooled = pipeline.encode_prompt(
            [BASE_PROMPT], negative_prompt=negative
        )
    sizes = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]], dtype=torch.float32)
    pipeline.scheduler.set_timesteps(2)
    latents = noise * pipeline.scheduler.init_noise_sigma
    for timestep in pipeline.scheduler.timesteps:
        sample = pipeline.scheduler.scale_model_input(latents, timestep)

        def ask(tokens, pooled, sample=sample, timestep=timestep):
            told = {"text_embeds": pooled, "time_ids": sizes}
            return pipeline.unet(sample, timestep, tokens, added_cond_kwargs=told).sample

        with adapters_off(*off):
            u, b = ask(null, null_pooled), ask(base, base_pooled)
        answer = formula(u, b, ask(tokens, pooled))
        latents = pipeline.scheduler.step(answer, timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("negative", [None, "rain"])
@pytest.mark.parametrize(
    ("reward", "formula"),
    [
        (3.0, lambda u, b, own: u + 5 * (b - u) + 3 * (own - b)),
        (5.0, lambda u, b, own: u + 5 * (own - u)),  # the LoRA's guidance with the base's null pass
    ],
)
@pytest.mark.parametrize("backbone", ["sdxl"], indirect=True)
def test_three_passes_by_hand_are_the_pipelines_with_a_null_pass(
    adapted, negative, reward, formula
):
    noise = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(1))
    rewards = torch.full_like(noise, reward)
    with reward_guidance(adapted, rewards, [BASE_PROMPT], 5.0, negative):
        ours = adapted(
            [PROMPT], negative_prompt=negative and [negative], guidance_scale=5.0, latents=noise,
            width=WIDTH, height=HEIGHT, num_inference_steps=2, output_type="latent",
        ).images  # fmt: skip
    by_hand = sdxl_by_passes(adapted, noise, formula, negative)
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["flux"], indirect=True)
@torch.no_grad()
def test_two_passes_by_hand_are_the_pipelines_that_is_distilled(adapted):
    """One step from sigma 1 to 0 is x - v."""
    size = (HEIGHT // adapted.vae_scale_factor, WIDTH // adapted.vae_scale_factor)
    noise = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(1))
    packed = flux.pack(noise)

    def ask(prompt):
        tokens, pooled, ids = adapted.encode_prompt([prompt])
        places = flux.image_ids(size, packed.device, packed.dtype)
        return adapted.transformer(
            packed, tokens, pooled, torch.ones(1), places, ids, torch.tensor([2.5])
        ).sample

    with adapters_off(*models_of(adapted)):
        base = ask(BASE_PROMPT)
    own = ask(PROMPT)
    assert (own - base).abs().max() > 0.01
    for reward in (0.0, 1.0, 3.0):
        with reward_guidance(adapted, torch.full_like(packed, reward), [BASE_PROMPT], 2.5):
            ours = adapted(
                [PROMPT], guidance_scale=2.5, latents=packed, width=WIDTH, height=HEIGHT,
                num_inference_steps=1, output_type="latent",
            ).images  # fmt: skip
        velocity = base + reward * (own - base)
        torch.testing.assert_close(ours, packed - velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["klein"], indirect=True)
@torch.no_grad()
def test_three_passes_by_hand_are_the_pipelines_with_a_call_for_null(adapted):
    """One step from sigma 1 to 0 is x - v."""
    noise = torch.randn(1, 128, HEIGHT // 16, WIDTH // 16)
    places = klein.image_ids((HEIGHT // 16, WIDTH // 16), noise.device)

    def ask(prompt):
        tokens, ids = adapted.encode_prompt([prompt])
        return adapted.transformer(klein.pack(noise), tokens, torch.ones(1), places, ids).sample

    with adapters_off(*models_of(adapted)):
        base, null = ask(BASE_PROMPT), ask("")
    own = ask(PROMPT)
    assert (own - base).abs().max() > 0.01
    for reward in (0.0, 4.0, 6.0):
        with reward_guidance(adapted, torch.full_like(noise, reward), [BASE_PROMPT], 4.0):
            ours = adapted(
                prompt=[PROMPT], guidance_scale=4.0, latents=noise, width=WIDTH, height=HEIGHT,
                num_inference_steps=1, output_type="latent",
            ).images  # fmt: skip
        velocity = null + 4.0 * (base - null) + reward * (own - base)
        by_hand = noise - klein.unpack(velocity, noise.shape[2:])
        seen = klein.SPACE.seen(adapted.vae, ours)
        torch.testing.assert_close(seen, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["zimage"], indirect=True)
@torch.no_grad()
def test_three_passes_by_hand_are_the_pipelines_with_null_in_its_lists(adapted):
    """One step from sigma 1 to 0 is x - v, v the network's answer negated; s + 1 is the scale."""
    noise = torch.randn(1, 16, HEIGHT // 8, WIDTH // 8)

    def ask(prompt):
        tokens, _ = adapted.encode_prompt([prompt], do_classifier_free_guidance=False)
        return -adapted.transformer([noise[0].unsqueeze(1)], torch.zeros(1), tokens).sample[0][:, 0]

    with adapters_off(*models_of(adapted)):
        base, null = ask(BASE_PROMPT), ask("")
    own = ask(PROMPT)
    assert (own - base).abs().max() > 0.01
    for reward in (0.0, 4.0, 6.0):
        with reward_guidance(adapted, torch.full_like(noise, reward), [BASE_PROMPT], 3.0):
            ours = adapted(
                prompt=[PROMPT], guidance_scale=3.0, latents=noise, width=WIDTH, height=HEIGHT,
                num_inference_steps=1, output_type="latent",
            ).images  # fmt: skip
        velocity = null + 4.0 * (base - null) + reward * (own - base)
        torch.testing.assert_close(ours, noise - velocity, rtol=1e-4, atol=1e-4)


def test_reward_0_is_the_base_pixel_for_pixel(backbone, sampler):
    """Of its own prompt, from the same mean-shifted noise, two pictures at once."""
    shots = [replace(SHOT, seed=seed, reward_guidance=0.0) for seed in (3, 4)]
    made = list(sampler.draw(shots, batch_size=2))
    generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
    starts = [picture.start for picture in made]
    noise = [sampler._noise(*it) for it in zip(shots, starts, generators, strict=True)]
    plain = loaded(backbone)(
        prompt=[BASE_PROMPT] * 2, width=WIDTH, height=HEIGHT, num_inference_steps=2,
        latents=sampler.backbone.module.to_pipeline(torch.cat(noise)), generator=generators,
    ).images  # fmt: skip
    assert largest_difference([picture.image for picture in made], plain) == 0


def test_one_number_for_every_subject_is_the_number(sampler):
    """The plain scale, which is also the rest's: s with a null pass (Z-Image: s + 1), 1 without."""
    plain = {ROWS: 5.0, LISTS: 6.0, CALLS: 4.0, BUILT_IN: 1.0}[sampler.backbone.guidance]
    number = picture(sampler, replace(SHOT, reward_guidance=plain))
    table = {"a": plain, "b": plain}
    assert (
        largest_difference([picture(sampler, replace(SHOT, reward_guidance=table))], [number]) == 0
    )
    table = {"a": plain, "b": plain + 8}
    other = picture(sampler, replace(SHOT, reward_guidance=table))
    assert largest_difference([other], [number]) > 1
    with pytest.raises(SamplingError, match="needs their places: give a gamma"):
        picture(sampler, replace(SHOT, gamma=0.0, reward_guidance=table))


def test_a_map_has_each_subjects_reward_where_it_stands():
    first, second = [[0.0, 0.5, 1.0, 0.25]], [[0.0, 0.0, 0.0, 0.75]]
    masks = torch.tensor([first, second])
    expected = [[[[5.0, 4.0, 3.0, 0.25 * 3 + 0.75 * 9]]]]
    assert reward_map([3.0, 9.0], masks, 5.0).tolist() == expected
    everywhere = torch.tensor([[[1.0, 0.25]], [[0.0, 0.75]]])
    assert reward_map([3.0, 3.0], everywhere, 5.0).tolist() == [[[[3.0, 3.0]]]]
    with pytest.raises(ValueError, match="1 rewards, but 2 subjects"):
        reward_map([3.0], masks, 5.0)


def test_a_rewarded_picture_does_not_depend_on_its_batch(sampler):
    """Nor on plain ones among them, which are as they were before."""
    shots = [replace(SHOT, seed=seed) for seed in range(2)]
    shots += [replace(SHOT, reward_guidance=None), replace(SHOT, reward_guidance={"a": 9, "b": 0})]
    together = [made.image for made in sampler.draw(shots, batch_size=2)]
    alone = [picture(sampler, shot) for shot in shots]
    assert largest_difference(together, alone) <= 1
    assert largest_difference([alone[2]], [alone[3]]) > 1


def test_offloaded_parts_make_the_same_picture(sampler):
    """accelerate's hooks stand in the forward's place; they must be met, and outlive the call."""
    pipeline = sampler.pipeline
    before = picture(sampler, SHOT)
    pipeline.enable_model_cpu_offload(device="cpu")
    network = getattr(pipeline, sampler.backbone.denoiser)
    try:
        for _ in range(2):
            assert largest_difference([picture(sampler, SHOT)], [before]) <= 1  # parts moved
            assert network._hf_hook and not network._forward_hooks
    finally:
        pipeline.remove_all_hooks()
    assert largest_difference([picture(sampler, SHOT)], [before]) <= 1


@pytest.mark.parametrize("backbone", ["sdxl"], indirect=True)
def test_without_a_null_pass_there_is_none(adapted):
    plain = Sampler(adapted, replace(SMALL, guidance_scale=1.0), load_subjects(EXAMPLE))
    with pytest.raises(SetupError, match="needs a null pass: a guidance scale above 1"):
        picture(plain, SHOT)


def test_the_base_is_asked_with_nouns(sampler, adapted):
    names = {"olis robot": "robot", "hta teddy bear": "teddy bear", "teddy": "bear"}
    assert replace_names("An Olis  robot, a teddy and a HTA teddy bear's teddybear", names) == (
        "An robot, a bear and a teddy bear's teddybear"
    )
    assert replace_names("polished robots", {"olis": "x", "robot": "y"}) == "polished robots"
    for name in ("olis robot", "hta teddy bear", "corgi"):
        assert class_noun(name) == default_query(name)
    table = {"olis robot": "castle", "hta teddy bear": "lake"}
    other = Sampler(adapted, SMALL, load_subjects(EXAMPLE), nouns=table)
    assert largest_difference([picture(other, SHOT)], [picture(sampler, SHOT)]) > 1


def test_the_command_says_the_reward(backbone, lora, sampler, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mudi")
    more = ["--lora", lora, "--num_images", "1", "--reward_guidance"]
    run(backbone, tmp_path, *more, "a=3", "b=6")
    assert f'reward guidance asks the base for "{BASE_PROMPT}"' in caplog.text
    line = json.loads((tmp_path / "pictures.jsonl").read_text())
    assert line["reward_guidance"] == {"a": 3.0, "b": 6.0}
    shot = Shot(PROMPT, 0, 0.5, reward_guidance={"a": 3.0, "b": 6.0})
    assert largest_difference(pictures(tmp_path).values(), [picture(sampler, shot)]) <= 1
    told = r"was made otherwise \(reward_guidance was \{'a': 3.0, 'b': 6.0\} and is 3.0\)"
    with pytest.raises(SystemExit, match=told):
        run(backbone, tmp_path, *more, "3")


def test_what_it_is_reckoned_from_must_be_there(backbone, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", lambda *_: pytest.fail("was loaded"))
    adapted = ["--lora", lora]
    cases = [
        ([], "--reward_guidance: needs a --lora of a scale other than 0"),
        ([*adapted, "--lora_scale", "0"], "needs a --lora of a scale other than 0"),
        ([*adapted, "--gamma", "0", "--reward_guidance", "a=1", "b=2"], "needs places"),
        ([*adapted, "--reward_guidance", "much"], "--reward_guidance all=much: not a number"),
        ([*adapted, "--reward_guidance", "a=1"], "--reward_guidance: give one number for each of"),
    ]
    if backbone.denoiser == "unet":
        cases += [
            ([*adapted, "--guidance_scale", "1"], "needs a --guidance_scale above 1, not 1.0")
        ]
    for more, told in cases:
        reset_accelerate()
        argv = [*words(backbone, tmp_path), "--prompt", PROMPT, "--reward_guidance", "3", *more]
        with pytest.raises(SystemExit) as stopped:
            inference.main(inference.parse_args(argv))
        assert told in str(stopped.value)
    argv = [*words(backbone, tmp_path, gamma="0"), "--prompt", PROMPT, *adapted]
    place = argv.index("--instance_data_dir")
    argv = argv[:place] + argv[place + 2 :]
    cases = [("3", "needs --instance_data_dir: the base is asked"), ("a=3", "no ids are known")]
    for reward, told in cases:
        with pytest.raises(SystemExit, match=f"--reward_guidance: {told}"):
            inference.main(inference.parse_args([*argv, "--reward_guidance", reward]))


def test_the_sheet_says_the_reward(sampler):
    made = next(sampler.draw([SHOT]))
    shots = [replace(SHOT, reward_guidance=reward) for reward in (None, 3.0, 4.0)]
    sheets = [start_sheet([replace(made, shot=shot)]).tobytes() for shot in shots]
    assert len(set(sheets)) == 3


@pytest.mark.parametrize("backbone", ["sdxl"], indirect=True)
def test_reward_0_is_the_base_also_beside_learned_words(backbone, sampler):
    pipeline = sampler.pipeline
    shot = replace(SHOT, gamma=0.0, reward_guidance=0.0)
    words = fresh_words(pipeline, words_of(["olis robot", "hta teddy bear"]))
    for rows in words.parameters():
        rows.data += 1
    attach(pipeline, words)
    try:
        ours = picture(sampler, shot)
        rewarded = picture(sampler, replace(shot, reward_guidance=3.0))
    finally:
        detach(pipeline)
    plain = Sampler(loaded(backbone), SMALL)
    base = picture(plain, Shot(BASE_PROMPT, seed=SHOT.seed))
    assert largest_difference([ours], [base]) <= 1  # three rows a step, two: rounding may differ
    without = picture(sampler, replace(shot, reward_guidance=3.0))
    assert largest_difference([rewarded], [without]) > 1
