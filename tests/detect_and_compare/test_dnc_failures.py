"""The words for what goes wrong, on constructed crops: two subjects whose references are axes."""

import numpy as np
import pytest

from detect_and_compare.failures import bleeds, failures, meant_by_noun, meant_by_place
from detect_and_compare.score import Likeness, likenesses

A, B = np.array([[1.0, 0, 0]] * 2), np.array([[0, 1.0, 0]] * 2)
CLEAR_A, CLEAR_B, BOTH, NEITHER = [1.0, 0.1, 0], [0.1, 1.0, 0], [1.0, 0.9, 0], [0.1, 0, 1.0]


def crops(*vectors):
    return likenesses(np.array(vectors).reshape(-1, 3), [A, B])


def test_whom_a_crop_is_most_like():
    """The references contrast by 1. Of (1, 0.1, 0): (1 - 0.1) / sqrt(1.01)."""
    a, b, both, neither = crops(CLEAR_A, CLEAR_B, BOTH, NEITHER)
    assert (a.subject, b.subject, both.subject, neither.subject) == (0, 1, 0, 0)
    assert a.separation == pytest.approx(0.9 / 1.01**0.5)
    assert [crop.is_clear for crop in (a, b, both, neither)] == [True, True, False, False]
    assert likenesses(np.array([NEITHER]), [A]) == [Likeness(0, None)]
    assert likenesses(np.empty((0, 3)), [A, B]) == []


@pytest.mark.parametrize(("vectors", "meant", "words"), [
    ([CLEAR_A, CLEAR_B], [0, 1], []),
    ([CLEAR_B, CLEAR_A], [0, 1], ["swap"]),
    ([CLEAR_B, CLEAR_A], [None, None], []),  # nobody knows whom they were meant to be
    ([CLEAR_B, CLEAR_B], [0, 1], ["duplicate"]),
    ([CLEAR_B, BOTH], [0, 1], ["merge"]),
    ([NEITHER, CLEAR_B], [0, 1], ["merge"]),
    ([CLEAR_A], [0], ["drop"]),
    ([BOTH], [0], ["merge", "drop"]),
    ([], [], ["drop"]),
    ([CLEAR_A, CLEAR_A, CLEAR_B], [0, None, 1], ["duplicate"]),
    ([CLEAR_B, CLEAR_A, BOTH], [0, 1, None], ["swap", "merge"]),
])  # fmt: skip
def test_failures(vectors, meant, words):
    assert failures(crops(*vectors), 2, meant) == words


def test_three_subjects_two_of_which_are_swapped():
    two, one, three = Likeness(1, 1.0), Likeness(0, 1.0), Likeness(2, 1.0)
    assert failures([two, one, three], 3, [0, 1, 2]) == ["swap"]
    assert failures([two, three, one], 3, [0, 1, 2]) == []  # a ring is no pair


def test_a_picture_of_one_subject_bleeds_if_a_crop_is_nearer_to_another():
    assert not bleeds(crops(CLEAR_A, BOTH), 0)
    assert bleeds(crops(CLEAR_A, CLEAR_B), 0) and bleeds(crops(BOTH), 1)
    assert not bleeds([], 0)


def test_whom_boxes_were_meant_to_be():
    assert meant_by_noun([1, 0, 0], ["cat", "dog"], ["dog", "cat"]) == [1 - 1, 1, 1]
    assert meant_by_noun([0, 0], ["cat"], ["cat", "cat"]) is None
    left, right, corner = (0, 0, 4, 10), (5, 0, 10, 10), (8, 8, 10, 10)
    assert meant_by_place([right, left], [(0, 0, 5, 10), (5, 0, 10, 10)]) == [1, 0]
    assert meant_by_place([corner, right, left], [(0, 0, 5, 10), (5, 0, 10, 10)]) == [None, 1, 0]
    assert meant_by_place([], [left]) == []
