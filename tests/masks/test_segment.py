"""Clicks: what SAM and the weight-free segmenter make of points, and how often SAM looks."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mini.tiny import save_sam_that_sees_brightness, save_tiny_sam
from mudi.images import Box, tight_box
from mudi.masks import segment
from mudi.masks.making import UnresolvedError, box_by_hand

torch.set_num_threads(1)
SUBJECT, OTHER = Box(64, 32, 224, 160), Box(320, 192, 480, 320)  # on SAM's patches of 32 px


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    return segment.SamSegmenter(path, save_sam_that_sees_brightness(path))


@pytest.fixture
def encoded(sam):
    """The pictures that SAM's image encoder saw since."""
    sam._encoded.clear()
    seen = []
    hook = sam.model.image_encoder.register_forward_hook(lambda *call: seen.append(call[1]))
    yield seen
    hook.remove()


def photo(*boxes, size=(512, 352)):
    image = Image.new("RGB", size, "black")
    for box in boxes:
        image.paste("white", box)
    return image


def boxed(box, size=(512, 352)):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[box.top : box.bottom, box.left : box.right] = True
    return mask


def agree(mask, box):
    """Interpolation rounds a corner."""
    return tight_box(mask) == box and mask.sum() > 0.998 * box.width * box.height


def test_sams_negative_points_carve_out_what_positive_ones_chose(sam):
    both = photo(SUBJECT, OTHER)
    assert tight_box(sam(both, None, [(100, 100)])) == Box(64, 32, 480, 320)
    assert agree(sam(both, None, [(100, 100)], [(400, 250)]), SUBJECT)
    assert agree(sam(both, None, [(400, 250)], [(100, 100)]), OTHER)
    assert agree(sam(both, Box(0, 0, 512, 352), (), [(100, 100)]), OTHER)
    assert not sam(both, None, (), [(100, 100)]).any()
    assert sam(both, None, [(100, 100), (400, 250)], [(300, 20)])[250, 400]


def test_a_lone_point_gets_the_best_rated_of_sams_three_masks(tmp_path):
    """Masks 1 and 2 are what is dark, 0 and 3 what is bright; 0 is for several prompts."""
    path = tmp_path / "sam.pth"
    kind = save_sam_that_sees_brightness(path)
    weights = torch.load(path)
    for i in (1, 2):
        weights[f"mask_decoder.output_hypernetworks_mlps.{i}.layers.2.bias"] *= -1
    weights["mask_decoder.iou_prediction_head.layers.2.bias"] += torch.tensor([9.0, 1, 2, 3])
    torch.save(weights, path)
    sam = segment.SamSegmenter(path, kind)
    assert agree(sam(photo(SUBJECT), None, [(100, 100)]), SUBJECT)
    weights["mask_decoder.iou_prediction_head.layers.2.bias"][1] = 4.0
    torch.save(weights, path)
    sam = segment.SamSegmenter(path, kind)
    assert not sam(photo(SUBJECT), None, [(100, 100)])[100, 100]
    assert agree(sam(photo(SUBJECT), None, [(100, 100), (70, 40)]), SUBJECT)
    assert agree(sam(photo(SUBJECT), SUBJECT, [(100, 100)]), SUBJECT)


def test_sams_encoder_runs_once_a_photo_and_keeps_the_last_few(sam, encoded):
    photos = [photo(SUBJECT, Box(0, 0, 32, 32 * i)) for i in range(1, segment.ENCODED_PHOTOS + 2)]
    for image in photos[:2]:
        for negatives in ((), [(10, 10)], [(10, 10), (300, 300)]):
            sam(image.copy(), None, [(100, 100)], negatives)  # each time a picture read anew
    assert len(encoded) == 2
    for image in photos:
        sam.encode(image)
    assert len(encoded) == len(photos)  # the first two were known
    sam(photos[-1], SUBJECT)
    assert len(encoded) == len(photos)
    sam(photos[0], SUBJECT)  # fell out when the ninth came
    assert len(encoded) == len(photos) + 1


def test_a_picture_that_was_painted_on_is_seen_anew(sam, encoded):
    image = photo(SUBJECT, size=(2048, 1408))
    sam(image, None, [(100, 100)])
    image.paste("white", (1600, 1000, 1604, 1004))  # 16 of 2.9 million pixels
    sam(image, None, [(100, 100)])
    sam(image.transpose(Image.Transpose.ROTATE_90), None, [(100, 100)])
    assert len(encoded) == 3


def test_threads_share_a_segmenter(sam, encoded):
    photos = [photo(SUBJECT), photo(OTHER)] * 8
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda image: sam(image, None, [(5, 5)]), photos))
    assert [tight_box(mask) for mask in masks] == [SUBJECT, OTHER] * 8
    assert len(encoded) == 2


def test_points_and_boxes_reach_sam_in_its_own_pixels(tmp_path):
    """A photo of 512 px is seen at 256; pixel 100 is centred on 100.5, SAM's on 50.5."""
    path = tmp_path / "sam.pth"
    sam = segment.SamSegmenter(path, save_tiny_sam(path))
    asked = []
    hook = sam.model.prompt_encoder.register_forward_hook(
        lambda *call: asked.append(call[2]), with_kwargs=True
    )
    sam(photo(SUBJECT), SUBJECT, [(100, 60)], [(400, 250), (2, 4)])
    hook.remove()
    coordinates, labels = asked[0]["points"]
    assert coordinates.tolist() == [[[50, 30], [200, 125], [1, 2]]]
    assert labels.tolist() == [[1, 0, 0]]
    assert asked[0]["boxes"].flatten().tolist() == [32, 16, 112, 80]


def scene():
    """A red subject with a blue hat on a brown table, all on grey; a green ball beside them."""
    image = Image.new("RGB", (120, 90), (128, 128, 128))
    for colour, box in (
        ((200, 30, 30), (30, 20, 60, 60)),  # subject
        ((30, 30, 200), (30, 10, 60, 20)),  # hat
        ((120, 80, 40), (10, 60, 100, 80)),  # table
        ((30, 180, 30), (80, 20, 95, 35)),  # ball
    ):
        image.paste(colour, box)
    return image


def cut(points=(), negatives=(), box=None, image=None):
    return segment.foreground_segmenter(image or scene(), box, points, negatives)


def union(*boxes):
    return np.logical_or.reduce([boxed(Box(*box), (120, 90)) for box in boxes])


BODY, HAT, TABLE, BALL = (30, 20, 60, 60), (30, 10, 60, 20), (10, 60, 100, 80), (80, 20, 95, 35)


@pytest.mark.parametrize(
    ("points", "negatives", "expected"),
    [
        ((), (), union(BODY, HAT, TABLE)),
        ([(40, 30)], (), union(BODY, HAT, TABLE)),  # one piece
        ([(40, 30)], [(50, 70)], union(BODY, HAT)),
        ([(40, 30)], [(50, 70), (40, 15)], union(BODY)),
        ([(85, 25)], (), union(BALL)),
        ([(40, 30), (85, 25)], [(50, 70)], union(BODY, HAT, BALL)),
        ([(40, 30)], [(85, 25)], union(BODY, HAT, TABLE)),  # was none of it anyway
        ((), [(50, 70)], union(BODY, HAT)),
        ([(5, 5)], (), ~union(BODY, HAT, TABLE, BALL)),  # on no piece: what has its colour
    ],
)
def test_without_weights_points_choose_pieces_and_negative_ones_carve(points, negatives, expected):
    np.testing.assert_array_equal(cut(points, negatives), expected)


def test_a_negative_point_opens_a_hole_that_was_filled():
    """The gap between an arm and a body shows the background."""
    image = scene()
    image.paste((128, 128, 128), (40, 30, 50, 50))
    assert cut([(35, 25)], image=image)[40, 45]
    mask = cut([(35, 25)], [(45, 40)], image=image)
    assert mask.sum() == union(BODY, HAT, TABLE).sum() - 10 * 20 and not mask[40, 45]


def test_what_has_one_colour_is_halved_between_a_point_and_a_negative_one():
    mask = cut([(20, 70)], [(90, 70)])
    assert mask[62:78, 10:54].all() and not mask[62:78, 58:].any()


def test_nothing_outside_the_box_and_points_beyond_it_say_nothing():
    box = Box(20, 15, 70, 70)
    expected = union((30, 15, 60, 60))
    mask = cut([(40, 30)], [(50, 65), (110, 85), (2, 2)], box)
    np.testing.assert_array_equal(mask, expected)
    assert not cut(negatives=[(50, 65)], box=Box(0, 0, 5, 5)).any()


points = st.lists(st.tuples(st.integers(0, 39), st.integers(0, 29)), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), points, points)
def test_points_are_in_and_negative_ones_are_out(seed, on_it, off_it):
    """Of any picture, also where holes and specks are about; a point has the last word."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 3), dtype=np.uint8)
    image = Image.fromarray(colours[np.random.default_rng(seed + 1).integers(0, 4, (30, 40))])
    mask = segment.foreground_segmenter(image, None, on_it, off_it)
    assert all(mask[y, x] for x, y in on_it)
    assert not any(mask[y, x] for x, y in off_it if (x, y) not in on_it)


def test_by_hand_a_point_lies_in_the_box_and_a_negative_one_in_the_photo():
    size = (100, 80)
    assert box_by_hand((-5, 3, 50, 200), [(4, 4)], [(99, 79)], size) == Box(0, 3, 50, 80)
    assert box_by_hand(None, (), [(0, 0)], size) is None
    with pytest.raises(UnresolvedError, match="the point 60,4 lies outside the box 0,3,50,80"):
        box_by_hand((0, 3, 50, 80), [(60, 4)], (), size)
    with pytest.raises(UnresolvedError, match="the point 100,4 lies outside the photo 0,0,100,80"):
        box_by_hand((0, 3, 50, 80), (), [(100, 4)], size)
