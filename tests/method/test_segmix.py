import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from helpers import BLACK, COLOURS, WHITE, noise, plain_cutout
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mudi.segmix import (
    FLUX_STYLE,
    RESERVE,
    SDXL_STYLE,
    Collage,
    Cutout,
    backgrounds,
    collage_prompt,
    compose,
    cut_out,
    flip,
    largest_scale,
    reduce_to_canvas,
    resize,
)

STYLES = {"SDXL": SDXL_STYLE, "FLUX": FLUX_STYLE}
# The table of method.md, section 2: S_0, margin_fit, margin_max, lo
NUMBERS = {"SDXL": (1024, 32, 256, 0.75), "FLUX": (512, 32, 64, 0.9)}


def s_max(style: str, size: int, k: int, w: int, h: int) -> float:
    """method.md: min((S/k - margin_fit)/w, (S - margin_fit)/h), margin_fit in proportion to S."""
    reference, margin_fit, _, _ = NUMBERS[style]
    fit = margin_fit * size / reference
    return min((size / k - fit) / w, (size - fit) / h)


def margin_max(style: str, size: int, k: int) -> int:
    reference, _, margin, _ = NUMBERS[style]
    return max(1, round(margin * 2 / k * size / reference))


@st.composite
def subjects(draw: st.DrawFn, index: int, solid: bool = False) -> Cutout:
    """A cut-out of one colour: any mask, sides from 1 to 300, so aspects up to 300."""
    width, height = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    if solid:
        return plain_cutout(width, height, COLOURS[index])
    filled = draw(st.sampled_from([0.02, 0.3, 0.8, 1.0]))
    mask = np.random.default_rng(draw(st.integers(0, 2**32))).random((height, width)) < filled
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return cut_out(Image.new("RGB", (width, height), COLOURS[index]), mask)


SMALL = st.integers(32, 128)


@st.composite
def scenes(draw: st.DrawFn, solid: bool = False, sizes: st.SearchStrategy = SMALL) -> dict:
    """Everything that `compose` takes, the style by its name and the rng by its seed."""
    count = draw(st.integers(2, 5))
    fixed = st.lists(st.floats(0.01, 1.0), min_size=count, max_size=count)
    return {
        "cutouts": [draw(subjects(i, solid)) for i in range(count)],
        "size": draw(sizes),
        "style": draw(st.sampled_from(list(STYLES))),
        "seed": draw(st.integers(0, 2**32)),
        "scales": draw(st.none() | fixed),
        "in_a_row": draw(st.booleans()),
    }


def compose_scene(scene: dict, seed: int | None = None) -> Collage:
    return compose(
        scene["cutouts"],
        scene["size"],
        STYLES[scene["style"]],
        random.Random(scene["seed"] if seed is None else seed),
        scene["scales"],
        scene["in_a_row"],
    )


def assert_inside(collage: Collage, size: int) -> None:
    assert collage.image.mode == "RGB" and collage.image.size == (size, size)
    assert collage.mask.shape == (size, size) and collage.mask.dtype == bool
    for left, top, right, bottom in collage.boxes:
        assert 0 <= left < right <= size
        assert 0 <= top < bottom <= size


def assert_mask_is_what_was_painted(collage: Collage) -> None:
    """No subject is white or black, so a painted pixel differs from the background."""
    background = WHITE if collage.background == "white" else BLACK
    painted = (np.asarray(collage.image) != background).any(axis=2)
    np.testing.assert_array_equal(collage.mask, painted)


@settings(max_examples=600)
@given(scenes())
def test_collages_stay_inside_and_the_mask_is_what_was_painted(scene):
    """Five collages of each of 600 scenes: 3000 draws."""
    for seed in range(scene["seed"], scene["seed"] + 5):
        collage = compose_scene(scene, seed)
        assert_inside(collage, scene["size"])
        assert_mask_is_what_was_painted(collage)


@settings(max_examples=20)
@given(scenes(sizes=st.sampled_from([256, 512, 513, 777, 1024, 1100])))
def test_collages_of_training_size_do_too(scene):
    collage = compose_scene(scene)
    assert_inside(collage, scene["size"])
    assert_mask_is_what_was_painted(collage)


@settings(max_examples=300)
@given(scenes(solid=True))
def test_the_picture_is_the_solid_subjects_painted_back_to_front(scene):
    collage = compose_scene(scene)
    expected = Image.new("RGB", (scene["size"],) * 2, collage.background)
    for i in reversed(collage.front_to_back):
        expected.paste(COLOURS[i], collage.boxes[i])
    assert sorted(collage.front_to_back) == list(range(len(scene["cutouts"])))
    np.testing.assert_array_equal(np.asarray(collage.image), np.asarray(expected))


def scales_that_round_to(length: int, drawn: int) -> tuple[float, float]:
    """Return the interval of s for which max(1, round(length * s)) is drawn."""
    return (drawn - 0.5) / length if drawn > 1 else 0.0, (drawn + 0.5) / length


@settings(max_examples=300)
@given(scenes())
def test_a_box_is_the_cutout_at_one_scale_within_the_styles_range(scene):
    k, lo = len(scene["cutouts"]), NUMBERS[scene["style"]][3]
    collage = compose_scene(scene)
    for i, (cutout, box) in enumerate(zip(scene["cutouts"], collage.boxes, strict=True)):
        top = s_max(scene["style"], scene["size"], k, cutout.width, cutout.height)
        low, high = (lo * top, top) if scene["scales"] is None else [scene["scales"][i] * top] * 2
        by_width = scales_that_round_to(cutout.width, box.width)
        by_height = scales_that_round_to(cutout.height, box.height)
        # Some scale of the range explains both sides
        tiny = 1e-9
        assert max(low, by_width[0], by_height[0]) <= min(high, by_width[1], by_height[1]) + tiny


def in_row(scene: dict, count: int) -> list[tuple[int, ...]]:
    """The orders of columns that are possible."""
    return [tuple(range(count))] if scene["in_a_row"] else list(permutations(range(count)))


def columns_fit(boxes: list, order: tuple[int, ...], size: int, margin: int) -> bool:
    """Whether the boxes stand in columns in that order, by the rules of method.md."""
    k = len(order)
    left, right = boxes[order[0]], boxes[order[-1]]
    outer = 1 <= left.left <= margin and 1 <= size - right.right <= margin
    inner = all(
        # Rounding the left edge moves the centre by half a pixel at most
        column * size / k - 0.5
        <= (boxes[i].left + boxes[i].right) / 2
        <= (column + 1) * size / k + 0.5
        for column, i in list(enumerate(order))[1:-1]
    )
    return outer and inner


@settings(max_examples=300)
@given(scenes())
def test_subjects_stand_in_columns_within_the_margins(scene):
    k, size = len(scene["cutouts"]), scene["size"]
    boxes = compose_scene(scene).boxes
    margin = margin_max(scene["style"], size, k)
    assert any(columns_fit(boxes, order, size, margin) for order in in_row(scene, k))


@settings(max_examples=50)
@given(scenes())
def test_in_a_row_gives_all_subjects_one_top_edge(scene):
    boxes = compose_scene({**scene, "in_a_row": True}).boxes
    assert len({box.top for box in boxes}) == 1


@settings(max_examples=50)
@given(scenes())
def test_the_same_seed_gives_the_same_collage(scene):
    one, two = compose_scene(scene), compose_scene(scene)
    assert (one.boxes, one.front_to_back) == (two.boxes, two.front_to_back)
    assert one.image.tobytes() == two.image.tobytes()
    np.testing.assert_array_equal(one.mask, two.mask)


@pytest.mark.parametrize(
    "style, size, k, w, h, expected",
    [
        (SDXL_STYLE, 1024, 2, 300, 600, 480 / 300),  # (512 - 32)/300 = 1.6 < 992/600
        (SDXL_STYLE, 1024, 2, 200, 800, 992 / 800),  # (1024 - 32)/800 = 1.24 < 480/200
        (SDXL_STYLE, 1024, 2, 1920, 960, 0.25),  # 480/1920
        (SDXL_STYLE, 512, 2, 300, 600, 0.8),  # (256 - 16)/300, half of the first
        (SDXL_STYLE, 1024, 4, 112, 112, 2.0),  # (256 - 32)/112
        (FLUX_STYLE, 512, 2, 448, 100, 0.5),  # (256 - 32)/448
        (FLUX_STYLE, 512, 2, 100, 600, 0.8),  # (512 - 32)/600
        (FLUX_STYLE, 1024, 2, 448, 100, 1.0),  # (512 - 64)/448, twice
    ],
)
def test_the_largest_scale_by_hand(style, size, k, w, h, expected):
    assert largest_scale(plain_cutout(w, h), size, style, k) == pytest.approx(expected)


def test_fixed_scales_are_fractions_of_the_largest():
    cutouts = [plain_cutout(240, 100), plain_cutout(100, 992)]
    collage = compose(cutouts, 1024, SDXL_STYLE, random.Random(0), scales=[1.0, 0.5])
    # s_max is 480/240 = 2 and 992/992 = 1
    assert [(box.width, box.height) for box in collage.boxes] == [(480, 200), (50, 496)]


def test_a_mask_keeps_its_edges_when_it_is_scaled():
    """At 64 pixels a subject 15 wide is doubled: (32 - 2)/15."""
    quarters = np.kron(np.array([[True, False], [False, True]]), np.ones((5, 5), dtype=bool))
    cutout = cut_out(noise(15, 10), np.pad(quarters, ((0, 0), (0, 5)), mode="edge"))
    collage = compose([cutout] * 2, 64, SDXL_STYLE, random.Random(0), scales=[1.0, 1e-9])
    left, top, right, bottom = collage.boxes[0]
    doubled = np.kron(cutout.mask, np.ones((2, 2), dtype=bool))
    np.testing.assert_array_equal(collage.mask[top:bottom, left:right], doubled)


DRAWS = 2000


def many(style: str, draws: int = DRAWS, size: int = 32) -> list[Collage]:
    """Collages of two tiny cut-outs at half their largest scale."""
    cutouts = [plain_cutout(9, 3, COLOURS[0]), plain_cutout(3, 9, COLOURS[1])]
    return [
        compose(cutouts, size, STYLES[style], random.Random(f"{style} {i}"), scales=[0.5, 0.5])
        for i in range(draws)
    ]


def assert_binomial(count: int, draws: int, chance: float) -> None:
    """A fair count is beyond four standard deviations once in 16000 times."""
    assert abs(count - draws * chance) <= 4 * (draws * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("style", STYLES)
def test_left_and_front_are_fair_independent_coins(style):
    coins = Counter((c.boxes[0].left < c.boxes[1].left, c.front_to_back[0]) for c in many(style))
    assert len(coins) == 4
    for count in coins.values():
        assert_binomial(count, DRAWS, 1 / 4)


def test_the_background_is_white_or_for_flux_black_a_quarter_of_the_time():
    assert {c.background for c in many("SDXL")} == {"white"}
    colours = Counter(c.background for c in many("FLUX"))
    assert_binomial(colours["white"], DRAWS, 0.75)
    assert set(colours) == {"white", "black"}


def test_the_margins_of_two_are_uniform_from_1_to_margin_max():
    """SDXL at 32 pixels: 256 * 32/1024 = 8, for the left border and for the right by itself."""
    margins = Counter(
        (min(box.left for box in c.boxes), 32 - max(box.right for box in c.boxes))
        for c in many("SDXL", 4 * DRAWS)
    )
    assert set(margins) == {(m, n) for m in range(1, 9) for n in range(1, 9)}
    for count in margins.values():
        assert_binomial(count, 4 * DRAWS, 1 / 64)


def test_each_height_is_uniform_over_the_canvas_by_itself():
    """At 32 pixels the first is placed as 8x2 (half of 15/9 of 9x3), the second as 5x16."""
    collages = many("SDXL")
    for i, height in enumerate((2, 16)):
        room = 32 - height
        tops = Counter(c.boxes[i].top for c in collages)
        assert set(tops) == set(range(room + 1))
        for count in tops.values():
            assert_binomial(count, DRAWS, 1 / (room + 1))
    assert len({c.boxes[0].top - c.boxes[1].top for c in collages}) > 20


def test_scales_are_uniform_in_the_styles_range():
    """At 1024 the largest is 480 wide: fractions below, within and above the middle third."""
    cutouts = [plain_cutout(480, 10), plain_cutout(480, 10)]
    widths = [
        compose(cutouts, 1024, SDXL_STYLE, random.Random(seed)).boxes[0].width
        for seed in range(300)
    ]
    assert min(widths) >= 360 and max(widths) <= 480  # 0.75 * 480
    assert_binomial(sum(width < 400 for width in widths), 300, 1 / 3)
    assert_binomial(sum(width > 440 for width in widths), 300, 1 / 3)


def test_the_order_of_three_columns_is_any():
    cutouts = [plain_cutout(3, 3, COLOURS[i]) for i in range(3)]
    orders = Counter()
    for seed in range(1200):
        boxes = compose(cutouts, 48, SDXL_STYLE, random.Random(seed), scales=[0.2] * 3).boxes
        orders[tuple(sorted(range(3), key=lambda i, boxes=boxes: boxes[i].left))] += 1
    assert len(orders) == 6
    for count in orders.values():
        assert_binomial(count, 1200, 1 / 6)


def test_unscaled_subjects_are_painted_pixel_by_pixel_the_front_one_last():
    """At 64 pixels a subject 30 wide fits at scale 1: (32 - 2)/30. So its mask is known exactly."""
    masks = [np.random.default_rng(i).random((40, 30)) < 0.5 for i in range(2)]
    for mask in masks:
        mask[0, 0] = mask[-1, -1] = True
    cutouts = [cut_out(noise(30, 40, seed=i), mask) for i, mask in enumerate(masks)]
    overlapping = 0
    for seed in range(200):
        collage = compose(cutouts, 64, SDXL_STYLE, random.Random(seed), scales=[1.0, 1.0])
        expected = np.full((64, 64, 3), WHITE)
        union = np.zeros((64, 64), dtype=bool)
        for i in reversed(collage.front_to_back):
            left, top, right, bottom = collage.boxes[i]
            expected[top:bottom, left:right][masks[i]] = np.asarray(cutouts[i].image)[masks[i]]
            union[top:bottom, left:right] |= masks[i]
        np.testing.assert_array_equal(np.asarray(collage.image), expected)
        np.testing.assert_array_equal(collage.mask, union)
        overlapping += collage.mask.sum() < sum(mask.sum() for mask in masks)
    assert overlapping > 50


@pytest.mark.parametrize(
    "names, prompt",
    [
        (["olis robot", "hta bear"], "a photo of a olis robot and a hta bear, simple background."),
        (
            ["olis robot", "hta bear", "pll corgi"],
            "a photo of a olis robot, a hta bear and a pll corgi, simple background.",
        ),
        (["X", "Y", "Z", "{W}"], "a photo of a X, a Y, a Z and a {W}, simple background."),
    ],
)
def test_sdxl_prompts_verbatim(names, prompt):
    assert collage_prompt(SDXL_STYLE, names) == prompt


@pytest.mark.parametrize("background", ["white", "black"])
def test_a_flux_prompt_names_the_subjects_the_background_and_that_it_is_pasted(background):
    prompt = collage_prompt(FLUX_STYLE, ["olis robot", "hta bear"], background)
    assert f"a olis robot and a hta bear, pasted on a plain {background} background" in prompt
    assert "sticker" in prompt and "collage" in prompt and "low quality" in prompt


def test_backgrounds_are_those_that_can_be_drawn():
    assert backgrounds(SDXL_STYLE) == ["white"]
    assert backgrounds(FLUX_STYLE) == ["white", "black"]


def test_cut_out_keeps_the_box_of_the_subject_with_its_last_row_and_column():
    photo = noise(6, 4)
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = mask[3, 5] = True
    cutout = cut_out(photo, mask)
    assert (cutout.width, cutout.height) == (4, 3)
    assert cutout.image.tobytes() == photo.crop((2, 1, 6, 4)).tobytes()
    assert cutout.mask.tolist() == [
        [True, False, False, False],
        [False, False, False, False],
        [False, False, False, True],
    ]


def test_flip_mirrors_picture_and_mask_alike():
    photo = noise(3, 2)
    mirrored = flip(cut_out(photo, np.array([[1, 1, 0], [0, 0, 1]], dtype=bool)))
    assert mirrored.mask.tolist() == [[False, True, True], [True, False, False]]
    assert [mirrored.image.getpixel((x, 0)) for x in range(3)] == [
        photo.getpixel((x, 0)) for x in (2, 1, 0)
    ]


@settings(max_examples=50)
@given(scenes())
def test_flipped_cutouts_compose_as_well(scene):
    collage = compose_scene({**scene, "cutouts": [flip(c) for c in scene["cutouts"]]})
    assert_mask_is_what_was_painted(collage)


@settings(max_examples=200)
@given(subjects(0), st.integers(32, 300), st.sampled_from(list(STYLES)))
def test_reducing_never_enlarges_and_leaves_what_the_canvas_can_use(cutout, size, style):
    reduced = reduce_to_canvas(cutout, size, STYLES[style])
    if RESERVE * s_max(style, size, 2, cutout.width, cutout.height) >= 1:
        assert reduced is cutout
        return
    assert reduced.width <= cutout.width and reduced.height <= cutout.height
    # The limiting side is off by half a pixel at most
    room = RESERVE * s_max(style, size, 2, 1, 1)  # of the narrower direction, in pixels
    left = RESERVE * s_max(style, size, 2, reduced.width, reduced.height)
    assert room / (room + 0.5) <= left <= room / (room - 0.5)


def test_a_12_megapixel_subject_is_kept_at_1200_pixels_wide():
    reduced = reduce_to_canvas(plain_cutout(3840, 2880), 1024, SDXL_STYLE)
    assert (reduced.width, reduced.height) == (1200, 900)  # 2.5 * 480


def laplacian(image: Image.Image) -> float:
    """Return the mean absolute Laplacian of a picture's brightness, a measure of sharpness."""
    grey = np.asarray(image.convert("L")).astype(float)
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(4 * grey[1:-1, 1:-1] - neighbours).mean())


@st.composite
def textures(draw: st.DrawFn) -> Image.Image:
    """Noise whose grains are 1 to 12 pixels wide, 300 to 1200 pixels a side."""
    grain = draw(st.integers(1, 12))
    sides = (draw(st.integers(300, 1200)), draw(st.integers(300, 1200)))
    grains = noise(-(-sides[0] // grain), -(-sides[1] // grain), draw(st.integers(0, 99)))
    return grains.resize([length * grain for length in grains.size], Image.Resampling.NEAREST)


@settings(max_examples=30)
@given(textures(), st.sampled_from([128, 256, 512]), st.floats(0.75, 1.0))
def test_a_cutout_is_as_sharp_as_one_bicubic_step_from_its_photo(texture, size, fraction):
    """Blur must not tell a collage: a reduced copy that is scaled again lost up to a fifth."""
    whole = cut_out(texture, np.ones((texture.height, texture.width), dtype=bool))
    kept = reduce_to_canvas(whole, size, SDXL_STYLE)
    collage = compose([kept, kept], size, SDXL_STYLE, random.Random(0), scales=[fraction, 0.01])
    painted = resize(kept, collage.boxes[0].width / kept.width).image
    direct = texture.resize(painted.size, Image.Resampling.BICUBIC)
    assert laplacian(painted) == pytest.approx(laplacian(direct), rel=0.03)


def test_a_collage_paints_the_bicubic_step_itself():
    """At 64 pixels a subject 120 wide is quartered, (32 - 2)/120: too little to be reduced."""
    photo = noise(120, 80)
    cutout = cut_out(photo, np.ones((80, 120), dtype=bool))
    collage = compose([cutout] * 2, 64, SDXL_STYLE, random.Random(0), scales=[1.0, 1e-9])
    painted = np.asarray(collage.image.crop(collage.boxes[0])).astype(int)
    direct = np.asarray(photo.resize((30, 20), Image.Resampling.BICUBIC))
    differs = np.abs(painted - direct).max(axis=2) > 2
    assert differs.sum() <= 1  # the other's only pixel may be in front


@pytest.mark.parametrize("size, thickness", [(512, 4), (1024, 2), (64, 4), (256, 1)])
def test_a_subject_of_wires_is_seen_in_every_collage(size, thickness):
    """Of 4-pixel wires in 12 megapixels the cut at half left nothing at 512 px."""
    frame = np.zeros((3000, 4000), dtype=bool)
    frame[:thickness] = frame[-thickness:] = True
    frame[:, :thickness] = frame[:, -thickness:] = True
    photo = Image.new("RGB", (4000, 3000), COLOURS[0])
    kept = reduce_to_canvas(cut_out(photo, frame), size, SDXL_STYLE)
    other = plain_cutout(40, 30, COLOURS[1])
    for seed in range(5):
        collage = compose([kept, other], size, SDXL_STYLE, random.Random(seed), scales=[0.8, 0.1])
        wires = (np.asarray(collage.image) == COLOURS[0]).all(axis=2)
        assert wires.sum() >= 0.3 * thickness * size / 4000 * 0.8 * size / 2
        assert_mask_is_what_was_painted(collage)


def test_errors_say_what_is_wrong():
    one, two = plain_cutout(4, 4), [plain_cutout(4, 4)] * 2
    rng = random.Random(0)
    with pytest.raises(ValueError, match="two or more cut-outs, got 1"):
        compose([one], 64, SDXL_STYLE, rng)
    for scales in ([1.0], [1.0, 0.5, 0.5], [0.0, 1.0], [1.0, 1.01], [-0.5, 1.0]):
        with pytest.raises(ValueError, match=r"scales must be 2 numbers in \(0, 1\]"):
            compose(two, 64, SDXL_STYLE, rng, scales=scales)
    with pytest.raises(ValueError, match="16 subjects leave no room on a 64-pixel canvas"):
        compose([one] * 16, 64, FLUX_STYLE, rng)
    with pytest.raises(ValueError, match="mask is 4x3, image 3x4"):
        cut_out(noise(3, 4), np.ones((3, 4), dtype=bool))
    with pytest.raises(ValueError, match="no foreground"):
        cut_out(noise(3, 4), np.zeros((4, 3), dtype=bool))
