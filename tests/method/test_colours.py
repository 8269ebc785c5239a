"""Colour profiles: what a photo's levels mean, brought to sRGB wherever it is read."""

import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from profiles import (
    ADOBE_GAMMA,
    ADOBE_PRIMARIES,
    P3_PRIMARIES,
    SRGB_PRIMARIES,
    cmyk_profile,
    gray_profile,
    in_srgb,
    rgb_profile,
)

from mudi.images import load_gray, load_mask, load_rgb

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
P3 = rgb_profile(P3_PRIMARIES)
COLOURS = np.array(
    [[234, 51, 35], [120, 200, 90], [20, 40, 200], [128, 128, 128], [255, 255, 255], [0, 0, 0]],
    np.uint8,
)


def patches(colours: np.ndarray) -> Image.Image:
    """Squares of 16 pixels, so that JPEG and WebP leave their middles alone."""
    return Image.fromarray(np.kron(colours[None], np.ones((16, 16, 1), np.uint8)))


def middles(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[8, 8::16].astype(int)


LOSSLESS = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif"])
def test_a_phone_s_red_is_red(tmp_path, suffix):
    """Display P3 (234, 51, 35) is sRGB's (255, 0, 0), to within a level or two."""
    path = tmp_path / f"photo.{suffix}"
    patches(COLOURS).save(path, icc_profile=P3, **LOSSLESS.get(suffix, {}))
    read = middles(load_rgb(path))
    np.testing.assert_allclose(read[0], (255, 0, 0), atol=3 if suffix != "avif" else 12)
    exact = in_srgb(COLOURS, P3_PRIMARIES, None)
    np.testing.assert_allclose(read, exact, atol=3 if suffix != "avif" else 12)


chromaticities = st.tuples(st.floats(-0.03, 0.03), st.floats(-0.03, 0.03))
shifts = st.tuples(chromaticities, chromaticities, chromaticities)


@settings(SHARED_FOLDER, max_examples=60)
@given(
    st.sampled_from([SRGB_PRIMARIES, P3_PRIMARIES, ADOBE_PRIMARIES]),
    shifts,
    st.integers(256, 640).map(lambda gamma: gamma / 256),
    st.integers(0, 2**32),
)
def test_levels_of_any_display_become_what_they_are_in_srgb(tmp_path, near, shift, gamma, seed):
    """Primaries anywhere near the usual ones, gamma from 1 to 2.5, any colours."""
    primaries = tuple((x + dx, y + dy) for (x, y), (dx, dy) in zip(near, shift, strict=True))
    levels = np.random.default_rng(seed).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(levels).save(path, icc_profile=rgb_profile(primaries, gamma))
    exact = in_srgb(levels, primaries, gamma)
    error = np.abs(np.asarray(load_rgb(path)) - exact)
    assert error.max() < 4 and error.mean() < 0.5  # a level is steep where sRGB's curve is linear


def test_a_camera_s_adobe_rgb_is_brought_to_srgb(tmp_path):
    path = tmp_path / "photo.jpg"
    profile = rgb_profile(ADOBE_PRIMARIES, ADOBE_GAMMA)
    patches(COLOURS).save(path, icc_profile=profile, quality=100, subsampling=0)
    exact = in_srgb(COLOURS, ADOBE_PRIMARIES, ADOBE_GAMMA)
    np.testing.assert_allclose(middles(load_rgb(path)), exact, atol=3)
    assert np.abs(exact - COLOURS).max() > 20


def test_a_scanner_s_cmyk_is_read_by_its_profile(tmp_path):
    """K at full is L* 50 there, sRGB's 119; without the profile it would be black."""
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 3] = 255
    for name in ("photo.tif", "photo.jpg"):
        image = Image.fromarray(inks, "CMYK")
        image.save(tmp_path / name, icc_profile=cmyk_profile(50))
        assert middles(load_rgb(tmp_path / name))[0].min() >= 254
        np.testing.assert_allclose(middles(load_rgb(tmp_path / name))[1], (119,) * 3, atol=3)


@pytest.mark.parametrize("mode, profile", [("L", gray_profile(1.0)), ("L", P3), ("LA", P3)])
def test_greys_keep_being_grey(tmp_path, mode, profile):
    """A gamma of 1 makes the level 55 sRGB's 128; P3 has sRGB's curve and leaves it."""
    Image.new("L", (4, 4), 55).convert(mode).save(tmp_path / "photo.png", icc_profile=profile)
    expected = 128 if profile is not P3 else 55
    np.testing.assert_allclose(load_rgb(tmp_path / "photo.png").getpixel((0, 0)), expected, atol=1)


def test_16_bit_greys_are_converted_too(tmp_path):
    image = Image.fromarray(np.full((4, 4), 55 * 257, np.uint16))
    image.save(tmp_path / "photo.tif", icc_profile=gray_profile(1.0))
    assert load_rgb(tmp_path / "photo.tif").getpixel((0, 0)) == (128, 128, 128)


def test_a_palette_and_transparency_are_converted_and_kept(tmp_path):
    palette = patches(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", icc_profile=P3)
    np.testing.assert_allclose(middles(load_rgb(tmp_path / "palette.png"))[0], (255, 0, 0), atol=3)
    clear = Image.new("RGBA", (32, 16), (234, 51, 35, 255))
    clear.paste((234, 51, 35, 0), (16, 0, 32, 16))
    clear.save(tmp_path / "clear.png", icc_profile=P3)
    np.testing.assert_allclose(
        middles(load_rgb(tmp_path / "clear.png")), [(255, 0, 0), (255, 255, 255)], atol=2
    )


def test_a_mask_is_read_by_its_profile(tmp_path):
    """Level 100 at gamma 1 is sRGB's 168, so it is foreground."""
    mask = Image.fromarray(np.array([[20, 100, 255]], np.uint8))
    mask.save(tmp_path / "mask.png", icc_profile=gray_profile(1.0))
    assert load_mask(tmp_path / "mask.png").tolist() == [[False, True, True]]
    assert load_gray(tmp_path / "mask.png")[0, 1] == 168


def test_srgb_s_own_profile_changes_no_level(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for i, profile in enumerate((own, rgb_profile(SRGB_PRIMARIES))):
        Image.fromarray(levels).save(tmp_path / f"{i}.png", icc_profile=profile)
        np.testing.assert_array_equal(np.asarray(load_rgb(tmp_path / f"{i}.png")), levels)


@pytest.mark.parametrize(
    "profile", [b"no profile", P3[:200], gray_profile(2.0), cmyk_profile(50)], ids=len
)
def test_a_profile_that_cannot_be_used_is_told_once_and_left_out(tmp_path, caplog, profile):
    path = tmp_path / "photo.png"
    patches(COLOURS).save(path, icc_profile=profile)
    with caplog.at_level(logging.WARNING):
        first, second = load_rgb(path), load_rgb(path)
    np.testing.assert_array_equal(middles(first), COLOURS)
    np.testing.assert_array_equal(middles(second), COLOURS)
    [message] = [record.getMessage() for record in caplog.records]
    assert str(path) in message and "colour profile is left out" in message


@settings(SHARED_FOLDER, max_examples=200)
@given(
    st.sampled_from([P3, rgb_profile(ADOBE_PRIMARIES, 2.2), gray_profile(2.0), cmyk_profile(20)]),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_no_damage_to_a_profile_refuses_a_photo(tmp_path, profile, damage, mode):
    broken = bytearray(profile)
    for place, value in damage:
        broken[place % len(broken)] = value
    path = tmp_path / "photo.tif"
    patches(COLOURS).convert(mode).save(path, icc_profile=bytes(broken))
    assert load_rgb(path).size == (96, 16)
