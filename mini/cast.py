"""The cast: named characters of the world, each always of the same look.

A character's name is a made-up word before its class, as in "a bola fox". No subject has its word.
"""

from dataclasses import replace

import numpy as np

from mini.art import (
    COLOURS,
    KINDS,
    TRAINING_ACCESSORIES,
    Thing,
    named_paint,
    random_paint,
)

PER_CLASS = 16  # characters
CAST_SEED = 20_261
NAME_LETTERS = ("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou")
TWO_COLOURS_SHARE = 0.18  # of the things, with a body of two colours
STRIPES = 5  # bands of a striped thing; halves have two
STRIPED_SHARE = 0.4  # of the things of two colours
ACCESSORY_SHARE = 0.35  # of the things


def told_thing(noun: str, rng: np.random.Generator) -> Thing:
    """Draw a thing all of whose colours have names."""
    thing = Thing(noun, named_paint(_colour(rng), rng))
    if rng.random() < TWO_COLOURS_SHARE:
        others = [name for name in COLOURS if name != thing.paint.name]
        second = named_paint(str(rng.choice(others)), rng)
        bands = STRIPES if rng.random() < STRIPED_SHARE else 2
        thing = replace(thing, second_paint=second, bands=bands)
    if rng.random() < ACCESSORY_SHARE:
        thing = dressed(thing, rng)
    return thing


def plain_thing(noun: str, rng: np.random.Generator) -> Thing:
    """Draw a thing of any colours."""
    thing = Thing(noun, random_paint(rng))
    if rng.random() < TWO_COLOURS_SHARE:
        thing = replace(thing, second_paint=random_paint(rng), bands=2)
    if rng.random() < ACCESSORY_SHARE:
        thing = replace(dressed(thing, rng), accessory_paint=random_paint(rng))
    return thing


def dressed(thing: Thing, rng: np.random.Generator) -> Thing:
    """Return the thing with an accessory of a named colour; every kind is as frequent."""
    kinds = sorted({kind_of(name) for name in TRAINING_ACCESSORIES})
    kind = str(rng.choice(kinds))
    worn = str(rng.choice([name for name in TRAINING_ACCESSORIES if kind_of(name) == kind]))
    return replace(thing, accessory=worn, accessory_paint=named_paint(_colour(rng), rng))


def kind_of(accessory: str) -> str:
    """Return what captions call a training accessory."""
    return accessory.split()[0]


def _colour(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLOURS)))


def _make_cast() -> dict[str, Thing]:
    rng = np.random.default_rng(CAST_SEED)
    cast: dict[str, Thing] = {}
    for noun in KINDS:
        for _ in range(PER_CLASS):
            draw = told_thing if rng.random() < 0.7 else plain_thing
            thing = draw(noun, rng)
            if thing.accessory is None and rng.random() < 0.5:
                thing = dressed(thing, rng)
            name = ""
            while not name or name in cast:
                name = "".join(str(rng.choice(list(letters))) for letters in NAME_LETTERS)
            cast[name] = thing
    return cast


CAST = _make_cast()
NAMES = {thing: name for name, thing in CAST.items()}
CAST_OF = {
    noun: [thing for thing in CAST.values() if thing.noun == noun] for noun in KINDS
}  # class -> its characters
