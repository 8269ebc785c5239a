"""What a data folder holds: photos of one subject, scenes of several, and shares of sources.

`mudi.metadata` reads it, `mudi.data` draws from it.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import gcd
from pathlib import Path

PHOTOS = "photos"  # the source of a line that names none


class _Captioned:
    caption: str
    more_captions: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """All of a picture's captions."""
        return (self.caption, *self.more_captions)


@dataclass(frozen=True)
class Photo(_Captioned):
    """One photo of one subject; `subject` is an id of `Subjects.names`.

    Attributes:
        caption: its first caption.
        more_captions: others, of which a training draws one a time.
        place: the metadata's file and line.
        source: where it comes from, if the folder has shares; else PHOTOS.
    """

    image: Path
    mask: Path
    caption: str
    subject: str
    more_captions: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    source: str = PHOTOS


@dataclass(frozen=True)
class Scene(_Captioned):
    """One picture that shows several subjects, or one that no mask cuts out; drawn once, whole.

    Attributes:
        subjects: their ids.
        cuts: those that have a mask, each as a photo of that subject.
        caption, more_captions, place, source: as a `Photo`'s.
    """

    image: Path
    subjects: tuple[str, ...]
    cuts: tuple[Photo, ...]
    caption: str
    more_captions: tuple[str, ...] = ()
    place: str = field(default="", compare=False)
    source: str = PHOTOS


@dataclass(frozen=True)
class Source:
    """A part of a data folder that has a share of the draws; photos: indices into `pictures`."""

    name: str
    share: int
    photos: tuple[int, ...]


@dataclass(frozen=True)
class Subjects:
    """A data folder: `names` maps id -> prompt name, folded, in the file's order.

    Attributes:
        shares: of the draws, by source, as whole numbers; empty: all pictures alike.
    """

    names: dict[str, str]
    photos: list[Photo]
    warnings: tuple[str, ...] = ()
    folder: Path = Path()
    scenes: tuple[Scene, ...] = ()
    shares: dict[str, int] = field(default_factory=dict)

    @cached_property
    def pictures(self) -> list[Photo | Scene]:
        """All that is drawn, each once an epoch: the photos, then the scenes."""
        return [*self.photos, *self.scenes]

    @property
    def cuts(self) -> list[Photo]:
        """All that a subject can be cut out of."""
        return [*self.photos, *(cut for scene in self.scenes for cut in scene.cuts)]

    @property
    def sources(self) -> tuple[Source, ...]:
        """The parts that have shares of the draws; none where all pictures are alike."""
        return tuple(
            Source(
                name,
                share,
                tuple(i for i, picture in enumerate(self.pictures) if picture.source == name),
            )
            for name, share in self.shares.items()
        )

    def photos_of(self, subject: str) -> list[Photo]:
        """Return what a subject can be cut out of: its photos, then scenes with its mask."""
        return [photo for photo in self.cuts if photo.subject == subject]


@lru_cache(maxsize=8)
def pattern(shares: tuple[int, ...]) -> tuple[int, ...]:
    """Return which source each draw takes, to be repeated without end: indices into shares.

    Source k has shares[k] of the places, spread evenly. What is repeated is as short as can be, so
    every row of draws in which the shares come to whole numbers holds exactly these: of shares
    (3, 1) every four draws in a row, wherever they begin, hold three and one.

    Args:
        shares: whole numbers, 1 or more.
    """
    divisor = gcd(*shares)
    counts = [share // divisor for share in shares]
    places = [((i + 0.5) / count, k) for k, count in enumerate(counts) for i in range(count)]
    return tuple(k for _, k in sorted(places))
