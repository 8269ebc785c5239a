"""Photos to masks: find the subject's box, cut it out, write the mask, show what came of it.

masker = Masker(*load_models(...), queries)
results = make_masks(jobs, masker)
result_sheet(results).show()
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from mudi.ground.errors import SetupError
from mudi.ground.sheets import contact_sheet, outline
from mudi.images import Box, ImageError, load_mask, load_rgb, note_in
from mudi.masks import segment
from mudi.masks.args import PHOTO_THRESHOLD
from mudi.masks.folder import METADATA, Job, is_plausible, write_mask
from mudi.texts import folded

BOX_COLOUR = (255, 160, 0)
SEEN_SIDE = 640  # px, of the pictures kept for the sheet


class UnresolvedError(Exception):
    """A photo has no one box; the message says what was seen and what to do."""


@dataclass(frozen=True)
class Result:
    """What came of a photo.

    Attributes:
        picture: the photo, small, with its box and the outline of its mask.
        note: how its place was found.
        problem: why there is no mask, and what to do; None if there is one.
    """

    job: Job
    picture: Image.Image
    note: str
    problem: str | None


class Masker:
    """Finds the subject of a photo, cuts it out and writes its mask.

    Args:
        queries: what to look for, by the subject's id.
        threshold: least confidence of a box.
        pick: which of several boxes: "largest" or "best"; None: they are a problem.

    Raises:
        SegmentError: a query is too long for the detector.
    """

    def __init__(
        self,
        detect: segment.Detector,
        cut: segment.Segmenter,
        queries: dict[str, str],
        threshold: float = PHOTO_THRESHOLD,
        pick: str | None = None,
    ):
        detect.check(queries.values())
        self._detect, self._cut = detect, cut
        self._queries, self._threshold, self._pick = queries, threshold, pick

    def make(
        self,
        job: Job,
        box: Sequence[float] | None = None,
        points: segment.Points = (),
        negatives: segment.Points = (),
    ) -> tuple[Box | None, str]:
        """Write the mask of a photo; return the box that was cut, and how it was found.

        Args:
            box: left, top, right, bottom by hand (px).
            points: pixels on the subject by hand (x, y).
            negatives: pixels that are none of it.

        Raises:
            ImageError: the photo can't be read.
            UnresolvedError: it has no one box, what is given by hand lies outside it, or its mask
                is useless.
        """
        image = load_rgb(job.photo)
        place = box_by_hand(box, points, negatives, image.size)
        note = "points by hand" if place is None else "box by hand"
        if place is None and not points:
            place, note = self._find(job, image)
        mask = self._cut(image, place, points, negatives)
        if not is_plausible(mask):
            raise UnresolvedError(
                f"the mask covers {mask.mean():.1%} of the photo; give a --box or a --point by hand"
            )
        write_mask(job.mask, mask, json.dumps({"box": place, "note": note}))
        return place, note

    def _find(self, job: Job, image: Image.Image) -> tuple[Box, str]:
        query = self._queries[job.subject]
        [found] = self._detect([image], [[query]], self._threshold)
        if not found:
            raise UnresolvedError(
                f'no "{query}" above {self._threshold}; lower --threshold, reword --query, or give '
                f"--box {job.name}=x0,y0,x1,y1 or --point {job.name}=x,y"
            )
        if len(found) > 1 and self._pick is None:
            seen = "; ".join(f"{d.score:.2f} at {','.join(map(str, d.box))}" for d in found[:5])
            raise UnresolvedError(
                f'{len(found)} boxes for "{query}" ({seen}); raise --threshold, '
                f"--pick largest|best, or give --box {job.name}=x0,y0,x1,y1"
            )
        areas = [d.box.width * d.box.height for d in found]
        chosen = found[areas.index(max(areas))] if self._pick == "largest" else found[0]
        return segment.widen(chosen.box, image.size), f'"{query}" {chosen.score:.2f}'


def box_by_hand(
    box: Sequence[float] | None,
    points: segment.Points,
    negatives: segment.Points,
    size: tuple[int, int],
) -> Box | None:
    """Return a box as it lies in a photo of size (W, H).

    Raises:
        UnresolvedError: it has no area there, a point lies outside the photo or the box, or a
            negative one outside the photo.
    """
    place = None if box is None else segment.clip(box, size)
    if box is not None and place is not None and min(place.width, place.height) <= 0:
        raise UnresolvedError(
            f"the box {','.join(map(str, box))} holds nothing of the photo, which is "
            f"{size[0]}x{size[1]} px; give left,top,right,bottom"
        )
    photo = Box(0, 0, *size)
    _refuse_beyond("photo", photo, negatives)
    _refuse_beyond("photo" if place is None else "box", place or photo, points)
    return place


def _refuse_beyond(what: str, region: Box, points: segment.Points) -> None:
    for x, y in points:
        if not (region.left <= x < region.right and region.top <= y < region.bottom):
            inside = ",".join(map(str, region))
            raise UnresolvedError(f"the point {x},{y} lies outside the {what} {inside}")


def make_masks(
    jobs: list[Job],
    masker: Masker,
    boxes: Mapping[str, Sequence[float]] | None = None,
    points: Mapping[str, segment.Points] | None = None,
    overwrite: bool = False,
    negatives: Mapping[str, segment.Points] | None = None,
) -> list[Result]:
    """Make the masks that are missing, and anew those of photos with a box or points by hand.

    Args:
        boxes: left, top, right, bottom (px) by names of photos, as `photos_named` takes them.
        points: pixels (x, y) on the subject, likewise.
        overwrite: make all masks anew.
        negatives: pixels (x, y) that are none of the subject, likewise.

    Raises:
        SetupError: a name by hand is no photo's, or could be that of several; no mask was made.
    """
    given = {*(boxes or ()), *(points or ()), *(negatives or ())}
    if complaints := place_complaints(given, jobs):
        raise SetupError("\n".join(complaints))
    boxes, points, negatives = (_in_full(table, jobs) for table in (boxes, points, negatives))
    results = []
    for job in tqdm(jobs, desc="masks"):
        box = boxes.get(job.name)
        on_it, off_it = (table.get(job.name, ()) for table in (points, negatives))
        problem, mask = None, None
        used, note = _noted(job)
        try:
            if overwrite or box or on_it or off_it or not job.mask.is_file():
                used, note = masker.make(job, box, on_it, off_it)
            mask = _made_mask(job)
        except (UnresolvedError, ImageError) as error:
            note, problem = "NO MASK", str(error)
        results.append(Result(job, _picture(job, used, mask), note, problem))
    return results


def photos_named(name: str, jobs: Iterable[Job]) -> list[str]:
    """Return the photos that a name given by hand means.

    That is the one of this very name; else those of a name that looks the same, as one in
    decomposed letters does; else those whose last part it is.
    """
    names = list(dict.fromkeys(job.name for job in jobs))
    wanted = folded(normpath(name))
    return (
        [n for n in names if n == name]
        or [n for n in names if folded(n) == wanted]
        or [n for n in names if folded(n.split("/")[-1]) == wanted]
    )


def place_complaints(given: Iterable[str], jobs: Sequence[Job]) -> list[str]:
    """Complain about names by hand that don't mean one photo with one mask, or one twice."""
    complaints = []
    seen: dict[str, str] = {}
    for name in sorted(given):
        named = photos_named(name, jobs)
        if not named:
            complaints.append(f"no photo {name} to give a box or point")
        elif len(named) > 1:
            complaints.append(f"{name} could be {' or '.join(named)}; write it so")
        elif (other := seen.setdefault(named[0], name)) != name:
            complaints.append(f"{other} and {name} are one photo; write it in one way")
        elif [job.name for job in jobs].count(named[0]) > 1:
            told = f"leave one in {METADATA} while you give it a box or point"
            complaints.append(f"{name} stands on several lines, a mask each; {told}")
    return complaints


def _in_full(table: Mapping[str, Any] | None, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return what is given by hand by the photos' own names."""
    return {photos_named(name, jobs)[0]: value for name, value in (table or {}).items()}


def _noted(job: Job) -> tuple[Box | None, str]:
    """Return the box and the note of a mask that is there, as `Masker.make` returned them."""
    try:
        noted = json.loads(note_in(job.mask) or "{}")
        box = noted["box"]
        return (None if box is None else Box(*map(int, box))), str(noted["note"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None, "kept"


def _made_mask(job: Job) -> np.ndarray:
    try:
        return load_mask(job.mask)
    except ImageError as error:
        raise UnresolvedError(
            f"its mask {job.mask.name} cannot be read; delete it or use --overwrite"
        ) from error


def _picture(job: Job, box: Box | None, mask: np.ndarray | None) -> Image.Image:
    """Draw a box and the outline of a mask (H, W) bool into a small copy of a photo."""
    try:
        image = load_rgb(job.photo)
    except ImageError:
        return Image.new("RGB", (SEEN_SIDE, SEEN_SIDE), "black")
    scale = min(1.0, SEEN_SIDE / max(image.size))
    small = image.resize([max(1, round(side * scale)) for side in image.size])
    if mask is not None:
        shrunk = Image.fromarray(mask).resize(small.size)
        small = outline(np.asarray(small), np.asarray(shrunk))
    if box is not None:
        corners = [edge * scale for edge in box]
        ImageDraw.Draw(small).rectangle(corners, outline=BOX_COLOUR, width=3)
    return small


def result_sheet(results: list[Result]) -> Image.Image:
    """Lay the results on a contact sheet."""
    captions = [f"{r.job.name} ({r.job.subject}): {r.note}" for r in results]
    return contact_sheet([result.picture for result in results], captions)
