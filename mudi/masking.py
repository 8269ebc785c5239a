"""From a picture to its mask file: what `generate_masks.py` and `generate_prior.py` share."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from segment_anything import sam_model_registry

from mudi import segment
from mudi.files import replace_file
from mudi.metadata import MAX_FOREGROUND, MIN_FOREGROUND

MASK_PREFIX = "mask_"


def add_masking_flags(parser: argparse.ArgumentParser, threshold: float) -> None:
    """Add the flags of the detector and the segmenter; `threshold` is the script's own."""
    group = parser.add_argument_group("masks")
    group.add_argument(
        "--detector", default=segment.DETECTOR, help="OWLv2 checkpoint: folder or hub id"
    )
    group.add_argument(
        "--threshold", type=float, default=threshold, help="a box's least confidence, 0 to 1"
    )
    group.add_argument(
        "--segmenter",
        choices=("sam", "foreground"),
        default="sam",
        help="foreground: what differs from the border's colour; for plain backgrounds",
    )
    group.add_argument(
        "--sam_checkpoint", type=Path, default=Path("sam_vit_h_4b8939.pth"), help=".pth file"
    )
    group.add_argument("--sam_type", choices=sorted(sam_model_registry), default="vit_h")


def load_models(
    args: argparse.Namespace, device: str | torch.device
) -> tuple[segment.Detector, segment.Segmenter]:
    """Load what `add_masking_flags` chose.

    Raises:
        SegmentError: one of them can't be loaded.
    """
    detector = segment.Detector(args.detector, device)
    if args.segmenter == "foreground":
        return detector, segment.foreground_segmenter
    return detector, segment.SamSegmenter(args.sam_checkpoint, args.sam_type, device)


def is_plausible(mask: np.ndarray) -> bool:
    """Say whether a mask (H, W) bool has both a subject and a background, as training demands."""
    return bool(MIN_FOREGROUND <= mask.mean() <= MAX_FOREGROUND)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as black and white, lossy only where the name says JPEG."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    options = {"format": "JPEG", "quality": 95} if lossy else {"format": "PNG"}
    replace_file(path, lambda temporary: picture.save(temporary, **options))
