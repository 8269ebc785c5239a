import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

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


# EXIF entries by hand: tag, type (2 text, 3 short, 4 long, 5 rational, 10 signed), count, value.
TEXT_RESOLUTION = (0x011A, 2, 4, b"72 \0")
MINUS_ONE_OVER_ZERO = (0x011B, 10, 1, struct.pack(">ii", -1, 0))
BAD_INTEROP = (0xA005, 2, 4, b"R98\0")
BAD_EXIF_TABLE = (0x8769, 4, 1, struct.pack(">I", 1 << 31))
BROKEN_ENTRIES = [TEXT_RESOLUTION, MINUS_ONE_OVER_ZERO, BAD_INTEROP, BAD_EXIF_TABLE]


def exif(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """Return an EXIF block with these entries, in the order of their tags."""
    table, more = struct.pack(">H", len(entries)), b""
    beyond = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in sorted(entries):
        if len(value) > 4:
            more, value = more + value, struct.pack(">I", beyond + len(more))
        table += struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + table + bytes(4) + more


def turned(orientation: int) -> tuple[int, bytes]:
    return 0x0112, 3, 1, struct.pack(">H", orientation)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("broken", BROKEN_ENTRIES, ids=str)
def test_what_exif_says_besides_the_orientation_is_not_looked_at(tmp_path, suffix, broken):
    noise(24, 16).save(tmp_path / f"plain.{suffix}")
    plain = np.asarray(load_rgb(tmp_path / f"plain.{suffix}"))
    noise(24, 16).save(tmp_path / f"turned.{suffix}", exif=exif([turned(6), broken]))
    read = np.asarray(load_rgb(tmp_path / f"turned.{suffix}"))
    np.testing.assert_array_equal(read, np.rot90(plain, -1))


@pytest.mark.parametrize("broken", [BAD_INTEROP, BAD_EXIF_TABLE], ids=str)
def test_a_tiff_s_broken_tables_do_not_hide_its_pixels(tmp_path, broken):
    path = tmp_path / "photo.tif"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 6
    tags.tagtype[broken[0]] = broken[1]
    tags[broken[0]] = "R98" if broken is BAD_INTEROP else 1 << 31
    noise(24, 16).save(path, tiffinfo=tags)
    np.testing.assert_array_equal(
        np.asarray(load_rgb(path)), np.rot90(np.asarray(noise(24, 16)), -1)
    )


entries = st.tuples(
    st.sampled_from(
        [0x010E, 0x011A, 0x011B, 0x0128, 0x0132, 0x0201, 0x8769, 0x8825, 0xA005, 0x927C]
    )
    | st.integers(0, 0xFFFF).filter(lambda tag: tag != 0x0112),
    st.integers(0, 14),
    st.sampled_from([0, 1, 2, 4, 1000, 0xFFFFFFFF]),
    st.binary(max_size=12),
)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(entries, max_size=6),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(6, 200), st.integers(0, 255)), max_size=4),
    st.sampled_from(["jpg", "png", "webp"]),
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, on the damage
def test_no_exif_refuses_a_photo_or_ends_in_a_traceback(
    tmp_path, entries, orientation, damage, suffix
):
    """Entries of any kind, whole or damaged: the pixels are there, turned if at all."""
    block = bytearray(exif([*entries, turned(orientation)]))
    for place, value in damage:
        block[place % len(block)] = value
    path = tmp_path / f"photo.{suffix}"
    noise(24, 16).save(path, exif=bytes(block))
    read = load_rgb(path)
    assert read.size in ((24, 16), (16, 24))
    if not damage:
        assert (read.size == (16, 24)) == (5 <= orientation <= 8)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, max_size=6), st.lists(st.tuples(st.integers(0, 71), st.integers(0, 255))))
@pytest.mark.filterwarnings("ignore")  # Pillow's, on the damage
def test_broken_tables_of_a_tiff_end_in_no_traceback(tmp_path, entries, damage):
    """There they stand among what tells where the pixels are, so some files can't be read."""
    path = tmp_path / "photo.tif"
    noise(24, 16).save(path)
    append_tiff_entries(path, [*entries, turned(6)], damage)
    try:
        assert load_rgb(path).size in ((24, 16), (16, 24))
    except ImageError:
        assert damage or entries


def append_tiff_entries(path: Path, entries: list, damage: list) -> None:
    """Give a TIFF's only directory more entries, and damage these."""
    data = path.read_bytes()
    [start] = struct.unpack("<I", data[4:8])
    [count] = struct.unpack("<H", data[start : start + 2])
    old = [data[start + 2 + 12 * i :][:12] for i in range(count)]
    new = bytearray()
    for tag, kind, number, value in entries:
        new += struct.pack("<HHI", tag, kind, number) + value[:4].ljust(4, b"\0")
    for place, value in damage:
        new[place % len(new)] = value
    known = {entry[:2] for entry in old}
    added = [bytes(new[i : i + 12]) for i in range(0, len(new), 12)]
    added = [entry for entry in added if entry[:2] not in known]
    table = sorted([*old, *added], key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(table)) + b"".join(table) + bytes(4)
    path.write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + directory)


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


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_cut_out_given_as_a_mask_is_its_opacity(tmp_path, mode):
    """What background removers write: the subject in its colours, dark ones too."""
    grey = np.asarray(noise(24, 16).convert("L"))
    opacity = np.zeros((16, 24), np.uint8)
    opacity[4:12, 6:20] = 255
    cutout = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opacity)])
    if mode == "P":
        index = np.where(opacity > 0, grey // 2, 255).astype(np.uint8)
        cutout = Image.fromarray(index, "P")
        cutout.putpalette(sorted([*range(256)] * 3))
        cutout.info["transparency"] = 255
    elif mode == "RGBA":
        cutout = Image.merge("RGBA", [*noise(24, 16).split(), Image.fromarray(opacity)])
    cutout.save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(tmp_path / "mask.png"), opacity > 0)
    assert np.array_equal(load_gray(tmp_path / "mask.png"), opacity)


def test_a_masks_full_opacity_says_nothing(tmp_path):
    mask = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("RGBA")
    mask.save(tmp_path / "mask.png")
    assert load_mask(tmp_path / "mask.png").tolist() == [[False, True, False]]


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
    with pytest.raises(ImageError, match=r"^.HEIC needs `pip install pillow-heif`, or save it as"):
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
