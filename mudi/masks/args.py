"""The flags that say how masks are made. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path

from mudi.ground.flags import flag

DETECTOR = "google/owlv2-base-patch16-ensemble"
PHOTO_THRESHOLD = 0.2  # MuDI's, for photos of the subjects
DEFAULT_ID = "a"  # of a prior set: its files keep the original's names, img_<i>.png


@dataclass
class CaptionArgs:
    """captions"""

    suggest_captions: bool = flag(
        False, "have a model write captions into metadata.jsonl; captions by hand stay"
    )
    caption_model: str | None = flag(
        None, "vision model of transformers' image-text-to-text: folder or hub id"
    )
    llm_url: str | None = flag(
        None, "or a server with a vision model: base URL, as http://localhost:8000/v1"
    )
    llm_model: str | None = flag(None, "with --llm_url: the vision model's name there")
    caption_colours: bool = flag(False, "captions may tell the subject's colours")
    caption_tries: int = flag(3, "questions a photo until an answer serves", at_least=1)
    overwrite_captions: bool = flag(False, "ask about photos that have captions, too")


@dataclass
class MaskingArgs:
    """masks"""

    detector: str = flag(DETECTOR, "OWLv2 or OWL-ViT: folder or hub id", origin=True)
    threshold: float = flag(
        PHOTO_THRESHOLD, "a box's least confidence", at_least=0, at_most=1, origin=True
    )
    segmenter: str = flag(
        "sam",
        "foreground: what differs from the border's colour; for plain backgrounds",
        choices=("sam", "foreground"),
        origin=True,
    )
    sam_checkpoint: Path = flag(Path("sam_vit_h_4b8939.pth"), ".pth file", origin=True)
    sam_type: str = flag("vit_h", "SAM's size: vit_h, vit_l or vit_b", origin=True)
