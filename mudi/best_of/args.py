"""The flags of `inference.py`. Knows no torch."""

from dataclasses import dataclass

from detect_and_compare.args import JudgeArgs
from mudi.ground.flags import flag
from mudi.pictures.args import PictureArgs

ALL, BEST = "all", "best"


@dataclass
class CandidateArgs:
    """best of several"""

    best_of: int = flag(
        1,
        "candidates a picture; kept is the one whose Detect-and-Compare score, of the subjects "
        "that the prompt names, is best among those of the right count; candidate c of picture k, "
        "both from 0, has "
        "seed + k + c * num_images",
        at_least=1,
    )
    enough: float | None = flag(
        None, "a picture gets no more candidates once one has this score", at_most=1
    )
    keep: str = flag(BEST, "whose files stay: the best's, or all candidates'", choices=(BEST, ALL))


@dataclass
class BestArgs(PictureArgs, CandidateArgs, JudgeArgs):
    """What `inference.py` takes."""
