"""The flags of `python -m detect_and_compare`, and of what judges by it. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mudi.ground.flags import DTYPES, flag
from mudi.pictures.args import PipelineArgs

OWLV2, FOREGROUND = "owlv2", "foreground"
THRESHOLD = 0.4  # of the published metric, for generated pictures
POOLINGS = ("mean", "cls", "pooler", "features")
BATCH_SIZE = 8  # pictures that are read, searched and embedded together


@dataclass
class JudgeArgs:
    """metric"""

    crop_references: bool = flag(
        False, "cut them out by their masks; as published, they are embedded whole", origin=True
    )
    queries: list[str] = flag(
        [],
        "what to look for; unset: the subject's name without its first word",
        nargs="+",
        metavar="ID=NOUN",
    )
    detector: str = flag(
        OWLV2, f"{OWLV2}, {FOREGROUND}, or an OWLv2's or OWL-ViT's folder or hub id", origin=True
    )
    threshold: float = flag(
        THRESHOLD, "least confidence of a box", at_least=0, at_most=1, origin=True
    )
    nms: float | None = flag(
        None,
        "drop boxes that overlap a better one by more",
        metavar="IOU",
        at_least=0,
        at_most=1,
        origin=True,
    )
    embedder: list[str] = flag(
        ["dreamsim"],
        "dreamsim, dinov2, clip, colours, or an AutoModel's folder or hub id; the first ranks",
        nargs="+",
        origin=True,
    )
    pooling: str | None = flag(
        None, "of the embedders but dreamsim; unset: their own", choices=POOLINGS, origin=True
    )
    matching: Literal["greedy", "optimal"] = flag("greedy", "greedy: as published", origin=True)
    norm: str = flag(
        "2", "of S_DC - S_GT; 2, spectral: as published", choices=("2", "fro"), origin=True
    )
    count_aware: bool = flag(
        False,
        "a wrong number of boxes lowers the score in proportion instead of to 0",
        origin=True,
    )


@dataclass
class PlaceArgs:
    """pictures and results"""

    images: Path = flag(Path(), "pictures to score: a folder or JSONL", required=True)
    references: Path = flag(
        Path(),
        "folder with metadata.jsonl, or with a sub-folder of pictures a subject",
        required=True,
    )
    output: Path = flag(Path(), "folder for the results", required=True)
    overwrite: bool = flag(False, "drop an earlier run's scores in --output")
    dtype: str = flag("fp32", "of the embedders", choices=DTYPES, origin=True)
    cache_dir: Path | None = flag(None, "where embedders' checkpoints are kept or fetched to")
    text_fidelity: str | None = flag(
        None,
        "also CLIP-T, by this CLIP, for pictures with a prompt",
        metavar="CHECKPOINT",
        origin=True,
    )
    batch_size: int = flag(BATCH_SIZE, "pictures at once", at_least=1)
    group_by: str | None = flag(
        None, "a key of the JSONL: a summary for each of its values", metavar="KEY"
    )
    report_limit: int = flag(500, "pictures in the report, worst first", at_least=1)


@dataclass
class ScoreArgs(JudgeArgs, PlaceArgs):
    """What `python -m detect_and_compare` takes."""


@dataclass
class RunArgs:
    """run and pictures"""

    run: Path = flag(
        Path(), "the training's --output_dir, with its save-<step> folders", positional=True
    )
    output_dir: Path | None = flag(None, "for pictures and results; unset: RUN/checkpoints")
    instance_data_dir: str | None = flag(None, "unset: the run's")
    prompts: list[str] = flag(
        ["a photo of {subjects}"],
        "{subjects}: the names of all, and then of each alone",
        nargs="+",
    )
    num_images: int = flag(4, "pictures a prompt, with the same seeds for each save", at_least=1)
    seed: int = flag(0, "picture k of a prompt has seed + k")
    gamma: float | None = flag(
        None, "of the mean shift; unset: the base's default; 0 shows the LoRA alone"
    )
    steps: int = flag(30, "denoising steps", at_least=1, origin=True)
    guidance_scale: float | None = flag(None, "unset: the pipeline's own", origin=True)
    resolution: int | None = flag(None, "side (px); unset: the run's", at_least=1, origin=True)
    batch_size: int = flag(1, "pictures at once", at_least=1)
    overwrite: bool = flag(False, "begin anew: all pictures and their list")


@dataclass
class CheckpointArgs(RunArgs, JudgeArgs, PipelineArgs):
    """What `python -m detect_and_compare.checkpoints` takes."""
