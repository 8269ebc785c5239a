"""The subjects: particular, unheard of, and as many as the experiment asks for."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini import subjects, world
from mini.art import COLOURS, SUBJECT_ACCESSORIES, Thing
from mini.cast import CAST
from mudi.images import load_mask
from mudi.metadata import load_subjects

SUBJECTS = [s for chosen in subjects.SETS.values() for s in chosen]
TRAITS = [field.name for field in fields(Thing)]


def test_no_caption_and_no_character_has_a_subjects_word() -> None:
    rng = np.random.default_rng(5)
    captions = [
        world.random_caption(world.random_things(rng), "red striped", rng) for _ in range(5000)
    ]
    words = {word for text in captions for word in re.findall("[a-z]+", text.lower())}
    assert not (words | set(CAST)) & {subject.token for subject in SUBJECTS}


def test_no_colour_word_tells_a_subject_and_no_training_thing_wears_what_it_does() -> None:
    assert not set(subjects.SHADES) & set(COLOURS)
    for subject in SUBJECTS:
        assert subject.thing.accessory in SUBJECT_ACCESSORIES
        assert subject.thing.bands > 1
        assert subject.thing.paint != subject.thing.second_paint


def test_half_of_the_evaluated_pairs_are_of_one_class_and_no_pilot_is_evaluated() -> None:
    nouns = [{s.thing.noun for s in subjects.SETS[name]} for name in subjects.PAIRS]
    assert len(nouns) == 8 and sum(len(found) == 1 for found in nouns) == 4
    pilots = {key for keys in subjects.PILOT.values() for key in keys}
    assert not pilots & {key for keys in subjects.PAIRS.values() for key in keys}
    assert [len(subjects.SETS[name]) for name in ("three", "five")] == [3, 5]


@pytest.mark.parametrize("name", subjects.DOSES)
@pytest.mark.parametrize("traits", [1, 2, 3, 4])
def test_a_dose_is_a_number_of_traits(name: str, traits: int) -> None:
    one, other = (subject.thing for subject in subjects.SETS[f"{name}_dose_{traits}"])
    differing = [trait for trait in TRAITS if getattr(one, trait) != getattr(other, trait)]
    assert len(differing) == traits


def test_tokens_differ_within_a_set_and_photos_show_the_whole_subject() -> None:
    for chosen in subjects.SETS.values():
        assert len({subject.token for subject in chosen}) == len(chosen)
    for subject in subjects.SUBJECTS.values():
        [photo] = subjects.subject_photos(subject, 1, np.random.default_rng(0))
        assert photo.mask.sum() > 300 and subject.name in photo.caption


@pytest.mark.parametrize("name", subjects.SETS)
def test_written_folder_is_one_that_training_takes(tmp_path: Path, name: str) -> None:
    chosen = subjects.subjects_of(name)
    folder = subjects.write_pair(tmp_path / name, chosen, np.random.default_rng(0))
    read = load_subjects(folder, min_subjects=2)
    assert list(read.names.values()) == [subject.name for subject in chosen]
    assert len(read.photos) == 5 * len(chosen) and not read.warnings


def test_written_masks_are_the_drawn_ones(tmp_path: Path) -> None:
    chosen = subjects.subjects_of("two_foxes")
    folder = subjects.write_pair(tmp_path / "pair", chosen, np.random.default_rng(3), photos=1)
    rng = np.random.default_rng(3)
    for key, subject in zip("ab", chosen, strict=True):
        photo = subjects.subject_photos(subject, 1, rng)[0]
        assert np.array_equal(load_mask(folder / f"mask_{key}00.png"), photo.mask)
        assert np.array_equal(np.asarray(Image.open(folder / f"{key}00.png")), photo.pixels)
