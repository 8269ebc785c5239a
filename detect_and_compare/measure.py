"""Detect-and-Compare of whole pictures: find the subjects, crop, embed, compare.

detector = load_detector("owlv2", queries=["robot", "teddy bear"])
records = score_images(paths, references.images, detector, load_embedder("dreamsim"))
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from detect_and_compare.args import BATCH_SIZE
from detect_and_compare.detect import ImageDetector, square_crop
from detect_and_compare.embed import Embedder, cached_embeddings
from detect_and_compare.score import (
    Likeness,
    Matching,
    Norm,
    Verdict,
    count_aware_score,
    detected_matrix,
    dnc_score,
    likenesses,
    reference_matrix,
    similarity_matrix,
    verdicts,
)
from mudi.images import Box, ImageError, load_rgb
from mudi.masks.segment import Detection

READERS = 4  # threads; Pillow's decoders run side by side


@dataclass(frozen=True)
class Variant:
    """Which variant of the metric; the defaults are the published one."""

    matching: Matching = "greedy"
    norm: Norm = 2
    count_aware: bool = False


@dataclass(frozen=True)
class Record:
    """What one picture shows, by one embedder.

    Attributes:
        score: D&C, 1 is perfect; None if the picture can't be read.
        detections: n boxes in pixels of the upright picture, with the detector's confidences.
        similarity: (n, N) mean cosine of each crop to each subject's references.
        matrix: S_DC (N, N), row i is the crop matched to subject i; None where n differs from N.
        verdicts: what became of each subject, by id.
        likenesses: whom each crop is most like, as an index into the subjects.
        size: (W, H) of the upright picture.
        problem: why the picture can't be read.
    """

    score: float | None = None
    detections: list[Detection] = field(default_factory=list)
    similarity: np.ndarray | None = None
    matrix: np.ndarray | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    likenesses: list[Likeness] = field(default_factory=list)
    size: tuple[int, int] | None = None
    problem: str | None = None

    @property
    def boxes(self) -> list[Box]:
        return [detection.box for detection in self.detections]

    @property
    def verdict(self) -> str:
        """Everything that is wrong, joined by " + ", or "good".

        "missing": a subject has no crop; "extra": there are more crops than subjects; "mixed": a
        subject's crop is not clearly it; or "unreadable".
        """
        if self.problem is not None:
            return "unreadable"
        statuses = {verdict.status for verdict in self.verdicts.values()}
        found = ["missing"] * ("missing" in statuses)
        found += ["extra"] * (len(self.detections) > len(self.verdicts))
        found += ["mixed"] * ("mixed" in statuses)
        return " + ".join(found) or "good"


class Metric:
    """D&C by one embedder against fixed references.

    Args:
        references: pictures by the subject's id.
        cache_dir: where the references' embeddings are kept; None: nowhere.

    Attributes:
        name: the embedder's.
        expected: S_GT (N, N).
    """

    def __init__(
        self,
        embedder: Embedder,
        references: Mapping[str, Sequence[Image.Image]],
        variant: Variant = Variant(),
        cache_dir: Path | None = None,
    ):
        self.name = embedder.name
        self._embed, self._variant, self._subjects = embedder, variant, list(references)
        self._references = [
            cached_embeddings(embedder, images, cache_dir) for images in references.values()
        ]
        self.expected = reference_matrix(self._references)

    def about(self, subjects: Sequence[str]) -> "Metric":
        """Return the metric of pictures that are to show just these of the subjects."""
        part = copy(self)
        part._subjects = list(subjects)
        part._references = [self._references[self._subjects.index(s)] for s in subjects]
        part.expected = reference_matrix(part._references)
        return part

    def __call__(
        self, images: Sequence[Image.Image], found: Sequence[Sequence[Detection]]
    ) -> list[Record]:
        """Return the record of each picture with its detections; all crops are embedded at once."""
        crops = [
            square_crop(image, detection.exact or detection.box)
            for image, detections in zip(images, found, strict=True)
            for detection in detections
        ]
        embedded = self._embed(crops) if crops else np.empty((0, self._references[0].shape[1]))
        parts = np.split(embedded, np.cumsum([len(detections) for detections in found]))[:-1]
        return [
            self._record(image.size, list(detections), part)
            for image, detections, part in zip(images, found, parts, strict=True)
        ]

    def _record(
        self, size: tuple[int, int], detections: list[Detection], crops: np.ndarray
    ) -> Record:
        """Compare a picture's crops (n, D)."""
        matching, norm = self._variant.matching, self._variant.norm
        score = count_aware_score if self._variant.count_aware else dnc_score
        square = len(crops) == len(self._subjects)
        judged = verdicts(crops, self._references)
        return Record(
            score(crops, self._references, matching, norm),
            detections,
            similarity_matrix(crops, self._references),
            detected_matrix(crops, self._references, matching) if square else None,
            dict(zip(self._subjects, judged, strict=True)),
            likenesses(crops, self._references),
            size,
        )


def score_images(
    images: Sequence[Image.Image | str | Path],
    references: Mapping[str, Sequence[Image.Image]],
    detector: ImageDetector,
    embedder: Embedder,
    variant: Variant = Variant(),
    batch_size: int = BATCH_SIZE,
) -> list[Record]:
    """Score pictures, RGB or by their paths, against references by subject id.

    Returns:
        One record a picture; one that can't be read has a `problem` instead of a score.
    """
    metric = Metric(embedder, references, variant)
    batches = read_ahead(images, batch_size)
    return [records[0] for batch in batches for records in score_batch(batch, detector, [metric])]


def score_batch(
    images: Sequence[Image.Image | ImageError],
    detector: ImageDetector,
    metrics: Sequence[Metric],
) -> list[list[Record]]:
    """Return each picture's records, one a metric; an error in its place becomes a problem."""
    readable = [image for image in images if isinstance(image, Image.Image)]
    found = detector(readable) if readable else []
    scored = zip(*(metric(readable, found) for metric in metrics), strict=True)
    return [
        list(next(scored))
        if isinstance(image, Image.Image)
        else [Record(problem=str(image)) for _ in metrics]
        for image in images
    ]


def read_ahead(
    images: Sequence[Image.Image | str | Path], batch_size: int
) -> Iterator[list[Image.Image | ImageError]]:
    """Yield batches of RGB pictures; while one is worked on, the next is read from the disk."""
    with ThreadPoolExecutor(READERS) as pool:
        coming = [pool.submit(_read, image) for image in images[:batch_size]]
        for start in range(batch_size, len(images) + batch_size, batch_size):
            batch = coming
            coming = [pool.submit(_read, image) for image in images[start : start + batch_size]]
            yield [future.result() for future in batch]


def _read(image: Image.Image | str | Path) -> Image.Image | ImageError:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return load_rgb(Path(image))
    except ImageError as error:
        return error
