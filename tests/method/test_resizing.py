"""Sharpness of what is scaled, and masks of which something stays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation

from comfyui.resizing import KEPT_AREA, kept_by, resize_bicubic, resize_mask, thick_share

SIDES = st.integers(4, 200)


@settings(max_examples=60)
@given(SIDES, SIDES, st.floats(0.05, 2), st.sampled_from([3, 4]))
def test_a_bicubic_step_is_pillow_s_but_for_rounding(width, height, scale, bands):
    to_width, to_height = (max(1, round(length * scale)) for length in (width, height))
    # Between the passes along the two sides, what is beyond 0 or 255 is cut: not here
    values = np.random.default_rng(width * height).integers(100, 156, (height, width, bands))
    pixels = values.astype(np.uint8)
    pillow = np.dstack(
        [
            np.asarray(
                Image.fromarray(pixels[..., band]).resize(
                    (to_width, to_height), Image.Resampling.BICUBIC
                )
            )
            for band in range(bands)
        ]
    )
    scaled = resize_bicubic(pixels, (to_width, to_height))
    assert scaled.shape == (to_height, to_width, bands) and scaled.dtype == np.uint8
    difference = np.abs(scaled.astype(int) - pillow)
    assert difference.max() <= 2 and difference.mean() <= 0.5


def test_thin_parts_stay_by_hand():
    """Halved, rows cover 1, 1/2, 1/4, 0: area 1.75 of 4; the cut at half alone keeps 1 of it."""
    levels = np.array([[255, 128, 64, 0]], np.uint8)
    # 9/10 of 1.75 = 1.58: two pixels are wanted, the two that are covered most
    assert kept_by(levels).tolist() == [[True, True, False, False]]
    assert kept_by(np.array([[255, 255, 127, 0]], np.uint8)).tolist() == [[True, True, True, False]]
    # Of a solid subject's ten pixels and an edge that is covered by 1/4: nothing is added
    assert kept_by(np.array([[255] * 10 + [64]], np.uint8)).sum() == 10
    assert not kept_by(np.zeros((2, 2), np.uint8)).any()


def wires(width: int = 4000, height: int = 3000, thickness: int = 4) -> np.ndarray:
    """A 12-megapixel mask of a frame and its diagonals, each so many pixels thick."""
    picture = Image.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    corners = [(200, 200), (width - 200, 200), (width - 200, height - 200), (200, height - 200)]
    pen.line([*corners, corners[0], corners[2]], fill=255, width=thickness)
    pen.line([corners[1], corners[3]], fill=255, width=thickness)
    return np.asarray(picture) > 0


@pytest.mark.parametrize("size", [(1024, 768), (512, 384)])
def test_wires_stay_whole_where_they_were(size):
    """Where they cover half a pixel or so; the cut at half alone leaves next to nothing at 512."""
    mask = wires()
    kept = resize_mask(mask, size)
    touched = np.asarray(Image.fromarray(mask).convert("F").resize(size, Image.Resampling.BOX)) > 0
    near = np.ones((3, 3), bool)
    assert (touched & binary_dilation(kept, near)).sum() >= 0.95 * touched.sum()
    assert not (kept & ~touched).any()
    assert KEPT_AREA - 0.01 < kept.mean() / mask.mean() < 2


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Specks, wires, combs and clouds of any density, with a pixel at least."""
    width, height = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((height, width)) < draw(st.sampled_from([0, 0.001, 0.05, 0.5, 1]))
    if draw(st.booleans()):
        mask[:, rng.integers(0, width) :: draw(st.integers(1, 60))] = True
    mask[rng.integers(0, height), rng.integers(0, width)] = True
    return mask


@settings(max_examples=300)
@given(masks(), st.integers(1, 120), st.integers(1, 120))
def test_something_of_every_mask_stays_and_nothing_comes_from_nowhere(mask, width, height):
    width, height = min(width, mask.shape[1]), min(height, mask.shape[0])
    kept = resize_mask(mask, (width, height))
    covered = np.asarray(
        Image.fromarray(mask).convert("F").resize((width, height), Image.Resampling.BOX)
    )
    assert kept.any() and kept.dtype == bool and kept.shape == (height, width)
    assert not (kept & (covered == 0)).any()
    rounded_away = width * height / 2 / 255  # half a level each
    assert kept.sum() >= KEPT_AREA * (covered.sum() / 255 - rounded_away) - 1


def test_a_single_pixel_of_12_megapixels_stays():
    mask = np.zeros((3000, 4000), bool)
    mask[2999, 0] = True
    kept = resize_mask(mask, (64, 48))
    assert kept.sum() == 1 and kept[47, 0]


@pytest.mark.parametrize("radius", [10, 40, 133.3])
def test_a_solid_subject_is_cut_at_half(radius):
    """What is covered by more than half; the published rule, to the pixel."""
    y, x = np.mgrid[-200:200, -200:200]
    disc = x**2 + y**2 <= radius**2
    half = np.asarray(Image.fromarray(disc).convert("L").resize((130, 130), Image.Resampling.BOX))
    np.testing.assert_array_equal(resize_mask(disc, (130, 130)), half > 128)


def test_no_mask_stays_no_mask():
    assert not resize_mask(np.zeros((30, 20), bool), (7, 5)).any()


def test_the_thick_share_by_hand():
    """At half the size a 4 x 4 block is thick, a line 1 px wide covers half a pixel, not more."""
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    assert thick_share(mask, (4, 4)) == 1
    mask[:, 7] = True  # 8 pixels of 24
    assert thick_share(mask, (4, 4)) == pytest.approx(16 / 24)
    assert (
        thick_share(wires(), (512, 384)) < 0.25 < 0.9 < thick_share(wires(thickness=40), (512, 384))
    )
