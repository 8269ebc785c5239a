from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image

from mudi.images import Box, ImageError, load_gray, load_mask, load_rgb, tight_box

RED, BLUE, WHITE = (200, 60, 60), (60, 60, 200), (255, 255, 255)


def test_tight_box_of_a_hand_drawn_mask():
    mask = np.array(
        [
            [0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 1, 0, 1, 0],
            [0, 0, 0, 0, 0],
        ],
        dtype=bool,
    )
    box = tight_box(mask)
    assert box == Box(left=1, top=1, right=4, bottom=3)
    assert (box.width, box.height) == (3, 2)


def test_tight_box_keeps_the_last_row_and_column():
    mask = np.zeros((4, 6), dtype=bool)
    mask[3, 5] = True
    assert tight_box(mask) == (5, 3, 6, 4)
    mask[0, 0] = True
    assert tight_box(mask) == (0, 0, 6, 4)


def test_tight_box_of_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="no foreground"):
        tight_box(np.zeros((4, 4), dtype=bool))


# Where the stored picture's top-left pixel belongs in the upright one: (at the right, at the
# bottom), and whether width and height swap. From the EXIF standard's table for tag 0x0112.
ORIENTATIONS = {
    1: (False, False, False),
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def save_marked(path: Path, orientation: int, mode: str) -> None:
    """Save a black 16x24 picture whose stored top-left 4x4 pixels are white."""
    image = Image.new(mode, (16, 24))
    image.paste(Image.new(mode, (4, 4), "white"), (0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def marked_corner(bright: np.ndarray) -> tuple[bool, bool]:
    """Return whether the white corner is at the right, and whether at the bottom."""
    height, width = bright.shape
    box = tight_box(bright)
    assert (box.width, box.height) == (4, 4)
    return box.right == width, box.bottom == height


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_a_photo_upright(tmp_path, orientation):
    right, bottom, swapped = ORIENTATIONS[orientation]
    save_marked(tmp_path / "photo.png", orientation, "RGB")
    photo = load_rgb(tmp_path / "photo.png")
    assert photo.size == ((24, 16) if swapped else (16, 24))
    assert marked_corner(np.asarray(photo)[..., 0] > 128) == (right, bottom)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_a_mask_by_its_own_tag(tmp_path, orientation):
    right, bottom, swapped = ORIENTATIONS[orientation]
    save_marked(tmp_path / "mask.png", orientation, "L")
    mask = load_mask(tmp_path / "mask.png")
    assert mask.shape == ((16, 24) if swapped else (24, 16))
    assert marked_corner(mask) == (right, bottom)


def test_exif_of_a_jpeg_is_read(tmp_path):
    save_marked(tmp_path / "photo.jpg", 6, "RGB")
    assert load_rgb(tmp_path / "photo.jpg").size == (24, 16)


def save_in_mode(path: Path, mode: str) -> Path:
    """Save a 16x16 picture, left half red, right half blue, in that mode."""
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (8, 0, 16, 16))
    image.convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    return path


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("RGB", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("CMYK", "tif"),
        ("CMYK", "jpg"),
        ("YCbCr", "tif"),
        ("YCbCr", "jpg"),
        ("LAB", "tif"),
        ("RGBX", "tif"),
    ],
)
def test_colours_survive_every_colour_mode(tmp_path, mode, suffix):
    photo = load_rgb(save_in_mode(tmp_path / f"photo.{suffix}", mode))
    assert photo.mode == "RGB"
    # JPEG and the LAB conversion round
    np.testing.assert_allclose(photo.getpixel((2, 8)), RED, atol=8)
    np.testing.assert_allclose(photo.getpixel((13, 8)), BLUE, atol=8)


def save_transparent(path: Path, mode: str) -> Path:
    """Save a picture whose left half is opaque black, its right half transparent black."""
    alpha = Image.new("L", (16, 16), 255)
    alpha.paste(0, (8, 0, 16, 16))
    if mode == "P":
        index = alpha.point(lambda opaque: 0 if opaque else 1).convert("P")
        index.putpalette([0, 0, 0, 0, 0, 0])
        index.save(path, transparency=1)
        return path
    Image.merge(mode, [Image.new("L", (16, 16), 0)] * (len(mode) - 1) + [alpha]).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_photos_transparency_is_laid_on_white(tmp_path, mode):
    photo = load_rgb(save_transparent(tmp_path / "photo.png", mode))
    assert (photo.mode, photo.getpixel((2, 8)), photo.getpixel((13, 8))) == (
        "RGB",
        (0, 0, 0),
        WHITE,
    )


def test_half_transparent_red_on_white_is_pink(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 51)).save(tmp_path / "photo.png")
    # 51/255 = 0.2 of red and 0.8 of white
    assert load_rgb(tmp_path / "photo.png").getpixel((0, 0)) == (255, 204, 204)


def test_a_masks_transparency_is_background(tmp_path):
    mask = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 1, 2))
    mask.save(tmp_path / "mask.png")
    assert load_mask(tmp_path / "mask.png").tolist() == [[True, False, False, False]] * 2


GREYS = np.array([[0, 51, 102, 255]], dtype=np.uint8)


@pytest.mark.parametrize(
    "values, suffix, mode",
    [
        (GREYS, "png", "L"),
        (GREYS.astype(np.uint16) * 257, "png", "I;16"),
        (GREYS.astype(np.uint16) * 257, "tif", "I;16"),
        (GREYS.astype(np.uint16) * 257, "pgm", "I"),
        (GREYS.astype(np.int32) * 257, "tif", "I"),
        (GREYS.astype(np.int32), "tif", "I"),
        (GREYS.astype(np.float32) / 255, "tif", "F"),
        (GREYS.astype(np.float32), "tif", "F"),
    ],
)
def test_every_kind_of_grey_is_scaled_to_8_bits(tmp_path, values, suffix, mode):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(values).save(path)
    assert Image.open(path).mode == mode
    assert load_gray(path).tolist() == GREYS.tolist()
    assert np.asarray(load_rgb(path))[..., 1].tolist() == GREYS.tolist()


def test_a_bilevel_mask_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == "1"
    assert load_gray(tmp_path / "mask.png").tolist() == [[255, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB"])
def test_a_mask_may_be_saved_in_colour(tmp_path, mode):
    mask = Image.new("RGB", (16, 16), "black")
    mask.paste(WHITE, (0, 0, 8, 16))
    mask.convert(mode).save(tmp_path / "mask.tif")
    expected = [[True] * 8 + [False] * 8] * 16
    assert load_mask(tmp_path / "mask.tif").tolist() == expected


def test_level_128_is_background_and_129_foreground(tmp_path):
    Image.fromarray(np.array([[0, 127, 128, 129, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png").tolist() == [[False, False, False, True, True]]


def test_a_zero_byte_file_says_so(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match="zero bytes; copy it again"):
        load_rgb(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("load", [load_rgb, load_mask])
def test_a_truncated_file_is_an_error_not_a_grey_picture(tmp_path, suffix, load):
    path = tmp_path / f"a.{suffix}"
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"cannot be read \(.*truncated.*save it again"):
        load(path)


def test_a_text_file_named_jpg_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match="no image format that Pillow knows"):
        load_rgb(tmp_path / "a.jpg")


def test_a_heic_photo_names_the_way_out(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(ImageError, match=r"HEIC is not read here; save it as JPEG or PNG"):
        load_rgb(tmp_path / "a.HEIC")


@pytest.mark.filterwarnings("ignore")  # Pillow's, on the damage
def test_damaged_bytes_raise_nothing_but_image_errors(tmp_path):
    """Random damage reaches every corner of Pillow's readers; a traceback tells users nothing."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "tif", "gif", "webp"):
        noise(24, 16).save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for _ in range(60):
            damaged = np.frombuffer(whole, np.uint8).copy()
            places = rng.integers(0, min(len(damaged), 200), size=4)
            damaged[places] = rng.integers(0, 256, size=4)
            (tmp_path / f"damaged.{suffix}").write_bytes(damaged.tobytes())
            try:
                load_rgb(tmp_path / f"damaged.{suffix}")
            except ImageError:
                pass
