"""Subjects and sets of the second world, for the base that knows its words.

They take the place of those in `mini.subjects` with that base's weights. Every subject has a body
of two colours that no colour word tells, and an emoji on, of which training showed other shapes.
"""

from mini.art import Paint, Thing
from mini.subjects import Subject

SHADES = {  # RGB, 0 to 1; none is a colour with a name in the world
    "mint": (0.60, 0.98, 0.78),
    "coral": (1.00, 0.45, 0.38),
    "cream": (1.00, 0.95, 0.78),
    "navy": (0.12, 0.16, 0.45),
    "olive": (0.52, 0.55, 0.18),
    "lilac": (0.80, 0.68, 1.00),
    "gold": (0.88, 0.70, 0.16),
    "charcoal": (0.25, 0.26, 0.28),
    "wine": (0.50, 0.06, 0.22),
    "sky": (0.55, 0.80, 1.00),
    "lime": (0.70, 0.95, 0.20),
    "rust": (0.70, 0.32, 0.12),
}
KEPT_SATURATION = 0.15
STRIPES = 4  # bands; training things have two or five


def _shade(name: str) -> Paint:
    return Paint(0.0, KEPT_SATURATION, SHADES[name], name)


def _subject(token: str, noun: str, upper: str, lower: str, worn: str, bands: int = 2) -> Subject:
    """Make a subject from names of shades; what it wears keeps the emoji's own colours."""
    thing = Thing(noun, _shade(upper), worn, second_paint=_shade(lower), bands=bands)
    return Subject(token, thing)


SUBJECTS = {
    "mint robot": _subject("olis", "robot", "mint", "wine", "top hat"),
    "coral robot": _subject("vrn", "robot", "coral", "navy", "glasses"),
    "rust bear": _subject("hta", "teddy bear", "rust", "cream", "bow"),
    "lilac bear": _subject("kem", "teddy bear", "lilac", "charcoal", "cap"),
    "coral fox": _subject("zul", "fox", "coral", "cream", "crown"),
    "sky fox": _subject("pll", "fox", "sky", "navy", "flower"),
    "charcoal cat": _subject("ubo", "cat", "charcoal", "sky", "glasses"),
    "lime cat": _subject("dref", "cat", "lime", "wine", "bow", STRIPES),
    "gold owl": _subject("gax", "owl", "gold", "navy", "top hat"),
    "mint owl": _subject("yld", "owl", "mint", "rust", "flower"),
    "gold dog": _subject("mig", "dog", "gold", "wine", "crown"),
    "mint car": _subject("sna", "car", "mint", "charcoal", "bow"),
    "wine penguin": _subject("ovi", "penguin", "wine", "cream", "sun hat"),
    "lilac frog": _subject("teb", "frog", "lilac", "olive", "top hat", STRIPES),
    "olive rabbit": _subject("qex", "rabbit", "olive", "coral", "cap"),
    "sky panda": _subject("wup", "panda", "sky", "rust", "sun hat"),
}
DOSES = {  # of likeness: a pair differs in one, two, three, four traits
    "fox": (
        _subject("zul", "fox", "coral", "cream", "crown"),
        _subject("pll", "fox", "navy", "cream", "crown"),
        _subject("pll", "fox", "navy", "lime", "crown"),
        _subject("pll", "fox", "navy", "lime", "glasses"),
        _subject("pll", "cat", "navy", "lime", "glasses"),
    ),
    "robot": (
        _subject("olis", "robot", "mint", "wine", "bow"),
        _subject("vrn", "robot", "gold", "wine", "bow"),
        _subject("vrn", "robot", "gold", "sky", "bow"),
        _subject("vrn", "robot", "gold", "sky", "top hat"),
        _subject("vrn", "owl", "gold", "sky", "top hat"),
    ),
}
PAIRS = {
    "robot_and_teddy_bear": ("mint robot", "rust bear"),
    "cat_and_dog": ("charcoal cat", "gold dog"),
    "fox_and_car": ("coral fox", "mint car"),
    "rabbit_and_panda": ("olive rabbit", "sky panda"),
    "two_robots": ("mint robot", "coral robot"),
    "two_teddy_bears": ("rust bear", "lilac bear"),
    "two_foxes": ("coral fox", "sky fox"),
    "two_cats": ("charcoal cat", "lime cat"),
}  # evaluated
PILOT = {"penguin_and_frog": ("wine penguin", "lilac frog"), "two_owls": ("gold owl", "mint owl")}
MORE = {
    "three": ("mint robot", "lilac bear", "lime cat"),
    "five": ("sky fox", "gold dog", "mint car", "wine penguin", "olive rabbit"),
}
SETS = {name: [SUBJECTS[key] for key in keys] for name, keys in (PAIRS | PILOT | MORE).items()} | {
    f"{name}_dose_{traits}": [family[0], family[traits]]
    for name, family in DOSES.items()
    for traits in range(1, len(family))
}
