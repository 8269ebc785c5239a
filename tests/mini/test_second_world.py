"""The second world's subjects: particular, unheard of, and as many as the experiment asks for."""

import re
from dataclasses import fields

import numpy as np
import pytest

from mini import second_world, world
from mini.art import COLOURS, SUBJECT_ACCESSORIES, Thing
from mini.cast import CAST
from mini.subjects import subject_photos

SUBJECTS = [s for chosen in second_world.SETS.values() for s in chosen]
TRAITS = [field.name for field in fields(Thing)]


def test_no_caption_and_no_character_has_a_subjects_word() -> None:
    rng = np.random.default_rng(5)
    captions = [
        world.random_caption(world.random_things(rng), "red striped", rng) for _ in range(5000)
    ]
    words = {word for text in captions for word in re.findall("[a-z]+", text.lower())}
    assert not (words | set(CAST)) & {subject.token for subject in SUBJECTS}


def test_no_colour_word_tells_a_subject_and_no_training_thing_wears_what_it_does() -> None:
    assert not set(second_world.SHADES) & set(COLOURS)
    for subject in SUBJECTS:
        assert subject.thing.accessory in SUBJECT_ACCESSORIES
        assert subject.thing.bands > 1
        assert subject.thing.paint != subject.thing.second_paint


def test_half_of_the_evaluated_pairs_are_of_one_class_and_no_pilot_is_evaluated() -> None:
    nouns = [{s.thing.noun for s in second_world.SETS[name]} for name in second_world.PAIRS]
    assert len(nouns) == 8 and sum(len(found) == 1 for found in nouns) == 4
    pilots = {key for keys in second_world.PILOT.values() for key in keys}
    assert not pilots & {key for keys in second_world.PAIRS.values() for key in keys}
    assert [len(second_world.SETS[name]) for name in ("three", "five")] == [3, 5]


@pytest.mark.parametrize("name", second_world.DOSES)
@pytest.mark.parametrize("traits", [1, 2, 3, 4])
def test_a_dose_is_a_number_of_traits(name: str, traits: int) -> None:
    one, other = (subject.thing for subject in second_world.SETS[f"{name}_dose_{traits}"])
    differing = [trait for trait in TRAITS if getattr(one, trait) != getattr(other, trait)]
    assert len(differing) == traits


def test_tokens_differ_within_a_set_and_photos_show_the_whole_subject() -> None:
    for chosen in second_world.SETS.values():
        assert len({subject.token for subject in chosen}) == len(chosen)
    for subject in second_world.SUBJECTS.values():
        [photo] = subject_photos(subject, 1, np.random.default_rng(0))
        assert photo.mask.sum() > 300 and subject.name in photo.caption
