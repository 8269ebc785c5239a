"""What is told about masks before a training: islands, thin subjects, masks that are none."""

import threading
import time

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, DataFolder, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_fill_holes, label
from test_resizing import wires

from mudi.images import decoding_bytes, load_rgb, tight_box
from mudi.islands import ISLAND_SHARE, drop_islands, fill_holes, islands_of
from mudi.metadata import load_subjects
from mudi.photo_checks import Budget, mask_warnings


def disc(width: int, height: int, centre: tuple[int, int], radius: float) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def levels(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) * 255


def specked(width: int = 4000, height: int = 3000) -> np.ndarray:
    """A subject of 700 pixels in 12 megapixels, with a 3 x 3 speck in two corners."""
    mask = disc(width, height, (width // 2, height // 2), 350)
    mask[:3, :3] = mask[-3:, -3:] = True
    return mask


def test_two_specks_in_12_megapixels_are_told_with_their_share_and_dropped():
    mask = specked()
    [told] = mask_warnings(levels(mask), 1024)
    # 18 of some 384,863 pixels; the box is 12 M instead of 701^2, 24.4 times
    assert "islands of 0.00% of its area (each below 1%)" in told
    assert "box about 24 times as large" in told
    clean = drop_islands(mask)
    assert tight_box(clean) == (1650, 1150, 2351, 1851)
    assert clean.sum() == mask.sum() - 18
    assert list(mask_warnings(levels(clean), 1024)) == []


def test_islands_by_hand():
    """Of 300 pixels, a piece of 2 is below a hundredth, a piece of 4 is not."""
    mask = np.zeros((40, 60), bool)
    mask[:5, :59] = True
    mask[0, 58] = False
    mask[10, :2] = mask[20, :4] = True  # 294 + 2 + 4
    expected = mask.copy()
    expected[10] = False
    np.testing.assert_array_equal(drop_islands(mask), expected)
    islands = islands_of(mask)
    assert islands.area == pytest.approx(2 / 300)
    assert islands.box_growth == 1  # the box reaches to row 20 either way
    mask[39, 30] = True
    assert islands_of(mask).box_growth == 40 / 21


def test_a_piece_that_a_point_lies_on_stays_however_small():
    mask = disc(60, 40, (20, 20), 15)
    mask[2, 50] = mask[2, 55] = True
    kept = drop_islands(mask, points=[(50, 2), (20, 20)])
    assert kept[2, 50] and not kept[2, 55]
    assert kept.sum() == mask.sum() - 1


@given(seed=st.integers(0, 2**32 - 1), specks=st.integers(0, 60))
def test_only_islands_are_dropped_and_none_is_left(seed, specks):
    rng = np.random.default_rng(seed)
    mask = disc(120, 90, rng.integers(30, 60, 2).tolist(), rng.uniform(10, 30))
    mask[tuple(rng.integers(0, (90, 120), (specks, 2)).T)] = True
    kept = drop_islands(mask)
    assert not (kept & ~mask).any()
    pieces, _ = label(kept, np.ones((3, 3)))
    areas = np.bincount(pieces.ravel())[1:]
    assert (areas >= ISLAND_SHARE * kept.sum()).all()
    pieces, _ = label(mask & ~kept, np.ones((3, 3)))
    assert (np.bincount(pieces.ravel())[1:] < ISLAND_SHARE * mask.sum()).all()
    np.testing.assert_array_equal(drop_islands(kept), kept)
    assert islands_of(kept).box_growth == 1


def test_holes_are_filled_all_or_the_small_ones_and_bays_stay():
    mask = np.zeros((20, 30), bool)
    mask[2:18, 2:28] = True
    whole = mask.copy()
    mask[4, 4] = mask[6:12, 6:12] = False  # holes of 1 and of 36 pixels
    mask[15:, 10:12] = whole[15:, 10:12] = False  # a bay, open to the edge
    np.testing.assert_array_equal(fill_holes(mask), whole)
    small = whole.copy()
    small[6:12, 6:12] = False
    np.testing.assert_array_equal(fill_holes(mask, share=36 / mask.sum()), small)
    np.testing.assert_array_equal(fill_holes(mask, share=37 / mask.sum()), whole)
    mask[4:6, 4:7] = False  # they meet
    np.testing.assert_array_equal(fill_holes(mask, share=37 / mask.sum()), mask)
    for empty in (np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        np.testing.assert_array_equal(fill_holes(empty), empty)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.2, 0.9))
def test_holes_are_those_that_scipy_fills(seed, share):
    mask = np.random.default_rng(seed).random((20, 30)) < share
    np.testing.assert_array_equal(fill_holes(mask), binary_fill_holes(mask))


def test_pieces_that_touch_at_a_corner_are_one():
    mask = np.zeros((30, 30), bool)
    mask[:20, :20] = True
    mask[20, 20] = mask[21, 21] = True
    np.testing.assert_array_equal(drop_islands(mask), mask)


def test_the_largest_piece_stays_however_small():
    mask = np.zeros((100, 400), bool)
    mask[::4, ::4] = True  # 2500 pieces of a pixel
    np.testing.assert_array_equal(drop_islands(mask), mask)
    assert islands_of(mask) == (0.0, 1.0)
    assert not drop_islands(np.zeros((3, 3), bool)).any()


@settings(max_examples=40)
@given(
    st.integers(60, 3000),
    st.integers(60, 3000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5),
)
def test_specks_anywhere_never_enlarge_what_is_left(width, height, places):
    """A subject of 40 % of the shorter side, specks of a pixel: its own box comes back."""
    radius = max(12, min(width, height) // 5)
    subject = disc(width, height, (width // 2, height // 2), radius)
    mask = subject.copy()
    for x, y in places:
        mask[int(y * (height - 1)), int(x * (width - 1))] = True
    apart = drop_islands(mask)
    near = disc(width, height, (width // 2, height // 2), radius + 2)
    assert not (apart & ~near).any() and (apart & subject).sum() == subject.sum()
    true_growth = np.prod(np.ptp(np.argwhere(mask), axis=0) + 1) / np.prod(
        np.ptp(np.argwhere(apart), axis=0) + 1
    )
    assert islands_of(mask).box_growth == pytest.approx(true_growth, rel=0.2)
    assert islands_of(mask).area < ISLAND_SHARE * max(1, len(places))


def test_thin_subjects_are_told_at_the_training_s_resolution():
    assert list(mask_warnings(levels(wires(thickness=40)), 512)) == []
    [told] = mask_warnings(levels(wires()), 512)
    assert "thinner than a pixel in" in told and "512-pixel collage" in told
    assert list(mask_warnings(levels(wires()))) == []  # no training, no resolution
    assert list(mask_warnings(levels(wires(1000, 800)), 2048)) == []


@pytest.fixture
def photo_as_mask(folder: DataFolder) -> DataFolder:
    """Its first mask is a grey photo, its second the photo's own file, its third a soft mask."""
    values = np.clip(np.asarray(noise(seed=7).convert("L")).astype(int) * 2 - 128, 0, 255)
    Image.fromarray(values.astype(np.uint8)).save(folder.path / "mask_a0.png")
    folder.lines[2]["mask_path"] = "a1.jpg"
    soft = Image.new("L", (WIDTH, HEIGHT))
    soft.paste(255, (16, 12, 48, 36))
    soft.paste(128, (15, 12, 16, 36))  # an edge of 24 pixels of 3072
    soft.save(folder.path / "mask_a2.png")
    folder.save()
    return folder


def test_what_is_no_mask_is_told(photo_as_mask):
    """A cut-out's grey levels agree with the truth by accident: IoU 0.44 was seen."""
    warnings = load_subjects(photo_as_mask.path).warnings
    told = [text.removeprefix(f"{photo_as_mask.metadata}:") for text in warnings]
    assert len(told) == 3
    assert told[0].startswith('2: mask "mask_a0.png" is neither black nor white in ')
    assert told[1].startswith('3: mask "a1.jpg" is neither black nor white in ')
    assert told[2].startswith('3: mask "a1.jpg" is the photo itself')


def test_a_folder_s_islands_and_wires_are_told_with_file_and_line(folder):
    for seed, line in enumerate(folder.lines[1:3]):
        noise(400, 300, seed).save(folder.path / line["file_name"])
    mask = disc(400, 300, (200, 150), 50)
    mask[0, 0] = mask[-1, -1] = True
    Image.fromarray(mask).save(folder.path / "mask_a0.png")
    comb = np.zeros((300, 400), bool)
    comb[:, ::9] = True
    Image.fromarray(comb).save(folder.path / "mask_a1.png")
    warnings = load_subjects(folder.path, resolution=128).warnings
    told = [text.removeprefix(f"{folder.metadata}:") for text in warnings]
    assert len(told) == 2
    assert told[0].startswith('2: mask "mask_a0.png" has islands of 0.03% of its area')
    assert told[1].startswith('3: mask "mask_a1.png" is thinner than a pixel in 100% of its area')
    assert len(load_subjects(folder.path).warnings) == 1  # no resolution, no thinness


def test_what_is_decoded_at_once_is_bounded_by_its_sum():
    """Small ones go together, one larger than all goes alone, and everything is done."""
    budget, held, lock = Budget(100), {"now": 0, "most": 0, "together": 0}, threading.Lock()
    running: set[int] = set()

    def work(number: int, amount: int) -> None:
        with budget.part(amount):
            with lock:
                running.add(number)
                held["now"] += min(amount, 100)
                held["most"] = max(held["most"], held["now"])
                held["together"] = max(held["together"], len(running))
            time.sleep(0.002)
            with lock:
                running.remove(number)
                held["now"] -= min(amount, 100)

    amounts = [20, 30, 500, 10, 60, 0, 45, 20, 100, 5] * 4
    threads = [threading.Thread(target=work, args=item) for item in enumerate(amounts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert held["most"] <= 100 and held["together"] >= 2 and held["now"] == 0


def test_decoding_is_estimated_from_the_header_alone(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (3000, 2000)).save(path)
    estimate = decoding_bytes(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])  # the header is whole
    assert decoding_bytes(path) == estimate >= 3000 * 2000 * len("RGBA") * 2
    path.write_bytes(b"nothing")
    assert decoding_bytes(path) == 0
    path.write_bytes(whole)
    assert load_rgb(path).size == (3000, 2000)
