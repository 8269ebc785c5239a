"""Detect-and-Compare as its command runs it, on a list of pictures."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from detect_and_compare import __main__ as metric
from detect_and_compare.judge import checkpoint_complaints
from detect_and_compare.results import Line
from mudi.ground.flags import flag
from mudi.metadata import read_records

DETECTOR = "mini/weights/detector"
# The miniature's detector is less sure of itself than OWLv2 and names a thing by several boxes
MINIATURE_METRIC = "--threshold 0.2 --nms 0.1"
EMBEDDERS = ("mini/weights/embedder_a", "mini/weights/embedder_b")


@dataclass
class MetricArgs:
    """metric"""

    detector: str = flag(DETECTOR, "as detect_and_compare's")
    embedder: list[str] = flag(list(EMBEDDERS), "the first is the main one", nargs="+")
    metric_flags: str = flag(
        MINIATURE_METRIC,
        "more flags of detect_and_compare, with an equals sign "
        f'(--metric_flags="{MINIATURE_METRIC}"); --metric_flags= is the published metric',
    )


def metric_complaints(args: MetricArgs) -> list[str]:
    """Complain about folders that are not there."""
    return checkpoint_complaints(args.detector, args.embedder)


def embedder_labels(args: MetricArgs) -> list[str]:
    return [Path(name).name for name in args.embedder]


def score(pictures: Path, references: Path, output: Path, args: MetricArgs) -> list[Line]:
    """Score pictures, together with the launch's other processes; return their scores' lines.

    Args:
        pictures: JSON lines, as the metric takes them.
        references: the subjects' data folder.
        output: folder for the scores; what is there is not scored again.
    """
    words = ["--images", str(pictures), "--references", str(references), "--output", str(output)]
    words += ["--detector", args.detector, "--embedder", *args.embedder]
    metric.main(metric.parse_args([*words, *shlex.split(args.metric_flags)]))
    return read_records(output / metric.SCORES)
