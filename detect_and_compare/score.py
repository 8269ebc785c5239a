"""Detect-and-Compare, the maths: embeddings in, matrices, scores and verdicts out (float64).

The definition is MuDI's (arXiv 2404.04243): with N subjects, `references[i]` (n_i, D) embeds the
photos of subject i and `detections` (n, D) the crops found in a generated picture. Embeddings
arrive as the network made them and are brought to length 1 here.

Every function raises ValueError if there are no subjects, a subject has no references, the widths
D differ, or a vector has no direction (zero or not finite).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Matching = Literal["greedy", "optimal"]
Norm = Literal[2, "fro"]  # spectral, Frobenius

MIN_SEPARATION = 0.5  # half-way from "as near to another subject" (0) to "like a reference" (1)
MIN_CONTRAST = 0.01  # cosine; subjects whose references differ less are all but one


@dataclass(frozen=True)
class Verdict:
    """What became of one subject.

    Attributes:
        status: "present", "missing", or "mixed" with another subject.
        detection: row of the detection that was matched to the subject; None if missing.
        mixed_with: the other subject, if mixed.
        separation: how clearly the detection is this subject and not the nearest other, in units
            of how clearly its references are: 1 as clearly, 0 as near to the other, below 0
            nearer to it. None if missing or if there is one subject.
    """

    status: Literal["present", "missing", "mixed"]
    detection: int | None = None
    mixed_with: int | None = None
    separation: float | None = None


@dataclass(frozen=True)
class Likeness:
    """Whom a detection is most like.

    Attributes:
        subject: the index of the one with the largest mean cosine.
        separation: how clearly it is that one; see `Verdict`. None if there is one subject.
    """

    subject: int
    separation: float | None

    @property
    def is_clear(self) -> bool:
        return self.separation is None or self.separation >= MIN_SEPARATION


def reference_matrix(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Return S_GT (N, N): mean cosine between all references of i and all of j.

    The diagonal counts each photo with itself.
    """
    centres = _centres(embeddings)
    return centres @ centres.T


def detected_matrix(
    detections: np.ndarray, references: Sequence[np.ndarray], matching: Matching = "greedy"
) -> np.ndarray:
    """Return S_DC (N, N): row i is the mean cosine of subject i's crop to each one's references.

    Args:
        matching: "greedy", as published: subject by subject, each takes the unused crop that is
            most like it. "optimal": the assignment with the largest sum.

    Raises:
        ValueError: also if there are not N detections.
    """
    similarity = similarity_matrix(detections, references)
    count, num_subjects = similarity.shape
    if count != num_subjects:
        raise ValueError(f"{count} detections for {num_subjects} subjects: no square matrix")
    matched = _match(similarity, matching)
    return similarity[[matched[i] for i in range(num_subjects)]]


def dnc_score(
    detections: np.ndarray,
    references: Sequence[np.ndarray],
    matching: Matching = "greedy",
    ord: Norm = 2,
) -> float:
    """Return D&C = 1 - ||S_DC - S_GT||, or 0.0 where the number of detections is not N.

    1 is perfect. There is no lower bound at 0: a picture of something else can fall below.
    """
    score = count_aware_score(detections, references, matching, ord)
    return score if len(detections) == len(references) else 0.0


def count_aware_score(
    detections: np.ndarray,
    references: Sequence[np.ndarray],
    matching: Matching = "greedy",
    ord: Norm = 2,
) -> float:
    """Return a D&C that a missing or extra detection lowers in proportion; ours, not published.

    s · min(n, N) / max(n, N), where s = 1 - ||S_DC - S_GT|| over the rows of the subjects that have
    a detection (and all columns). A negative s stays as it is. Equals `dnc_score` for n = N.
    Fewer detections than subjects are matched optimally: in greedy order the last subjects would
    go without, whatever the picture shows.
    """
    if ord not in (2, "fro"):
        raise ValueError(f'norm {ord!r}: 2 (spectral) and "fro" (Frobenius) are known')
    similarity = similarity_matrix(detections, references)
    matched = _match(similarity, matching)
    if not matched:
        return 0.0
    found = sorted(matched)
    difference = similarity[[matched[i] for i in found]] - reference_matrix(references)[found]
    score = 1 - float(np.linalg.norm(difference, ord))
    return min(score, score * len(matched) / max(similarity.shape))


def verdicts(
    detections: np.ndarray,
    references: Sequence[np.ndarray],
    min_separation: float = MIN_SEPARATION,
) -> list[Verdict]:
    """Say of each subject whether it is present, missing or mixed; for any number of detections.

    Detections are matched optimally; with too few the subjects that fit worst are missing, with too
    many the left-over rows are extra. With s_j the crop's mean cosine to subject j, its separation
    from j is (s_i - s_j) / (S_GT'[i, i] - S_GT[i, j]), S_GT' without each photo's pair with itself
    (where subject i has two or more); the smallest over j counts, and below `min_separation` the
    crop is mixed with that j. One subject alone is never mixed.
    """
    similarity = similarity_matrix(detections, references)
    matched = _match(similarity, "optimal")
    expected = _expected(references)
    return [
        _verdict(i, matched.get(i), similarity, expected[i], min_separation)
        for i in range(len(references))
    ]


def likenesses(detections: np.ndarray, references: Sequence[np.ndarray]) -> list[Likeness]:
    """Say of each detection whom it is most like, whatever the others are."""
    similarity, expected = similarity_matrix(detections, references), _expected(references)
    subjects = similarity.argmax(1).tolist() if len(similarity) else []
    return [
        Likeness(i, _separation(i, found, expected[i])[1])
        for i, found in zip(subjects, similarity, strict=True)
    ]


def _expected(references: Sequence[np.ndarray]) -> np.ndarray:
    """Return S_GT' (N, N); see `verdicts`."""
    expected = reference_matrix(references)
    np.fill_diagonal(expected, _without_self_pairs(np.diag(expected), references))
    return expected


def _separation(
    subject: int, found: np.ndarray, expected: np.ndarray
) -> tuple[int | None, float | None]:
    """Return the nearest other subject and the separation from it; None where there is no other.

    Args:
        found: mean cosines (N,) of a detection.
        expected: the subject's row (N,) of S_GT'.
    """
    if len(expected) == 1:
        return None, None
    contrast = np.maximum(expected[subject] - expected, MIN_CONTRAST)
    separation = (found[subject] - found) / contrast
    separation[subject] = np.inf
    nearest = int(separation.argmin())
    return nearest, float(separation[nearest])


def _verdict(
    subject: int,
    detection: int | None,
    similarity: np.ndarray,
    expected: np.ndarray,
    min_separation: float,
) -> Verdict:
    """Judge one subject by its row of S_GT', expected (N,)."""
    if detection is None:
        return Verdict("missing")
    nearest, separation = _separation(subject, similarity[detection], expected)
    if separation is not None and separation < min_separation:
        return Verdict("mixed", detection, nearest, separation)
    return Verdict("present", detection, separation=separation)


def _match(similarity: np.ndarray, matching: Matching) -> dict[int, int]:
    """Return subject -> detection for similarity (n, N); min(n, N) pairs, each row used once."""
    if matching not in ("greedy", "optimal"):
        raise ValueError(f'matching {matching!r}: "greedy" and "optimal" are known')
    count, num_subjects = similarity.shape
    if matching == "optimal" or count < num_subjects:
        from scipy.optimize import linear_sum_assignment  # the rest costs NumPy only

        rows, columns = linear_sum_assignment(similarity, maximize=True)
        return dict(zip(columns.tolist(), rows.tolist(), strict=True))
    unused = similarity.copy()
    matched = {}
    for subject in range(num_subjects):
        matched[subject] = int(unused[:, subject].argmax())
        unused[matched[subject]] = -np.inf
    return matched


def similarity_matrix(detections: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Return (n, N): mean cosine of each detection to each subject's references."""
    centres = _centres(references)
    if len(detections) == 0:
        return np.empty((0, len(centres)))
    return _directions(detections, centres.shape[1], "detections") @ centres.T


def _centres(references: Sequence[np.ndarray]) -> np.ndarray:
    """Return each subject's mean direction (N, D).

    The mean of all cosines between two sets of vectors is the product of their mean directions.
    """
    if len(references) == 0:
        raise ValueError("references: no subjects")
    width = np.shape(references[0])[-1] if np.ndim(references[0]) else 0
    return np.stack(
        [
            _directions(r, width, f"references of subject {i}").mean(0)
            for i, r in enumerate(references)
        ]
    )


def _directions(vectors: np.ndarray, width: int, what: str) -> np.ndarray:
    """Return vectors (n, width) at length 1."""
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        wanted = f"(n, {width}) with n of 1 or more"
        raise ValueError(f"{what}: shape {vectors.shape}, expected {wanted}")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise ValueError(f"{what}: row {bad[0]} has no direction (zero or not finite)")
    return vectors / lengths


def _without_self_pairs(diagonal: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """Return S_GT's diagonal (N,) without the cosine 1 of each photo with itself."""
    counts = np.array([len(photos) for photos in references])
    return (counts * diagonal - 1) / np.maximum(counts - 1, 1) + (counts == 1)
