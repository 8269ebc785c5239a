"""Detect-and-Compare for programs that score pictures while they make them.

basis = read_basis(args, folder, "--instance_data_dir", problems)  # before anything is loaded
judge = load_judge(args, basis, device)  # detector and embedders, once
[records] = judge.about(["a", "b"])([picture])  # a Record by embedder
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detect_and_compare.args import FOREGROUND, JudgeArgs
from detect_and_compare.detect import CROPS, ImageDetector, load_detector
from detect_and_compare.embed import DREAMSIM, load_embedder
from detect_and_compare.measure import Metric, Record, Variant, score_batch
from detect_and_compare.pictures import FOUND_BY
from detect_and_compare.references import (
    References,
    ReferencesError,
    default_query,
    load_references,
)
from detect_and_compare.results import Line, to_line
from detect_and_compare.score import Norm
from mudi.ground.errors import SetupError
from mudi.ground.flags import id_table, model_folder_complaints, origins
from mudi.images import ImageError
from mudi.metadata import MetadataError

NORMS: dict[str, Norm] = {"2": 2, "fro": "fro"}


@dataclass(frozen=True)
class Basis:
    """What pictures are judged by, before a model is loaded.

    Attributes:
        queries: what to look for, by subject.
        settings: what the scores of a picture depend on, as JSON has it.
    """

    references: References
    queries: dict[str, str]
    settings: dict[str, Any]


def read_basis(args: JudgeArgs, folder: Path, flag: str, problems: list[str]) -> Basis:
    """Read the references; add what is wrong with them and with the metric's flags to problems.

    Args:
        flag: the one that names the folder.
    """
    references = References({}, {})
    try:
        references = load_references(folder, args.crop_references)
    except (MetadataError, ReferencesError) as error:
        problems += [f"{flag} {line}" for line in str(error).splitlines()]
    queries = _read_queries(args, references.names, problems)
    if args.detector == FOREGROUND and (args.queries or args.nms is not None):
        problems.append(f"--detector {FOREGROUND} looks for no texts: drop --queries and --nms")
    settings = {
        **origins(args, JudgeArgs),
        "queries": {} if args.detector == FOREGROUND else queries,
        "references": references.digest,
        "crops": CROPS,
    }
    return Basis(references, queries, settings)


def _read_queries(args: JudgeArgs, names: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    given = id_table(args.queries, "--queries", problems)
    for subject in given:
        if names and subject not in names:
            problems.append(f"--queries {subject}: the subjects are {', '.join(names)}")
    return {subject: given.get(subject) or default_query(name) for subject, name in names.items()}


def checkpoint_complaints(detector: str, embedders: Sequence[str]) -> list[str]:
    """Complain about folders that are not there; names without a slash are known ones."""
    named = [("--detector", detector), *(("--embedder", name) for name in embedders)]
    return [
        problem
        for option, name in named
        if "/" in name
        for problem in model_folder_complaints(option, name, "config.json")
    ]


@dataclass(frozen=True)
class Judge:
    """Scores pictures by Detect-and-Compare; its models are loaded once.

    The detector looks for all subjects of the data folder, whichever a picture is compared with.

    Attributes:
        metrics: one an embedder; the first ranks.
    """

    detector: ImageDetector
    metrics: tuple[Metric, ...]

    @property
    def names(self) -> list[str]:
        """The embedders'."""
        return [metric.name for metric in self.metrics]

    def about(self, subjects: Sequence[str]) -> "Judge":
        """Return the judge of pictures that are to show just these of the subjects."""
        return replace(self, metrics=tuple(metric.about(subjects) for metric in self.metrics))

    def line(self, stamp: Mapping[str, Any], records: Mapping[str, Record]) -> Line:
        """Return a picture's line as `to_line`, which also tells the detector."""
        return to_line({**stamp, FOUND_BY: self.detector.name}, records)

    def check(self, lines: Mapping[str, Line], remedy: str) -> None:
        """Compare earlier pictures' lines, by name, with what this judge would write.

        Args:
            remedy: what to do where they differ, for the message.

        Raises:
            SetupError: one is by another detector or other embedders, or by other weights of one
                name.
        """
        for name, line in lines.items():
            earlier = [line.get(FOUND_BY, "a detector unknown"), *line.get("scores", self.names)]
            now = [self.detector.name, *self.names]
            if earlier != now:
                told = f"{', '.join(earlier)} and not by {', '.join(now)}"
                raise SetupError(f"{name} was judged by {told}: {remedy}")

    def __call__(self, images: Sequence[Image.Image | ImageError]) -> list[dict[str, Record]]:
        """Return the records of each RGB picture by embedder; see `score_batch`."""
        return [
            dict(zip(self.names, records, strict=True))
            for records in score_batch(images, self.detector, self.metrics)
        ]


def load_judge(
    args: JudgeArgs,
    basis: Basis,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    cache_dir: Path | None = None,
    embeddings: Path | None = None,
) -> Judge:
    """Load detector and embedders, and embed the references.

    Args:
        dtype: of the embedders.
        cache_dir: see `load_embedder`.
        embeddings: folder where the references' embeddings are kept; None: nowhere.

    Raises:
        SetupError: a checkpoint can't be had.
    """
    variant = Variant(args.matching, NORMS[args.norm], args.count_aware)
    texts = list(basis.queries.values())
    detector = load_detector(args.detector, texts, args.threshold, args.nms, device)
    metrics = []
    for name in args.embedder:
        pooling = None if name.startswith(DREAMSIM) else args.pooling
        embedder = load_embedder(name, device, dtype, pooling, cache_dir=cache_dir)
        metrics.append(Metric(embedder, basis.references.images, variant, embeddings))
    return Judge(detector, tuple(metrics))
