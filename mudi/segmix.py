"""Seg-Mix: cut subjects out of their photos and compose them into collages (MuDI, section 4.1).

Cut-Mix, the baseline that it is compared with, sets whole photos side by side.

Pure functions: randomness comes in as a `random.Random`, files and models stay out. All lengths
are pixels; a style's margins are given at its reference size and scale with the canvas.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from comfyui import placing
from comfyui.resizing import resize_mask
from mudi.images import Box, tight_box


@dataclass(frozen=True)
class SegMixStyle:
    """The numbers and words in which the backbones' Seg-Mix differ.

    Attributes:
        shrink: smallest scale, as a fraction of the largest that fits.
        reference_size: canvas side (px) that the two margins are given for.
        margin_fit: room kept free of a subject when the largest scale is computed (px).
        margin_max: largest distance of a subject from its border (px).
        white_prob: probability of a white background; else it is black.
        template: prompt of a collage; knows {subjects} and {background}.
        reads_boxes: its prompts may end in the subjects' boxes; see `box_rows`.
    """

    shrink: float
    reference_size: int
    margin_fit: float
    margin_max: float
    white_prob: float
    template: str
    reads_boxes: bool = False


SDXL_STYLE = SegMixStyle(
    shrink=0.75,
    reference_size=1024,
    margin_fit=32,
    margin_max=256,
    white_prob=1.0,
    template="a photo of {subjects}, simple background.",
)

# The tags tie the look of a collage to words that nobody types when asking for a picture.
FLUX_STYLE = SegMixStyle(
    shrink=0.9,
    reference_size=512,
    margin_fit=32,
    margin_max=64,
    white_prob=0.75,
    template=(
        "{subjects}, pasted on a plain {background} background. "
        "Tags: sticker collage, cut-out, pasted, low quality."
    ),
)


# The same in sentences, for text encoders that are language models.
SENTENCES_STYLE = replace(
    FLUX_STYLE,
    template=(
        "A sticker collage of low quality. It shows {subjects}, cut out of photos and pasted on a "
        "plain {background} background."
    ),
    reads_boxes=True,
)


# Cut-Mix's prompts name its stitched look, so that a picture can be asked for without it.
COLLAGE_NEGATIVE_PROMPT = "photomontage, pasted cut-outs, decals, blank backdrop"
CUTMIX_NEGATIVE_PROMPT = "split image, left and right halves"
CUTMIX_TEMPLATE = f"a photo of {{subjects}}, {CUTMIX_NEGATIVE_PROMPT}."
CUTMIX_SUBJECTS = 2

RESERVE = (
    2.5  # mean absolute Laplacian within 3 % of one bicubic step from the photo, even of noise
)


@dataclass(frozen=True)
class Cutout:
    """A subject cropped to its mask: pixels (H, W, 4) uint8, RGB and its mask as 0 or 255.

    For Cut-Mix, half a canvas of its photo; see `cover_half`.
    """

    pixels: np.ndarray

    @property
    def image(self) -> Image.Image:
        """PIL RGB, with what lies around the subject."""
        return Image.fromarray(self.pixels).convert("RGB")

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        return self.pixels[..., 3] > 0

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class Collage:
    """A composed training picture.

    Attributes:
        image: PIL RGB, size x size.
        mask: (size, size) bool, True where a subject was painted.
        boxes: where each cut-out was placed, in the order the cut-outs were given.
        front_to_back: indices into the cut-outs; the first hides the others.
        background: "white" or "black"; "" where no plain one is seen (Cut-Mix).
    """

    image: Image.Image
    mask: np.ndarray
    boxes: list[Box]
    front_to_back: list[int]
    background: str


def cut_out(image: Image.Image, mask: np.ndarray) -> Cutout:
    """Crop a photo (PIL RGB) to the tight box of its subject's mask (H, W) bool.

    Raises:
        ValueError: the mask is empty or of another size than the photo.
    """
    return Cutout(placing.cut_out(np.asarray(image), mask))


def _cutout(image: Image.Image, mask: np.ndarray) -> Cutout:
    return Cutout(np.dstack([np.asarray(image), mask.astype(np.uint8) * 255]))


def flip(cutout: Cutout) -> Cutout:
    """Mirror a cut-out left to right."""
    return Cutout(cutout.pixels[:, ::-1].copy())


def largest_scale(cutout: Cutout, size: int, style: SegMixStyle, num_subjects: int = 2) -> float:
    """Return s_max = min((S/k - margin_fit)/w, (S - margin_fit)/h) for k subjects a collage.

    Raises:
        ValueError: the canvas has no room for that many columns.
    """
    margin = style.margin_fit * size / style.reference_size
    if size / num_subjects <= margin:
        raise ValueError(f"{num_subjects} subjects leave no room on a {size}-pixel canvas")
    return min((size / num_subjects - margin) / cutout.width, (size - margin) / cutout.height)


def resize(cutout: Cutout, scale: float) -> Cutout:
    """Scale a cut-out in one bicubic step; something of its mask always stays."""
    return Cutout(placing.resize(cutout.pixels, scale))


def reduce_to_canvas(cutout: Cutout, size: int, style: SegMixStyle) -> Cutout:
    """Shrink a cut-out to RESERVE times what fits a two-subject canvas; never enlarge it.

    So much is left that scaling it again is as sharp as scaling the photo once.
    """
    scale = RESERVE * largest_scale(cutout, size, style)
    return cutout if scale >= 1 else resize(cutout, scale)


def compose(
    cutouts: Sequence[Cutout],
    size: int,
    style: SegMixStyle,
    rng: random.Random,
    scales: Sequence[float] | None = None,
    in_a_row: bool = False,
) -> Collage:
    """Place k >= 2 cut-outs at random on a plain square canvas (Seg-Mix, steps 2 to 5).

    The canvas has k equal columns, in random order. The outer two subjects stand 1 to
    margin_max * 2/k pixels off the left and the right border, an inner one has its centre
    anywhere in its column. Heights and who is in front are random; subjects may overlap.

    Args:
        cutouts: the subjects; see `cut_out`.
        size: side of the canvas (px).
        style: the backbone's values.
        rng: source of every random choice.
        scales: fixed fraction of the largest scale, one a cut-out, each in (0, 1];
            None draws each uniformly from [style.shrink, 1].
        in_a_row: as the prior's collages, from left to right in the order given, all with the same
            top edge; who is in front is random still.

    Raises:
        ValueError: fewer than two cut-outs, or no room for so many.
    """
    count = len(cutouts)
    if count < 2:
        raise ValueError(f"a collage needs two or more cut-outs, got {count}")
    if scales is not None and (len(scales) != count or not all(0 < c <= 1 for c in scales)):
        raise ValueError(f"scales must be {count} numbers in (0, 1], got {list(scales)}")

    placed = []
    for i, cutout in enumerate(cutouts):
        fraction = rng.uniform(style.shrink, 1.0) if scales is None else scales[i]
        scale = fraction * largest_scale(cutout, size, style, count)
        placed.append(resize(cutout, scale))

    columns = range(count) if in_a_row else rng.sample(range(count), count)
    lefts = [
        _draw_left(column, count, cutout.width, size, style, rng)
        for column, cutout in zip(columns, placed, strict=True)
    ]
    if in_a_row:
        tops = [rng.randint(0, size - max(cutout.height for cutout in placed))] * count
    else:
        tops = [rng.randint(0, size - cutout.height) for cutout in placed]
    front_to_back = rng.sample(range(count), count)
    background = "white" if rng.random() < style.white_prob else "black"

    boxes = [
        Box(left, top, left + cutout.width, top + cutout.height)
        for left, top, cutout in zip(lefts, tops, placed, strict=True)
    ]
    image = Image.new("RGB", (size, size), background)
    mask = np.zeros((size, size), dtype=bool)
    for i in reversed(front_to_back):
        painted = placed[i].mask
        image.paste(Image.fromarray(placed[i].pixels), boxes[i], Image.fromarray(painted))
        mask[boxes[i].top : boxes[i].bottom, boxes[i].left : boxes[i].right] |= painted
    return Collage(image, mask, boxes, front_to_back, background)


def cutmix_style(style: SegMixStyle) -> SegMixStyle:
    """Return the style with Cut-Mix's prompt; its other values are for cut-outs."""
    return replace(style, template=CUTMIX_TEMPLATE)


def cover_half(image: Image.Image, mask: np.ndarray, size: int) -> Cutout:
    """Scale a photo until it covers half a canvas, size/2 wide and size high, and crop it to that.

    The crop has the subject's box in its middle, as far as the photo reaches.

    Args:
        image: PIL RGB.
        mask: (H, W) bool, the subject's.
        size: side of the canvas (px), even.

    Raises:
        ValueError: the mask is empty.
    """
    width = size // 2
    scale = max(width / image.width, size / image.height)
    full = (round(image.width * scale), round(image.height * scale))
    box = tight_box(mask)
    left = _cropped_to((box.left + box.right) / 2 * scale, width, full[0])
    top = _cropped_to((box.top + box.bottom) / 2 * scale, size, full[1])
    photo = image.resize(full, Image.Resampling.BILINEAR)  # as the training's plain photos
    where = resize_mask(mask, full)[top : top + size, left : left + width]
    return _cutout(photo.crop(Box(left, top, left + width, top + size)), where)


def _cropped_to(centre: float, length: int, full: int) -> int:
    """Return where a crop of that length begins, its middle as near to centre as can be."""
    return min(max(round(centre - length / 2), 0), full - length)


def compose_cutmix(halves: Sequence[Cutout], rng: random.Random) -> Collage:
    """Set two halves of `cover_half` side by side; a fair coin decides who is left.

    The collage's mask is the union of the subjects' masks, as in Seg-Mix.

    Raises:
        ValueError: there are not two.
    """
    if len(halves) != CUTMIX_SUBJECTS:
        raise ValueError(f"Cut-Mix joins {CUTMIX_SUBJECTS} photos, got {len(halves)}")
    columns = rng.sample(range(CUTMIX_SUBJECTS), CUTMIX_SUBJECTS)
    width, size = halves[0].width, halves[0].height
    image = Image.new("RGB", (2 * width, size))
    mask = np.zeros((size, 2 * width), dtype=bool)
    boxes = [Box(column * width, 0, (column + 1) * width, size) for column in columns]
    for half, box in zip(halves, boxes, strict=True):
        image.paste(half.image, box)
        mask[:, box.left : box.right] = half.mask
    return Collage(image, mask, boxes, [0, 1], background="")


def collage_prompt(style: SegMixStyle, names: Sequence[str], background: str = "white") -> str:
    """Fill the style's template; names[0] is the subject of the drawn photo (Seg-Mix, step 6)."""
    return style.template.format(subjects=listed(names), background=background)


def box_rows(boxes: Sequence[tuple[str, Box]], size: int) -> str:
    """Return where subjects stand, as the newest models read layouts in prompts: JSON rows.

    Each is {"bbox": [y_min, x_min, y_max, x_max], "desc": name}, in 0..1000 of the canvas.

    Args:
        boxes: name and box (px) of each.
        size: the canvas' side (px).
    """
    rows = [
        {"bbox": [round(1000 * v / size) for v in (b.top, b.left, b.bottom, b.right)], "desc": name}
        for name, b in boxes
    ]
    return json.dumps(rows, ensure_ascii=False)


def listed(names: Sequence[str]) -> str:
    """Return "a X, a Y and a Z"."""
    *parts, last = (f"a {name}" for name in names)
    return f"{', '.join(parts)} and {last}" if parts else last


def backgrounds(style: SegMixStyle) -> list[str]:
    """Return the background colours that `compose` can draw."""
    return ["white"] * (style.white_prob > 0) + ["black"] * (style.white_prob < 1)


def _draw_left(
    column: int, count: int, width: int, size: int, style: SegMixStyle, rng: random.Random
) -> int:
    """Return the left edge of a subject of that width, inside the canvas."""
    margin_max = style.margin_max * (2 / count) * size / style.reference_size
    margin = rng.randint(1, max(1, round(margin_max)))
    if column == 0:
        left = margin
    elif column == count - 1:
        left = size - margin - width
    else:
        centre = (column + rng.random()) * size / count
        left = round(centre - width / 2)
    return min(max(left, 0), size - width)
