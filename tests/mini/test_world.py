"""The miniature's world: exact masks, captions that fit, no subject in any training scene."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini import art, backgrounds, subjects, world
from mini.art import Paint, Thing
from mini.cast import CAST, NAMES, PER_CLASS
from mini.training.stream import held_out_scenes, scene_loader
from mudi.images import tight_box
from mudi.segmix import SDXL_STYLE, collage_prompt

SCENES = [world.draw_scene(np.random.default_rng(seed)) for seed in range(300)]


def test_a_seed_draws_the_same_scene() -> None:
    again = world.draw_scene(np.random.default_rng(7))
    assert np.array_equal(again.pixels, SCENES[7].pixels)
    assert np.array_equal(again.masks, SCENES[7].masks)
    assert again.caption == SCENES[7].caption


def test_masks_and_boxes_are_exact() -> None:
    for scene in SCENES:
        assert scene.pixels.shape == (64, 64, 3) and scene.pixels.dtype == np.uint8
        assert scene.masks.sum(axis=0).max() == 1  # a pixel belongs to one thing
        assert scene.boxes == [tight_box(mask) for mask in scene.masks]
        assert len(scene.masks) == len(scene.things)


def test_outside_the_masks_is_the_background() -> None:
    for scene in SCENES:
        if scene.background in ("white", "black"):
            free = scene.pixels[~scene.masks.any(axis=0)]
            level = 255 if scene.background == "white" else 0
            assert np.median(free) == level  # all but soft edges


def test_captions_name_things_and_background() -> None:
    for scene in SCENES:
        for thing in scene.things:
            assert thing.noun in scene.caption, scene.caption
        named = re.search(r"(\w+(?: \w+)?) background", scene.caption)
        if named and named[1] != "simple":
            assert named[1].endswith(scene.background.split()[-1]), scene.caption


def test_segmix_phrasing_occurs_word_for_word_and_on_white_only() -> None:
    simple = [scene for scene in SCENES if scene.caption.endswith(", simple background.")]
    assert {scene.background for scene in simple} == {"white"}
    pairs = [s for s in simple if len(s.things) == 2 and not any(t.accessory for t in s.things)]
    nouns = pairs[0].things[0].noun, pairs[0].things[1].noun
    pattern = collage_prompt(SDXL_STYLE, [rf"(?:\w+ )*{noun}" for noun in nouns])
    assert re.fullmatch(pattern, pairs[0].caption)


def test_four_or_five_things_stand_in_a_tenth_of_the_scenes() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([len(world.random_things(rng)) for _ in range(4000)])
    assert set(counts) == {1, 2, 3, 4, 5}
    assert 0.07 < np.mean(counts >= 4) < 0.13


def test_a_class_does_not_tell_the_colours() -> None:
    rng = np.random.default_rng(0)
    tiles = [art.draw(Thing("fox", art.random_paint(rng)), 32, 0, False) for _ in range(100)]
    means = np.array([tile[..., :3].sum((0, 1)) / tile[..., 3].sum() for tile in tiles])
    assert (means.std(axis=0) > 0.15).all()  # of 1


def test_a_character_always_looks_the_same_and_no_subject_has_its_word() -> None:
    assert len(CAST) == len(set(CAST.values())) == 16 * PER_CLASS
    named = [(s, t) for s in SCENES for t in s.things if t in NAMES]
    assert 0.15 < len(named) / sum(len(s.things) for s in SCENES) < 0.4
    for scene, thing in named:
        assert f"{NAMES[thing]} {thing.noun}" in scene.caption
    tokens = {subject.token for subject in subjects.SUBJECTS.values()}
    words = {word for scene in SCENES for word in re.findall("[a-z]+", scene.caption.lower())}
    assert not tokens & (words | set(CAST))


def test_a_colour_word_is_the_colour_of_the_thing() -> None:
    """Mean colour of drawn things, nearest of the named colours: measured 97 %; chance is 10 %."""
    rng = np.random.default_rng(0)
    palette = np.array(list(art.COLOURS.values()))
    right = []
    for number in range(200):
        colour, noun = list(art.COLOURS)[number % 10], list(art.KINDS)[number % 16]
        tile = art.draw(Thing(noun, art.named_paint(colour, rng)), 32, 0, False)
        bright = tile[tile[..., 3] > 250][:, :3] / 255
        shade = np.median(bright[bright.mean(-1) >= np.median(bright.mean(-1))], axis=0)
        nearest = np.argmin(np.linalg.norm(palette - shade, axis=1))
        right.append(list(art.COLOURS)[nearest] == colour)
    print(np.mean(right))
    assert np.mean(right) > 0.85


def test_a_body_of_two_colours_has_them_above_each_other() -> None:
    red, blue = Paint(tint=(1, 0, 0), saturation=0), Paint(tint=(0, 0, 1), saturation=0)
    tile = art.draw(Thing("teddy bear", red, second_paint=blue, bands=2), 64, 0, False)
    upper, lower = tile[: len(tile) // 2 - 2], tile[len(tile) // 2 + 2 :]
    assert upper[..., 2].max() == 0 < upper[..., 0].max()
    assert lower[..., 0].max() == 0 < lower[..., 2].max()


def test_captions_tell_colours_and_what_is_worn() -> None:
    red = Paint(name="red")
    worn = {"accessory": "hat 3", "accessory_paint": Paint(name="blue")}
    two = {"second_paint": Paint(name="pink"), "bands": 2}
    assert world.describe(Thing("fox", red, **worn)) == "red fox with a blue hat"
    assert world.describe(Thing("fox", red, **worn), False) == "red fox with a hat"
    assert world.describe(Thing("fox", red, **two)) == "red and pink fox"
    assert world.describe(Thing("fox", Paint(20))) == "fox"


def test_what_subjects_wear_occurs_in_no_training_scene() -> None:
    training, held = art.TRAINING_ACCESSORIES, art.SUBJECT_ACCESSORIES
    emoji = [{a.codepoint for a in group.values()} - {None} for group in (training, held)]
    assert not emoji[0] & emoji[1]
    assert all(s.thing.accessory in held for s in subjects.SUBJECTS.values())

    rng = np.random.default_rng(0)
    things = [thing for _ in range(5000) for thing in world.random_things(rng)]
    worn = {thing.accessory for thing in things}
    assert worn == {None, *training}
    assert not set(things) & {subject.thing for subject in subjects.SUBJECTS.values()}


def test_paint_turns_hues_about_the_grey_axis() -> None:
    assert np.allclose(Paint().matrix(), np.eye(3), atol=1e-6)
    red_to_green = Paint(turn=120).matrix() @ [1, 0, 0]
    assert np.allclose(red_to_green, [0, 1, 0], atol=1e-6)
    assert np.allclose(Paint(saturation=0).matrix() @ [0.9, 0.3, 0], [0.4] * 3, atol=1e-6)
    assert np.allclose(Paint(tint=(1, 0.5, 0)).matrix() @ [1, 1, 1], [1, 0.5, 0], atol=1e-6)


def test_paste_by_hand() -> None:
    white = np.full((2, 2, 3), 255, dtype=np.float32)
    solid = np.array([[[200, 0, 0, 255], [100, 0, 0, 128]]], dtype=np.float32)  # (1, 2, 4)
    pixels, masks = world.paste(white, [solid, solid], [(0, 0), (0, 1)])
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[0, 1].tolist() == [227, 127, 127]  # 100 + 255 * 127 / 255
    assert masks.tolist() == [[[True, True], [False, False]], [[False, False], [True, True]]]

    _, masks = world.paste(white, [solid, solid[:, :1]], [(0, 0), (1, 0)])
    assert masks.tolist() == [[[True, False], [False, False]], [[False, True], [False, False]]]


def test_every_background_can_be_drawn_by_its_name() -> None:
    rng = np.random.default_rng(0)
    names = backgrounds.background_names()
    assert len(set(names)) == len(names)
    assert {backgrounds.random_name(rng) for _ in range(3000)} <= set(names)
    for name in names:
        pixels = backgrounds.draw_background(name, 48, rng)
        assert pixels.shape == (48, 48, 3) and 0 <= pixels.min() and pixels.max() <= 255
    for wrong in ("mauve", "red tartan", "white striped"):
        with pytest.raises(ValueError, match=wrong):
            backgrounds.draw_background(wrong, 48, rng)


def test_the_stream_goes_on_where_it_is_told_to() -> None:
    whole, later = iter(scene_loader(0, 0, 4, 0)), iter(scene_loader(0, 2, 2, 0))
    batch = next(whole)
    assert batch.pixels.shape == (4, 3, 64, 64) and batch.things.shape == (4, 1, 64, 64)
    assert -1 <= batch.pixels.min() and batch.pixels.max() <= 1
    assert batch.pixels[2:].equal(next(later).pixels)
    assert not batch.pixels.equal(held_out_scenes(4).pixels)


def test_the_sheet_is_written(tmp_path: Path) -> None:
    path = tmp_path / "scenes.png"
    world.main(world.parse_args(["--count", "8", "--output", str(path)]))
    assert Image.open(path).width == 8 * 160
