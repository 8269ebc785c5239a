"""The flags of `python -m mudi.studio`. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from mudi.ground.flags import flag
from mudi.masks.args import MaskingArgs
from mudi.pictures.args import PipelineArgs

PORT = 8471


@dataclass
class Page:
    """page"""

    photos: Path = flag(
        Path(), "folder of photos, with or without a metadata.jsonl", positional=True
    )
    port: int = flag(
        PORT,
        "of 127.0.0.1, or the next that is free; unsaved strokes are kept by it",
        at_least=0,
        at_most=65535,
    )
    device: str | None = flag(None, "of the models; unset: the one that accelerate takes")


@dataclass
class Asking:
    """models that are asked"""

    llm_url: str | None = flag(
        None, "chat model, asked for layouts and captions: base URL, as http://localhost:8000/v1"
    )
    llm_model: str | None = flag(None, "its name there; captions want one that sees")
    caption_model: str | None = flag(
        None, "captions by this vision model instead (image-text-to-text): folder or hub id"
    )
    caption_colours: bool = flag(False, "captions may tell the subject's colours")


@dataclass
class Drawing:
    """pictures"""

    lora: list[str] = flag([], "LoRA files, folders of training runs, or hub ids", nargs="+")
    lora_scale: list[float] | None = flag(None, "one for each; unset: 1", nargs="+")
    steps: int | None = flag(None, "denoising steps; unset: the pipeline's own", at_least=1)
    guidance_scale: float | None = flag(None, "unset: the pipeline's own")

    @property
    def lora_scales(self) -> list[float]:
        """One scale for each LoRA."""
        return self.lora_scale or [1.0] * len(self.lora)


@dataclass
class Judging:
    """results"""

    results: Path | None = flag(None, "pictures to look through: a folder or JSONL")
    scores: Path | None = flag(None, "what python -m detect_and_compare made of them: its folder")


@dataclass
class StudioArgs(Page, MaskingArgs, Asking, Drawing, Judging, PipelineArgs):
    """What the page takes."""
