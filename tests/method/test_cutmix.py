"""Cut-Mix, the baseline: whole photos side by side, from the pixels to the training script."""

import random
from dataclasses import replace

import numpy as np
import pytest
from helpers import BLACK, COLOURS, NAMES, WHITE, DataFolder
from PIL import Image
from test_args import complaints
from test_data import ALWAYS, SIZE, draws, make_prior

from mudi import preview
from mudi.data import SegMixDataset
from mudi.metadata import load_subjects
from mudi.segmix import (
    CUTMIX_NEGATIVE_PROMPT,
    SDXL_STYLE,
    collage_prompt,
    compose_cutmix,
    cover_half,
    cutmix_style,
    flip,
)

CUTMIX = replace(ALWAYS, mix="cutmix")
RED, GREEN = COLOURS[:2]


def photo(rows: str) -> tuple[Image.Image, np.ndarray]:
    """A photo of letters: r, g and b are colours, capitals the subject's pixels."""
    colours = {"r": RED, "g": GREEN, "b": COLOURS[2]}
    lines = rows.split()
    pixels = np.array([[colours[letter.lower()] for letter in line] for line in lines], np.uint8)
    mask = np.array([[letter.isupper() for letter in line] for line in lines])
    return Image.fromarray(pixels), mask


def letters(image: Image.Image) -> list[str]:
    names = {RED: "r", GREEN: "g", COLOURS[2]: "b", WHITE: "w", BLACK: "k"}
    pixels = np.asarray(image)
    return ["".join(names[tuple(int(v) for v in pixel)] for pixel in row) for row in pixels]


def test_a_photo_is_cropped_to_half_the_canvas_about_its_subject():
    """4 x 4 covers 2 x 4 unscaled; the subject's middle is x = 3, so the crop is columns 2, 3."""
    image, mask = photo("rgrR rgbB rgrR rgbb")
    half = cover_half(image, mask, size=4)
    assert letters(half.image) == ["rr", "bb", "rr", "bb"]
    assert half.mask.tolist() == [[False, True]] * 3 + [[False, False]]
    image, mask = photo("rGbr rGbr rGbr rgbr")
    assert letters(cover_half(image, mask, size=4).image) == ["rg"] * 4  # the middle is x = 1.5


def test_a_small_photo_is_enlarged_and_a_tall_one_cropped_in_height():
    """2 x 2 to 4 x 4, its right half; of 2 x 8 the four rows about rows 4 and 5."""
    image, mask = photo("rG rG")
    half = cover_half(image, mask, size=4)
    assert half.image.size == (2, 4) and half.mask.all()
    image, mask = photo("rr rr rr gg GG BB gg rr")
    half = cover_half(image, mask, size=4)
    assert letters(half.image) == ["gg", "gg", "bb", "gg"]
    assert half.mask[:, 0].tolist() == [False, True, True, False]


def test_the_halves_stand_side_by_side_and_a_coin_says_who_is_left():
    one = cover_half(*photo("rrrr rrrr rRRr rrrr"), size=4)
    two = cover_half(*photo("gggg gGgg gggg gggg"), size=4)
    seen = set()
    for seed in range(8):
        collage = compose_cutmix([one, two], random.Random(seed))
        first_left = collage.boxes[0].left == 0
        seen.add(first_left)
        assert letters(collage.image) == ["rrgg" if first_left else "ggrr"] * 4
        assert collage.boxes == ([(0, 0, 2, 4), (2, 0, 4, 4)][:: 1 if first_left else -1])
        masks = [one.mask, two.mask] if first_left else [two.mask, one.mask]
        assert np.array_equal(collage.mask, np.hstack(masks))
    assert seen == {True, False}
    mirrored = compose_cutmix([flip(one), flip(two)], random.Random(0))
    assert mirrored.image.size == (4, 4)


def test_only_two_photos_are_joined():
    half = cover_half(*photo("RR RR"), size=2)
    with pytest.raises(ValueError, match="Cut-Mix joins 2 photos, got 3"):
        compose_cutmix([half] * 3, random.Random(0))


def test_the_prompt_names_the_stitched_look():
    told = collage_prompt(cutmix_style(SDXL_STYLE), ["olis robot", "hta teddy bear"], "")
    assert told == f"a photo of a olis robot and a hta teddy bear, {CUTMIX_NEGATIVE_PROMPT}."


def test_a_sample_is_two_whole_photos_backgrounds_included(folder: DataFolder):
    """Photos are 64 x 48 with the subject in the middle: at 32 px the crop is their middle."""
    dataset = SegMixDataset(load_subjects(folder.path), CUTMIX)
    samples = [dataset[draw][0] for draw in draws(6)]
    for sample in samples:
        assert sample.pixels.shape == (SIZE, SIZE, 3) and sample.mixed
        assert not (sample.pixels == 255).all(-1).any()  # no plain canvas is left
        left, right = sample.mask[:, : SIZE // 2], sample.mask[:, SIZE // 2 :]
        assert np.array_equal(left, right)  # the subjects' rectangles, placed alike
        assert left[SIZE // 4 + 1 : SIZE * 3 // 4 - 1].all() and not left[: SIZE // 4 - 1].any()
        assert sample.prompt in dataset.prompts()
        assert sample.prompt.startswith(f"a photo of a {NAMES['a']} and a {NAMES['b']}, split")
    assert len({sample.pixels.tobytes() for sample in samples}) > 1


def test_the_prior_half_is_cut_alike(folder: DataFolder, tmp_path):
    prior = make_prior(tmp_path / "prior")
    dataset = SegMixDataset(load_subjects(folder.path), CUTMIX, prior)
    for draw in draws(4):
        _, sample = dataset[draw]
        assert sample.prompt == f"a photo of a robot and a teddy bear, {CUTMIX_NEGATIVE_PROMPT}."
        assert sample.prompt in dataset.prompts()
        assert not (sample.pixels == 255).all(-1).any()


def test_seg_mix_is_the_default_and_draws_as_ever(folder: DataFolder):
    subjects = load_subjects(folder.path)
    plain, named = (SegMixDataset(subjects, o) for o in (ALWAYS, replace(ALWAYS, mix="segmix")))
    for draw in draws(3):
        assert np.array_equal(plain[draw][0].pixels, named[draw][0].pixels)


@pytest.mark.parametrize(
    "line, told",
    [
        ("--segmix_num_subjects 3", "joins two photos: leave --segmix_num_subjects out"),
        ("--relative_scale 0.5", "no --relative_scale, --subject_scales"),
        ("--subject_scales a=1 b=0.5", "no --relative_scale, --subject_scales"),
    ],
)
def test_flags_that_do_not_go_with_it_are_told(line, told):
    assert complaints("--mix cutmix") == []
    [complaint] = complaints(f"--mix cutmix {line}")
    assert complaint.startswith("--mix cutmix ") and complaint.endswith(told)


def test_either_script_trains_on_it(backbone, tmp_path):
    out = backbone.train(tmp_path / "out", "--mix cutmix --segmix_prob 1 --max_train_steps 2")
    sheet = np.asarray(Image.open(out / "collages-000000-0.png"))
    assert sheet.std() > 0 and (out / "pytorch_lora_weights.safetensors").is_file()


def test_the_preview_shows_it(folder: DataFolder, tmp_path):
    words = ["--instance_data_dir", str(folder.path), "--resolution", "32", "--num_collages", "4"]
    path = {mix: tmp_path / f"{mix}.png" for mix in ("segmix", "cutmix")}
    for mix, output in path.items():
        preview.main(preview.parse_args([*words, "--output", str(output), "--mix", mix]))
    sheets = [np.asarray(Image.open(output)) for output in path.values()]
    assert sheets[0].shape == sheets[1].shape and (sheets[0] != sheets[1]).any()
