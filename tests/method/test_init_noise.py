import random

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils.torch_utils import randn_tensor
from helpers import COLOURS, plain_cutout
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mini.tiny import tiny_flux, tiny_sdxl
from mudi.init_noise import (
    Layout,
    compose_layout,
    gamma_map,
    latent_masks,
    load_layout,
    mean_shifted_noise,
    random_layout,
    reference_gamma,
    subject_latents,
)
from mudi.layouts import UnitBox
from mudi.segmix import cut_out

torch.set_num_threads(1)

RED, GREEN = COLOURS[:2]
SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEFT_HALF, WHOLE = UnitBox(0.0, 0.0, 0.5, 1.0), UnitBox(0.0, 0.0, 1.0, 1.0)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == colour).all(axis=-1).sum())


def test_a_cutout_keeps_its_aspect_ratio_and_stands_on_the_middle_of_its_box():
    """A 10 x 20 subject in a box of 60 x 40: scaled by 2 to 20 x 40, 20 px free on either side."""
    layout = Layout((UnitBox(0.2, 0.5, 0.8, 0.9),), (0,))
    scene = compose_layout([plain_cutout(10, 20)], layout, (100, 100))
    assert scene.boxes == [(40, 50, 60, 90)]
    wide = compose_layout([plain_cutout(20, 10)], layout, (100, 100))  # 60 x 30, on the ground
    assert wide.boxes == [(20, 60, 80, 90)]
    assert count(wide.image, RED) == wide.mask.sum() == 60 * 30
    assert wide.image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("order", "red", "green"), [((0, 1), 3200, 3200), ((1, 0), 0, 6400)])
def test_the_front_subject_hides_the_other(order, red, green):
    """Red fills the left half of 80 x 80, green all of it."""
    cutouts = [plain_cutout(40, 80, RED), plain_cutout(80, 80, GREEN)]
    scene = compose_layout(cutouts, Layout((LEFT_HALF, WHOLE), order), (80, 80))
    assert (count(scene.image, RED), count(scene.image, GREEN)) == (red, green)
    assert [int(visible.sum()) for visible in scene.visible] == [red, green]
    assert scene.mask.all()


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 2**32), st.integers(1, 99), st.integers(1, 99))
def test_every_pixel_of_the_mask_was_painted_by_just_one_subject(number, seed, width, height):
    rng = random.Random(seed)
    cutouts = [plain_cutout(rng.randint(1, 50), rng.randint(1, 50), RED) for _ in range(number)]
    layout = random_layout(number, rng, aspect=width / height)
    scene = compose_layout(cutouts, layout, (width, height), "black")
    assert scene.image.size == (width, height)
    assert count(scene.image, RED) == scene.mask.sum() == scene.visible.sum()
    assert all(0 <= b.left < b.right <= width for b in scene.boxes)
    assert all(0 <= b.top < b.bottom <= height for b in scene.boxes)


def test_a_layout_for_another_number_of_subjects_is_refused():
    with pytest.raises(ValueError, match="1 cut-outs, but 2 boxes in the layout"):
        compose_layout([plain_cutout(4, 4)], Layout((WHOLE, WHOLE), (0, 1)), (8, 8))


def test_only_the_subject_is_painted_not_its_box():
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :] = mask[10:, :10] = True  # an L of 300 pixels
    cutout = cut_out(Image.new("RGB", (20, 20), RED), mask)
    scene = compose_layout([cutout], Layout((WHOLE,), (0,)), (20, 20))
    assert count(scene.image, RED) == scene.mask.sum() == 300


def test_latent_masks_hold_the_share_of_each_patch():
    """8 x 16 pixels to 1 x 2: the first subject covers 32 of the first 64, the second the rest."""
    visible = np.zeros((2, 8, 16), dtype=bool)
    visible[0, :, :4] = visible[1, :4, 4:10] = True
    masks = latent_masks(visible, (1, 2))
    assert masks.tolist() == [[[0.5, 0.0]], [[0.25, 0.125]]]
    union = latent_masks(visible.any(axis=0)[None], (1, 2))
    assert torch.equal(masks.sum(0), union[0])


def test_each_subject_has_its_own_gamma_in_proportion_to_its_area():
    """Shared latent: (2 * 0.5 + 5 * 0.25) / 0.75 = 3."""
    masks = torch.tensor([[[0.5, 0.0, 1.0]], [[0.25, 0.0, 0.0]]])
    gammas = gamma_map([2.0, 5.0], masks)
    assert gammas.shape == (1, 1, 1, 3)
    assert gammas.flatten().tolist() == pytest.approx([3.0, 0.0, 2.0])
    assert torch.equal(gamma_map([0.0, 0.0], masks), torch.zeros(1, 1, 1, 3))
    with pytest.raises(ValueError, match="1 gammas, but 2 subjects"):
        gamma_map([1.0], masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gamma_0_gives_exactly_what_a_pipeline_draws(dtype: torch.dtype):
    shape = (2, 4, 12, 20)
    latents, mask = torch.randn(shape).to(dtype), torch.rand(2, 1, 12, 20)
    noise = mean_shifted_noise(latents, mask, 0.0, seeded(3, 4))
    assert noise.dtype == dtype
    assert torch.equal(noise, randn_tensor(shape, seeded(3, 4), dtype=dtype))
    one = mean_shifted_noise(latents, mask, torch.zeros(2, 1, 12, 20), seeded(5)[0])
    assert torch.equal(one, randn_tensor(shape, seeded(5)[0], dtype=dtype))


def test_the_mean_is_gamma_z_inside_the_mask_and_0_outside_at_unit_variance():
    """20,000 draws: the mean's standard error is 0.007, the variance's 0.01."""
    draws = 20_000
    z = torch.tensor([2.0, -1.0, 3.0])
    latents = z.expand(draws, 1, 1, 3)
    mask = torch.tensor([1.0, 0.5, 0.0]).expand(draws, 1, 1, 3)
    noise = mean_shifted_noise(latents, mask, 0.6, seeded(0)[0])
    mean, variance = noise.mean(0).flatten(), noise.var(0).flatten()
    assert mean.tolist() == pytest.approx([0.6 * 2.0, 0.6 * 0.5 * -1.0, 0.0], abs=0.04)
    assert variance.tolist() == pytest.approx([1.0] * 3, abs=0.05)
    assert torch.equal(noise[..., 2], randn_tensor(noise.shape, seeded(0)[0])[..., 2])


@given(st.integers(1, 5), st.data())
def test_an_image_s_noise_is_the_same_alone_and_in_any_batch(batch, data):
    seeds = data.draw(st.lists(st.integers(0, 2**32), min_size=batch, max_size=batch))
    latents = torch.randn(batch, 4, 6, 10, generator=seeded(1)[0])
    mask = torch.rand(batch, 1, 6, 10, generator=seeded(2)[0])
    together = mean_shifted_noise(latents, mask, 0.7, seeded(*seeds))
    for i, seed in enumerate(seeds):
        alone = mean_shifted_noise(latents[i : i + 1], mask[i : i + 1], 0.7, seeded(seed))
        assert torch.equal(together[i : i + 1], alone)


def test_gammas_one_a_subject_shift_each_by_its_own():
    masks = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    latents = torch.full((1, 16, 1, 3), 2.0)
    mask, gammas = masks.sum(0)[None, None], gamma_map([0.5, 3.0], masks)
    shift = mean_shifted_noise(latents, mask, gammas, seeded(9)) - randn_tensor(
        (1, 16, 1, 3), seeded(9)
    )
    expected = torch.tensor([1.0, 6.0, 0.0]).expand(1, 16, 1, 3)
    assert torch.allclose(shift, expected, atol=1e-6)


def test_what_does_not_fit_is_refused():
    latents, mask = torch.zeros(2, 4, 3, 5), torch.zeros(2, 1, 3, 5)
    with pytest.raises(ValueError, match=r"subject_mask is \(2, 3, 5\), not \(2, 1, 3, 5\)"):
        mean_shifted_noise(latents, mask[:, 0], 1.0, seeded(0, 1))
    with pytest.raises(ValueError, match=r"gamma is \(2,\), not a number or"):
        mean_shifted_noise(latents, mask, torch.ones(2), seeded(0, 1))
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        mean_shifted_noise(latents, mask, 1.0, seeded(0))


@pytest.mark.parametrize("pipeline", [tiny_sdxl, tiny_flux])
@pytest.mark.parametrize("size", [(160, 96), (96, 160), (64, 64)])
def test_a_collage_of_any_size_goes_through_either_vae(pipeline, size: tuple[int, int]):
    vae = pipeline().vae
    layout = random_layout(3, random.Random(0), aspect=size[0] / size[1])
    cutouts = [plain_cutout(20, 30, colour) for colour in COLOURS[:3]]
    scene = compose_layout(cutouts, layout, size)
    latents = subject_latents(vae, [scene.image])
    width, height = size
    shape = (1, vae.config.latent_channels, height // 8, width // 8)
    assert latents.shape == shape
    assert latents.dtype == torch.float32
    assert not latents.requires_grad

    masks = latent_masks(scene.visible, shape[-2:])
    mask = masks.sum(0)[None, None]
    noise = mean_shifted_noise(latents, mask, gamma_map([1.0, 0.5, 2.0], masks), seeded(0))
    outside = (mask == 0).expand(shape)
    assert outside.any()
    assert torch.equal(noise[outside], randn_tensor(shape, seeded(0))[outside])


@pytest.mark.parametrize("pipeline", [tiny_sdxl, tiny_flux])
def test_subject_latents_are_the_mean_scaled_as_in_training(pipeline):
    vae = pipeline().vae
    image = compose_layout([plain_cutout(5, 8)], Layout((LEFT_HALF,), (0,)), (32, 16)).image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
    expected = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    latents = subject_latents(vae, [image, image])
    assert torch.allclose(latents, expected.expand_as(latents), atol=1e-6)
    assert torch.equal(latents, subject_latents(vae, [image, image]))


@pytest.mark.parametrize(("steps", "sigma"), [(25, 11.7), (30, 11.5), (50, 13.1)])
def test_reference_gamma_of_sdxl_s_scheduler_is_that_of_the_method_s_notes(steps, sigma):
    scheduler = EulerDiscreteScheduler(**SDXL_BETAS, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    assert reference_gamma(scheduler) == pytest.approx(1 / sigma, rel=0.01)
    assert reference_gamma(scheduler) == pytest.approx(1 / float(scheduler.init_noise_sigma))


def test_reference_gamma_is_the_same_number_for_schedulers_without_sigmas():
    """For equal timesteps: sqrt(a) = 1 / sqrt(sigma^2 + 1)."""
    settings = {**SDXL_BETAS, "timestep_spacing": "leading", "steps_offset": 1}
    ddim, euler = DDIMScheduler(**settings), EulerDiscreteScheduler(**settings)
    for scheduler in (ddim, euler):
        scheduler.set_timesteps(30)
    assert reference_gamma(ddim) == pytest.approx(reference_gamma(euler), rel=1e-4)


def test_flow_matching_has_no_reference_gamma():
    schedulers = [
        FlowMatchEulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ]
    for scheduler in schedulers:
        scheduler.set_timesteps(10)
        assert reference_gamma(scheduler) is None


def test_layouts_are_at_hand_here_too(tmp_path):
    path = tmp_path / "layout.json"
    path.write_text('{"boxes": {"a": [0, 0, 0.5, 1], "b": [0.5, 0, 1, 1]}}')
    assert load_layout(path).boxes == (LEFT_HALF, (0.5, 0, 1, 1))
