import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudi.layouts import Layout, LayoutError, UnitBox, random_layout

SCALES = st.floats(0.05, 1.0)
ASPECTS = st.floats(0.25, 4.0)
LEFT, RIGHT = UnitBox(0.1, 0.2, 0.4, 0.9), UnitBox(0.5, 0.4, 0.9, 0.8)


def area(box: UnitBox) -> float:
    return max(0.0, box.right - box.left) * max(0.0, box.bottom - box.top)


def overlap(a: UnitBox, b: UnitBox) -> float:
    """The intersection as a fraction of the smaller box."""
    lows, highs = map(max, a[:2], b[:2]), map(min, a[2:], b[2:])
    return area(UnitBox(*lows, *highs)) / min(area(a), area(b))


@given(st.integers(1, 8), st.integers(0, 2**32), ASPECTS, st.data())
def test_random_boxes_lie_inside_the_canvas_and_share_little(count, seed, aspect, data):
    scales = data.draw(st.none() | st.lists(SCALES, min_size=count, max_size=count))
    layout = random_layout(count, random.Random(seed), scales, aspect)
    assert len(layout.boxes) == count
    assert sorted(layout.front_to_back) == list(range(count))
    assert all(0 <= value <= 1 for box in layout.boxes for value in box)
    assert all(area(box) > 0 for box in layout.boxes)
    assert all(overlap(a, b) <= 0.15 + 1e-9 for a, b in combinations(layout.boxes, 2))


@given(st.integers(1, 8), st.integers(0, 2**32), ASPECTS, st.data())
def test_widths_and_heights_have_the_ratios_of_the_scales(count, seed, aspect, data):
    scales = data.draw(st.lists(SCALES, min_size=count, max_size=count))
    boxes = random_layout(count, random.Random(seed), scales, aspect).boxes
    for side in (lambda box: box.right - box.left, lambda box: box.bottom - box.top):
        units = [side(box) / scale for box, scale in zip(boxes, scales, strict=True)]
        assert units == pytest.approx([units[0]] * count)


def test_two_alike_subjects_stand_side_by_side_and_fill_nine_tenths_of_the_canvas():
    for seed in range(20):
        boxes = random_layout(2, random.Random(seed), [1, 1]).boxes
        assert [box.right - box.left for box in boxes] == pytest.approx([0.45, 0.45])
        assert [box.bottom - box.top for box in boxes] == pytest.approx([0.9, 0.9])


def test_equal_scales_below_one_shrink_all():
    large = random_layout(2, random.Random(0), [1, 1]).boxes[0]
    small = random_layout(2, random.Random(0), [0.5, 0.5]).boxes[0]
    assert small.right - small.left == pytest.approx((large.right - large.left) / 2)
    assert small.bottom - small.top == pytest.approx((large.bottom - large.top) / 2)


@pytest.mark.parametrize(
    ("count", "aspect", "rows"),
    [(1, 1.0, 1), (3, 1.0, 1), (4, 1.0, 2), (8, 1.0, 2), (5, 16 / 9, 1), (3, 9 / 16, 2)],
)
def test_many_subjects_stand_in_several_rows(count, aspect, rows):
    """A column is to be 0.3 times as wide as high: 1/3 for three in a row, 1/4 for four."""
    boxes = random_layout(count, random.Random(1), [1.0] * count, aspect).boxes
    assert {round(0.9 / (box.bottom - box.top)) for box in boxes} == {rows}


def test_a_seed_gives_the_same_layout_and_another_seed_another():
    first, again, other = (random_layout(3, random.Random(seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_every_subject_comes_to_stand_left_and_in_front():
    layouts = [random_layout(2, random.Random(seed)) for seed in range(40)]
    assert {layout.boxes[0].left < layout.boxes[1].left for layout in layouts} == {True, False}
    assert {layout.front_to_back for layout in layouts} == {(0, 1), (1, 0)}


def test_who_stands_lower_is_in_front():
    for seed in range(20):
        layout = random_layout(5, random.Random(seed))
        bottoms = [layout.boxes[i].bottom for i in layout.front_to_back]
        assert bottoms == sorted(bottoms, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_subjects": 0}, "no layout for 0 subjects"),
        ({"num_subjects": 2, "aspect": 0.0}, "canvas of aspect 0.0"),
        (
            {"num_subjects": 2, "scales": [1.0]},
            r"scales must be 2 numbers in \(0, 1\], got \[1.0\]",
        ),
        ({"num_subjects": 2, "scales": [1, 1.5]}, r"got \[1, 1.5\]"),
        ({"num_subjects": 2, "scales": [1, float("nan")]}, "nan"),
    ],
)
def test_impossible_wishes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_layout(rng=random.Random(0), **arguments)


@pytest.mark.parametrize(
    ("boxes", "front_to_back", "photos", "message"),
    [
        ((UnitBox(-0.1, 0, 1, 1),), (0,), (), "box 1 .* reaches outside the canvas"),
        ((LEFT, UnitBox(0.5, 0.5, 0.5, 1)), (0, 1), (), "box 2 .* is empty"),
        ((UnitBox(0.5, 0.5, float("nan"), 1),), (0,), (), "outside"),
        ((LEFT, RIGHT), (0, 0), (), r"not every box once: \[0, 0\]"),
        ((LEFT, RIGHT), (0,), (), r"not every box once: \[0\]"),
        ((LEFT, RIGHT), (0, 1), ("a.jpg",), "1 photos for 2 boxes"),
    ],
)
def test_a_layout_that_contradicts_itself_can_not_be_made(boxes, front_to_back, photos, message):
    with pytest.raises(LayoutError, match=message):
        Layout(boxes, front_to_back, photos)
