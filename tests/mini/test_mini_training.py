"""The miniature's training commands at toy size: they continue, stop, and save stock models."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file

from mini.cast import CAST
from mini.training import base as train_base
from mini.training import right_word
from mini.training import vae as train_vae
from mini.training.state import WARM_UP_STEPS, Run, learning_rate
from mini.training.stream import held_out_scenes
from mini.training.tokenizer import count_merges, random_captions, world_tokenizer
from mini.world import describe
from tests.training import reset_accelerate

SMALL = "--batch_size 4 --num_workers 0 --minutes 5 --mixed_precision no".split()
WEIGHTS = "diffusion_pytorch_model.safetensors"


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Measure and show less than the real commands do."""
    torch.set_num_threads(1)
    patch.setattr(train_vae, "NUM_STATISTICS", 8)
    patch.setattr(train_vae, "NUM_SHOWN", 8)
    patch.setattr(train_base, "SHEET_PROMPTS", train_base.SHEET_PROMPTS[:2])
    patch.setattr(train_base, "SHEET_STEPS", 2)


@pytest.fixture(autouse=True)
def toy_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def train_a_vae(output: Path, state: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    """Run the command; return the saved weights."""
    reset_accelerate()
    folders = [f"--output={output}", f"--state_dir={state}", f"--max_steps={steps}"]
    words = [*folders, *SMALL, *"--channels 8 8 16".split(), *more]
    train_vae.main(train_vae.parse_args(words))
    return load_file(output / WEIGHTS)


def train_a_base(output: Path, state: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    """Run the command; return the saved weights of all parts."""
    reset_accelerate()
    folders = [f"--output={output}", f"--state_dir={state}", f"--max_steps={steps}"]
    sizes = "--channels 16 32 --text_widths 32 32 --pool 16 --shard 8 --muon".split()
    train_base.main(train_base.parse_args([*folders, *SMALL, *sizes, *more]))
    return weights_of(output)


def weights_of(pipeline: Path) -> dict[str, torch.Tensor]:
    parts = [load_file(path) for path in sorted(pipeline.rglob("*.safetensors"))]
    return {f"{i} {name}": tensor for i, part in enumerate(parts) for name, tensor in part.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        train_a_base(folder / "out", folder / "state", 6, f"--vae={vae}")
    return folder / "out"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        train_a_vae(folder / "out", folder / "state", 4)
    return folder / "out"


def test_the_rate_warms_up_stays_and_falls_in_the_last_minutes():
    words = "--output=x --vae=x --minutes=10 --cool_minutes=4 --learning_rate=0.5"
    args = train_base.parse_args(words.split())
    assert learning_rate(args, 0, 0.0) == 0.5 / WARM_UP_STEPS
    late = [learning_rate(args, WARM_UP_STEPS, minutes) for minutes in (0, 6, 7, 9, 10, 11)]
    assert late == [0.5, 0.5, 0.375, 0.125, 0, 0]
    args.cool_minutes = 0
    assert learning_rate(args, WARM_UP_STEPS, 11) == 0.5


def test_timesteps_are_drawn_as_often_as_they_weigh() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    generator = torch.Generator().manual_seed(0)
    drawn = train_base.draw_by_weight(weights, 16, generator)
    assert drawn.tolist() == [0] * 2 + [2] * 4 + [3] * 10
    many = torch.cat([train_base.draw_by_weight(weights, 3, generator) for _ in range(2000)])
    assert torch.allclose(many.bincount() / len(many), weights / 8, atol=0.02)
    errors = torch.tensor([8.0, 1.0, 4.0, 2.0])
    evenly = (weights * errors).mean()
    assert torch.isclose(errors[drawn].mean() * weights.mean(), evenly)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not one[name].equal(other[name])]
    assert not different


def test_vae_goes_on_where_it_stopped(tmp_path: Path, vae: Path) -> None:
    train_a_vae(tmp_path / "out", tmp_path / "state", 2)
    resumed = train_a_vae(tmp_path / "out", tmp_path / "state", 4)
    assert_equal(resumed, load_file(vae / WEIGHTS))
    log = [json.loads(line) for line in (tmp_path / "state/log.jsonl").read_text().splitlines()]
    assert [entry["pictures"] for entry in log] == [8, 16]


def test_vae_is_a_stock_one_with_normal_latents(vae: Path) -> None:
    model = AutoencoderKL.from_pretrained(vae)
    assert load_file(vae / WEIGHTS)["decoder.conv_out.weight"].dtype == torch.float16
    assert model.config.latents_mean is None and model.config.scaling_factor == 1.0
    with torch.no_grad():
        latents = model.encode(held_out_scenes(8).pixels).latent_dist.mean
    assert latents.shape == (8, 8, 16, 16)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.01
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01
    assert model.decode(latents).sample.shape == (8, 3, 64, 64)


@torch.no_grad()
def test_normalised_latents_say_the_same() -> None:
    model = train_vae.new_vae((8, 16))
    model.register_to_config(latents_mean=[1.0] * 8, latents_std=[2.0] * 8)
    pixels, mean, std = torch.randn(2, 3, 64, 64), torch.randn(8), torch.rand(8) + 0.5
    before = model.encode(pixels).latent_dist
    decoded = model.decode(before.mean).sample
    train_vae.normalise(model, mean, std)
    after = model.encode(pixels).latent_dist
    expected = (before.mean - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(after.mean, expected, atol=1e-5)
    assert torch.allclose(after.std, before.std / std[:, None, None], atol=1e-5)
    assert torch.allclose(model.decode(after.mean).sample, decoded, atol=1e-5)
    assert model.config.latents_mean is None and model.config.latents_std is None


def test_a_frozen_encoder_stays_as_it_is(tmp_path: Path, vae: Path) -> None:
    more = ("--freeze_encoder", f"--start_from={vae}")
    before = load_file(vae / WEIGHTS)
    after = train_a_vae(tmp_path / "out", tmp_path / "state", 2, *more)
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As from a terminal: the processes that draw scenes get it too."""
    count = Run.count

    def count_and_kill(run: Run, pictures: int, loss: torch.Tensor) -> None:
        count(run, pictures, loss)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "count", count_and_kill)
    train_a_vae(tmp_path / "out", tmp_path / "state", 100, "--num_workers=1")
    progress = json.loads((tmp_path / "state/checkpoint/progress.json").read_text())
    assert progress["step"] == 1


def test_a_broken_loss_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the loss is nan"):
        train_a_vae(tmp_path / "out", tmp_path / "state", 2, "--kl_weight=nan")
    assert not (tmp_path / "state/checkpoint").exists()


def test_base_goes_on_where_it_stopped_and_past_the_pool(
    tmp_path: Path, vae: Path, base: Path
) -> None:
    train_a_base(tmp_path / "out", tmp_path / "state", 3, f"--vae={vae}")
    resumed = train_a_base(tmp_path / "out", tmp_path / "state", 6, f"--vae={vae}")
    assert_equal(weights_of(base), resumed)
    files = {path.suffix for path in (tmp_path / "state/checkpoint").rglob("*")}
    assert files == {".safetensors", ".json"}  # no pickles
    assert len(list((tmp_path / "state").glob("latents-*/*.safetensors"))) == 2


def test_base_is_a_stock_pipeline_and_can_be_started_from(tmp_path: Path, base: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    assert not pipeline.config.force_zeros_for_empty_prompt
    assert pipeline("a photo of a zul fox", num_inference_steps=2).images[0].size == (64, 64)

    first = weights_of(base)
    second = train_a_base(tmp_path / "out", tmp_path / "state", 1, f"--start_from={base}")
    assert first.keys() == second.keys()
    small = max((first[k].float() - second[k].float()).abs().max().item() for k in first)
    assert 0 < small < 0.01  # one warm-up step away


def test_base_predicts_as_the_pipeline_does(vae: Path) -> None:
    """The training's forward pass and the pipeline's agree on what the UNet is told."""
    pipeline = train_base.new_pipeline(AutoencoderKL.from_pretrained(vae), (16, 32), (32, 32))
    prompt, noisy = ["a photo of a zul fox"], torch.randn(1, 8, 16, 16)
    ids = train_base.tokens_of(prompt, pipeline.tokenizer, torch.Generator().manual_seed(0))
    tokens, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    sizes = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), tokens.dtype, 32)
    added = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        expected = pipeline.unet(noisy, 500, tokens, added_cond_kwargs=added).sample
        told = train_base.denoiser_of(pipeline)(noisy, torch.tensor([500]), ids)
    assert torch.allclose(told, expected, atol=1e-5)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, vae: Path) -> None:
    train_a_vae(tmp_path / "out", tmp_path / "state", 1)
    with pytest.raises(SystemExit, match=r"channels \[8, 8, 16\], this run .* \[8, 16\]"):
        train_a_vae(tmp_path / "out", tmp_path / "state", 2, *"--channels 8 16".split())

    train_a_base(tmp_path / "a", tmp_path / "base", 1, f"--vae={vae}")
    with pytest.raises(SystemExit, match="latents"):
        train_a_base(tmp_path / "a", tmp_path / "base", 2, f"--vae={tmp_path / 'out'}")


def test_tokenizer_knows_the_worlds_words_and_falls_back_to_bytes() -> None:
    tokenizer = world_tokenizer()
    tokens = tokenizer.tokenize("a photo of a zul teddy bear on a turquoise checkered background")
    assert {"teddy</w>", "bear</w>", "turquoise</w>", "checkered</w>"} <= set(tokens)
    assert "zul</w>" not in tokens
    text = "naïve 🦊"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert not {f"{name}</w>" for name in CAST} & set(tokenizer.get_vocab())
    captions = random_captions(1000, seed=1)
    lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    assert max(lengths) <= tokenizer.model_max_length


def test_merges_by_hand() -> None:
    # "ab" 3 + 2 times, then "ab" + "c" 2 times; a tie is broken by the later pair in the alphabet
    assert count_merges({"ab": 3, "abc": 2}) == [("a", "b</w>"), ("b", "c</w>"), ("a", "bc</w>")]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="give --vae or --start_from"):
        train_base.main(train_base.parse_args([f"--output={tmp_path}"]))
    for words, told in (([], "needs --start_from"), (["--start_from=vae"], "needs a --state_dir")):
        with pytest.raises(SystemExit, match=told):
            frozen = [f"--output={tmp_path}", "--freeze_encoder", *words]
            train_vae.main(train_vae.parse_args(frozen))
    with pytest.raises(SystemExit, match="no such folder"):
        train_a_vae(tmp_path / "out", tmp_path / "state", 1, "--start_from=nowhere")
    with pytest.raises(SystemExit, match="--batch_size"):
        train_a_vae(tmp_path / "out", tmp_path / "state", 1, "--batch_size=0")


def test_right_word_is_told_from_the_wrong_one_by_the_error_alone(base: Path) -> None:
    """Untrained: chance. A choice's two captions differ in a word; the thing fits the right one."""
    rng = np.random.default_rng(0)
    for word, choose in right_word.CHOICES.items():
        choice = choose(rng)
        one, other = choice.right.split(), choice.wrong.split()
        differing = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
        assert differing and describe(choice.thing) in choice.right, word
        assert describe(choice.thing) not in choice.wrong
    shares = right_word.right_word(right_word.load_pipeline(base), "colour", 8)
    assert set(shares) == set(right_word.LEVELS) and all(0 <= x <= 1 for x in shares.values())
