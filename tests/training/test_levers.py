"""What saves time or memory: exact levers change nothing, the others what they say.

A lever that only orders the same arithmetic otherwise must give the same bits; one that sums in
another order, the same numbers to float32's rounding (CLOSE, after three steps of Adam).
"""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils._python_dispatch import TorchDispatchMode
from training import lora_of

from mudi import latents
from mudi.denoising import PromptTable
from mudi.latents import LatentCache, encode_images
from mudi.training import runtime, stats
from mudi.training.optimizers import make_optimizer

BITWISE = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-3, "atol": 1e-5}
DCO_BETA = 1000
# DCO's loss moves by at most beta times a rounding of the squared errors, which are near 1 to 2:
# a few bits of float32 are that much, on whatever processor.
LAST_BITS = DCO_BETA * 8 * torch.finfo(torch.float32).eps
THREE_STEPS = (
    f"--max_train_steps 3 --train_batch_size 2 --gradient_accumulation_steps 2 "
    f"--dco_beta {DCO_BETA} --random_flip"
)


@pytest.fixture(scope="session")
def trained(backbone, tmp_path_factory) -> Callable[[str], tuple[dict, list[float]]]:
    """Trains three steps with more flags; returns the LoRA and the losses that were reported."""
    runs: dict[str, tuple[dict, list[float]]] = {}

    def train(more: str) -> tuple[dict, list[float]]:
        if more not in runs:
            told: list[float] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stats, "report", lambda *_, loss, **_more: told.append(loss))
                out = backbone.train(tmp_path_factory.mktemp("lever"), THREE_STEPS, more)
            runs[more] = lora_of(out), told
        return runs[more]

    return train


@pytest.mark.parametrize(
    "lever", ["--logging_steps 1", "--dataloader_num_workers 1", "--gradient_checkpointing"]
)
def test_an_exact_lever_changes_no_bit(trained, lever):
    (weights, losses), (with_lever, losses_with_lever) = trained(""), trained(lever)
    assert losses_with_lever == losses and len(losses) == 3
    torch.testing.assert_close(with_lever, weights, **BITWISE)


@pytest.mark.parametrize("lever", ["--vae_slicing"])
def test_a_lever_that_sums_in_another_order_changes_the_last_bits_only(trained, lever):
    (weights, losses), (with_lever, losses_with_lever) = trained(""), trained(lever)
    assert losses_with_lever == pytest.approx(losses, abs=LAST_BITS)
    torch.testing.assert_close(with_lever, weights, **CLOSE)


def test_the_fused_adam_of_a_cpu_steps_as_the_plain_one(backbone):
    """A hundred steps at rate 1e-3: moments and weights agree to float32's rounding."""
    args = backbone.script.parse_args(["--learning_rate=1e-3", "--adam_weight_decay=1e-2"])
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((8, 4), (4, 8), (3,))]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    fused = make_optimizer(args, ours, [], num_processes=1)
    plain = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=1e-2, foreach=False, fused=False)
    assert fused.param_groups[0]["fused"]
    for _ in range(100):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        fused.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# When the loss is read


def test_losses_are_read_together_and_each_is_told(backbone, tmp_path, monkeypatch):
    """At every third step, before a file is written (step 4) and at the end (7)."""
    read, told = [], []
    numbers_of = stats.read_numbers
    monkeypatch.setattr(
        stats, "read_numbers", lambda a, values: read.append(len(values)) or numbers_of(a, values)
    )
    monkeypatch.setattr(
        stats, "report", lambda _a, _bar, step, **numbers: told.append((step, numbers["lr"]))
    )
    backbone.train(
        tmp_path, "--max_train_steps 7 --logging_steps 3 --save_steps 4 --dco_beta 0",
        "--lr_scheduler linear --learning_rate 7e-4 --lr_warmup_steps 7",
    )  # fmt: skip
    assert read == [3, 1, 2, 1]
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6, 7]
    assert [rate for _, rate in told] == pytest.approx([i * 1e-4 for i in range(7)])


def test_a_broken_loss_between_two_readings_is_found_with_its_step(backbone, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(stats, "report", lambda _a, _bar, step, **_: told.append(step))
    more = "--learning_rate 1e36 --max_train_steps 9 --logging_steps 4 --checkpointing_steps 8"
    with pytest.raises(SystemExit, match=r"step 2 is (nan|inf).*start again"):
        backbone.train(tmp_path, more)
    assert told == [1]
    assert not list(tmp_path.glob("*check*"))


class Waits(TorchDispatchMode):
    """Notes the operations for which a CPU would have to wait until a GPU is done."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("more", ["", "--cache_latents --segmix_pool 2 --soft_alpha 0.5"])
def test_nothing_in_the_loop_waits_for_a_number(backbone, tmp_path, monkeypatch, more):
    """From the first batch on, but for the losses, whose reading is left out here."""
    waits = Waits()
    generator_of, prepared = runtime.step_generator, []

    def first_of_a_step(*given):
        if not prepared:
            prepared.append(1)
            waits.__enter__()
        return generator_of(*given)

    def last(*_):
        waits.__exit__(None, None, None)

    monkeypatch.setattr(runtime, "step_generator", first_of_a_step)
    monkeypatch.setattr(stats, "read_numbers", lambda _a, values: [[math.log(2), 1.0]])
    monkeypatch.setattr(runtime, "validate_if_due", last)
    backbone.train(tmp_path, "--max_train_steps 1 --gradient_accumulation_steps 2 --dco_beta 9",
                   "--segmix_prob 1", more)  # fmt: skip
    assert prepared and waits.found == []


# Prompts


def test_prompts_stay_on_the_device_as_far_as_there_is_room():
    """Each takes (3 * 4 + 4) float32; there is room for two. The device here is "meta"."""
    asked: list[str] = []

    def encode(prompts):
        asked.extend(prompts)
        return torch.zeros(1, 3, 4), torch.zeros(1, 4)

    table = PromptTable(encode, list("abc"), torch.device("meta"), kept_bytes=2 * 16 * 4)
    for prompts in ("ab", "ca", "cc"):
        tokens, pooled = table(list(prompts))
        assert (tokens.shape, pooled.shape) == ((2, 3, 4), (2, 4))
        assert tokens.device.type == pooled.device.type == "meta"
    held = {name: entry[0].device.type for name, entry in table._entries.items()}
    assert held == {"a": "meta", "b": "meta", "c": "cpu"}
    assert asked == list("abc")


def test_prompts_of_different_lengths_are_looked_up_as_a_list():
    def encode(prompts):
        return torch.zeros(1, 4), [torch.full((len(prompts[0]), 2), 3.0)]

    for device in ("cpu", "meta"):
        pooled, tokens = PromptTable(encode, ["a", "ccc"], torch.device(device))(["ccc", "a"])
        assert (pooled.shape, [t.shape for t in tokens]) == ((2, 4), [(3, 2), (1, 2)])
        assert {t.device.type for t in tokens} == {device}


# Latents


def test_what_is_cached_does_not_depend_on_the_batch_it_came_in(sdxl_backbone):
    """So that a resumed run, whose cache is empty, has the same latents bit for bit."""
    vae = AutoencoderKL.from_pretrained(sdxl_backbone.base, subfolder="vae")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=generator)
    straight, resumed = LatentCache(), LatentCache()

    def encode(cache, rows, keys):
        noise = torch.Generator().manual_seed(1)
        return encode_images(vae, pixels[rows], noise, cache, keys)

    with torch.no_grad():
        encode(straight, [0, 1, 2], "abc")
        late = [2, 3, 0, 4], ["c", None, "a", None]
        torch.testing.assert_close(encode(straight, *late), encode(resumed, *late), **BITWISE)


def test_each_collage_of_a_pool_is_encoded_once_and_sampled_anew(backbone, tmp_path, monkeypatch):
    """18 draws of two collages, and of another from step 4 on."""
    encoded: list[int] = []
    encode, seen = latents._encode, []
    monkeypatch.setattr(
        latents, "_encode", lambda vae, pixels: encoded.append(len(pixels)) or encode(vae, pixels)
    )
    monkeypatch.setattr(
        backbone.script, "encode_images", lambda *given: seen.append(encode_images(*given))
        or seen[-1],
    )  # fmt: skip
    backbone.train(
        tmp_path, "--segmix_prob 1 --segmix_pool 2 --segmix_pool_refresh 4 --max_train_steps 6",
        "--train_batch_size 3 --dco_beta 0",
    )  # fmt: skip
    assert encoded == [1] * 3
    samples = torch.cat(seen).flatten(1)
    different = 18 if backbone.samples_latents else 3
    assert len(samples) == 18 and len(torch.unique(samples, dim=0)) == different


def test_pool_flags_that_cannot_work_are_told(backbone):
    def told(more: str) -> list[str]:
        return [
            c
            for c in backbone.script.check_args(backbone.script.parse_args(more.split()))
            if "pool" in c
        ]

    assert told("--segmix_pool 8 --segmix_pool_refresh 2") == []
    for more, complaint in (
        ("--segmix_pool -1", "--segmix_pool -1: must be 0 or more"),
        ("--segmix_pool_refresh 0", "--segmix_pool_refresh 0: must be 1 or more"),
        ("--segmix_pool 8 --segmix_prob 0", "--segmix_prob 0 makes none"),
    ):
        [line] = told(more)
        assert complaint in line
    assert "--logging_steps 0: must be 1 or more" in backbone.script.check_args(
        backbone.script.parse_args(["--logging_steps=0"])
    )
