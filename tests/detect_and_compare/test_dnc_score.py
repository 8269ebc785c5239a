import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_and_compare.score import (
    Verdict,
    count_aware_score,
    detected_matrix,
    dnc_score,
    reference_matrix,
    verdicts,
)

E1, E2, E3 = np.eye(3)
AXES = [E1[None], E2[None], E3[None]]  # three subjects with one reference each: S_GT is 1
# Subject a has two references at a cosine of 0.6, b has one
SPREAD = [np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.0, 1.0]])]


def close(values: object) -> object:
    return pytest.approx(np.array(values), abs=1e-12)


def random_case(seed: int, num_subjects: int, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Detections (count, 8) and one to four references a subject."""
    rng = np.random.default_rng(seed)
    references = [rng.normal(size=(rng.integers(1, 5), 8)) for _ in range(num_subjects)]
    return rng.normal(size=(count, 8)), references


# Matrices and scores


def test_one_subject_by_hand():
    """S_GT = (1 + 0.6 + 0.6 + 1) / 4 = 0.8; the crop (0, 1) has (0 + 0.8) / 2 = 0.4."""
    references = SPREAD[:1]
    assert reference_matrix(references) == close([[0.8]])
    assert detected_matrix([[0, 1]], references) == close([[0.4]])
    assert dnc_score(np.array([[0, 1]]), references) == pytest.approx(0.6)
    assert dnc_score(np.array([[1, 0]]), references) == pytest.approx(1)


def test_two_subjects_by_hand():
    """Against (1, 0) a has (1 + 0.6) / 2 and b 0; one entry is 0.4 off."""
    detections = np.array([[0, 1], [1, 0]])
    assert reference_matrix(SPREAD) == close([[0.8, 0.4], [0.4, 1]])
    assert detected_matrix(detections, SPREAD) == close([[0.8, 0], [0.4, 1]])
    assert dnc_score(detections, SPREAD) == pytest.approx(0.6)


def test_spectral_and_frobenius_norm_by_hand():
    """a twice: the difference is [[0, -0.4], [0.4, -1]].

    Its singular values have sum √(1.32 + 2·0.16) and difference √(1.32 - 2·0.16) = 1.
    """
    detections = np.array([[1, 0], [1, 0]])
    assert dnc_score(detections, SPREAD) == pytest.approx(1 - (1 + math.sqrt(1.64)) / 2)
    assert dnc_score(detections, SPREAD, ord="fro") == pytest.approx(1 - math.sqrt(1.32))


def test_three_subjects_by_hand():
    """The third crop is 0.6 of b and 0.8 of c: a row (0, 0.6, -0.2) off."""
    detections = np.array([[0, 0.6, 0.8], E2, E1])
    assert reference_matrix(AXES) == close(np.eye(3))
    assert detected_matrix(detections, AXES) == close([E1, E2, [0, 0.6, 0.8]])
    assert dnc_score(detections, AXES) == pytest.approx(1 - math.sqrt(0.4))


def test_lengths_do_not_count():
    references = [10 * SPREAD[0], 0.1 * SPREAD[1].astype(np.float32)]
    assert reference_matrix(references) == pytest.approx(reference_matrix(SPREAD), abs=1e-7)
    assert dnc_score(np.array([[0, 7], [0.01, 0]]), references) == pytest.approx(0.6)


def test_identical_pictures_score_one_up_to_the_references_spread():
    assert dnc_score(np.stack([E3, E1, E2]), AXES) == 1
    _, references = random_case(seed=0, num_subjects=1, count=0)
    each = [detected_matrix(photo[None], references) for photo in references[0]]
    assert np.mean(each, axis=0) == close(reference_matrix(references))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_detections_scores_zero(count):
    detections = np.ones((count, 2))
    assert dnc_score(detections, SPREAD) == 0.0
    with pytest.raises(ValueError, match=f"{count} detections for 2 subjects"):
        detected_matrix(detections, SPREAD)


def test_greedy_differs_from_optimal():
    """Crop 0 is (0.8, 0.6) and crop 1 (0.7, 0) to a and b: a takes crop 0, and b is left with 0."""
    detections = np.array([[0.8, 0.6, 0], [0.7, 0, math.sqrt(0.51)]])
    references = AXES[:2]
    assert detected_matrix(detections, references) == close([[0.8, 0.6], [0.7, 0]])
    optimal = detected_matrix(detections, references, matching="optimal")
    assert optimal == close([[0.7, 0], [0.8, 0.6]])
    scores = [dnc_score(detections, references, matching) for matching in ("greedy", "optimal")]
    assert scores[0] < scores[1]


@given(seed=st.integers(0, 10**6), num_subjects=st.integers(1, 5), count=st.integers(0, 7))
def test_the_order_of_detections_does_not_count(seed, num_subjects, count):
    detections, references = random_case(seed, num_subjects, count)
    order = np.random.default_rng(seed).permutation(count)
    for score in (dnc_score, count_aware_score):
        for matching in ("greedy", "optimal"):
            expected = score(detections, references, matching)
            assert score(detections[order], references, matching) == pytest.approx(expected)
    for one, other in zip(
        verdicts(detections, references), verdicts(detections[order], references), strict=True
    ):
        assert (one.status, one.mixed_with) == (other.status, other.mixed_with)
        assert one.detection == (None if other.detection is None else order[other.detection])


@given(seed=st.integers(0, 10**6), num_subjects=st.integers(1, 5))
def test_the_matrix_of_references_is_the_mean_over_all_pairs(seed, num_subjects):
    _, references = random_case(seed, num_subjects, 0)
    matrix = reference_matrix(references)
    for i, left in enumerate(references):
        for j, right in enumerate(references):
            pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in left for b in right]
            assert matrix[i, j] == pytest.approx(np.mean(pairs))


# Count-aware


@given(seed=st.integers(0, 10**6), num_subjects=st.integers(1, 5))
def test_the_count_aware_score_is_the_published_one_for_the_right_number(seed, num_subjects):
    detections, references = random_case(seed, num_subjects, num_subjects)
    for matching in ("greedy", "optimal"):
        for ord in (2, "fro"):
            one = dnc_score(detections, references, matching, ord)
            assert count_aware_score(detections, references, matching, ord) == one


@pytest.mark.parametrize("matching", ["greedy", "optimal"])
def test_missing_and_extra_detections_lower_the_count_aware_score_in_proportion(matching):
    cases = {(): 0, (2,): 1 / 3, (2, 0): 2 / 3, (0, 1, 2, 1): 3 / 4, (0, 1, 2, 0, 0): 3 / 5}
    for found, expected in cases.items():
        score = count_aware_score(np.eye(3)[list(found)], AXES, matching)
        assert score == pytest.approx(expected)


def test_the_one_that_was_found_may_be_mixed():
    """The crop is 0.6 of b and 0.8 of c, so c's: a row (0, 0.6, -0.2) off, a third as many."""
    score = count_aware_score(np.array([[0, 0.6, 0.8]]), AXES)
    assert score == pytest.approx((1 - math.sqrt(0.4)) / 3)


def test_an_extra_detection_does_not_raise_a_negative_score():
    """S_DC is -1 where S_GT is 1: 1 - 2."""
    assert count_aware_score(np.stack([-E1, -E2, -E2]), AXES[:2]) == pytest.approx(-1)


# Verdicts


def test_three_present():
    found = verdicts(np.stack([E2, E3, E1]), AXES)
    assert found == [Verdict("present", row, separation=1) for row in (2, 0, 1)]


def test_separation_is_measured_by_the_references_without_self_pairs():
    """a to itself is 0.6, to b 0.4: (0.8 - 0) / 0.2 = 4; b: (1 - 0.4) / (1 - 0.4) = 1."""
    found = verdicts(np.array([[1, 0], [0, 1]]), SPREAD)
    assert [verdict.separation for verdict in found] == pytest.approx([4, 1])


def test_mixed_with_the_nearest_other_subject():
    """To (0, 0.6, 0.8): b is 0.6 and c 0.8, so c leads by 0.2 only."""
    detections = np.array([E1, E2, [0, 0.6, 0.8]])
    found = verdicts(detections, AXES)
    assert [verdict.status for verdict in found] == ["present", "present", "mixed"]
    assert found[2].mixed_with == 1 and found[2].separation == pytest.approx(0.2)
    lenient = verdicts(detections, AXES, min_separation=0.1)
    assert [verdict.status for verdict in lenient] == ["present"] * 3


def test_the_same_subject_twice_is_a_mixed_other_one():
    found = verdicts(np.stack([E1, E1]), AXES[:2])
    assert found[0].status == "present"
    assert (found[1].status, found[1].mixed_with, found[1].separation) == ("mixed", 0, -1)


def test_who_is_missing():
    found = verdicts(np.stack([E3, E1]), AXES)
    assert [verdict.status for verdict in found] == ["present", "missing", "present"]
    assert found[1] == Verdict("missing")
    assert verdicts(np.empty((0, 0)), AXES) == [Verdict("missing")] * 3


def test_an_extra_detection_is_the_one_that_no_subject_has():
    found = verdicts(np.stack([E1, E1 + E2 + E3, E3, E2]), AXES)
    assert [verdict.detection for verdict in found] == [0, 3, 2]
    assert all(verdict.status == "present" for verdict in found)


def test_one_subject_alone_is_never_mixed():
    assert verdicts(np.array([[0, 1]]), SPREAD[:1]) == [Verdict("present", 0)]
    assert verdicts(np.empty((0, 2)), SPREAD[:1]) == [Verdict("missing")]


def test_subjects_that_cannot_be_told_apart_are_mixed():
    found = verdicts(np.stack([E1, E1]), [E1[None], E1[None]])
    assert [(v.status, v.mixed_with, v.separation) for v in found] == [
        ("mixed", 1, 0),
        ("mixed", 0, 0),
    ]


# What is refused


@pytest.mark.parametrize(
    "detections, references, message",
    [
        (np.ones((1, 2)), [], "no subjects"),
        (np.ones((1, 2)), [np.ones((1, 2)), np.ones((0, 2))], "of subject 1: shape"),
        (np.ones((1, 2)), [np.ones((1, 2)), np.ones((1, 3))], "of subject 1: shape"),
        (np.ones((1, 2)), [np.ones(2)], "of subject 0: shape"),
        (np.ones((1, 3)), [np.ones((1, 2))], r"detections: shape \(1, 3\), expected \(n, 2\)"),
        (np.ones(2), [np.ones((1, 2))], "detections: shape"),
        (np.array([[1, np.nan]]), [np.ones((1, 2))], "detections: row 0 has no direction"),
        (np.array([[1, np.inf]]), [np.ones((1, 2))], "detections: row 0 has no direction"),
        (np.zeros((1, 2)), [np.ones((1, 2))], "detections: row 0 has no direction"),
        (np.ones((1, 2)), [np.array([[1, 0], [0, 0]])], "subject 0: row 1 has no direction"),
    ],
)
def test_bad_shapes_and_numbers_are_refused(detections, references, message):
    for function in (dnc_score, count_aware_score, verdicts, detected_matrix):
        with pytest.raises(ValueError, match=message):
            function(detections, references)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="matching 'best'"):
        dnc_score(np.eye(3), AXES, matching="best")
    with pytest.raises(ValueError, match="norm 1"):
        dnc_score(np.eye(3), AXES, ord=1)
