"""Which pictures are learned from, and how rounds compare."""

import numpy as np
import pytest
from looping import PROMPTS, good_picture
from PIL import Image

from mudi.loop.picking import Candidate, choose, how_many, only_subject, thumbnail, why_none
from mudi.loop.rounds import best_round, ended, figures_of
from mudi.loop.settings import Pick, Stop

# Picks


def line(name: str, score: float = 0.9, verdict: str = "good", **more: object) -> dict:
    subjects = {"a": {"detection": 0}, "b": {"detection": 1}}
    scores = {"net": {"score": score, "verdict": verdict, "subjects": subjects}}
    usual = {"image": name, "prompt": "p", "named": ["a", "b"], "nearest": {"net": ["a", "b"]}}
    return {**usual, "boxes": [[0, 0, 4, 4], [4, 0, 8, 4]], "scores": scores, **more}


def candidate(number: int, made: dict, kept: bool | None = None) -> Candidate:
    """Each with a thumbnail of its own."""
    seen = np.zeros(3 * 16 * 16)
    seen[number] = 1
    return Candidate(made, seen, kept)


def test_what_becomes_of_every_kind_of_picture():
    made = [
        line("third best", 0.8), line("best", 0.95), line("second", 0.9), line("weak", 0.4),
        line("mixed", verdict="mixed"), line("swapped", nearest={"net": ["b", "a"]}),
        {"image": "x", "problem": "cannot be read"}, line("other prompt", 0.7, prompt="q"),
    ]  # fmt: skip
    fates = choose([candidate(i, m) for i, m in enumerate(made)], Pick(per_prompt=2))
    assert fates == [
        "enough", "picked", "picked", "below the bar", "mixed", "mixed", "unreadable", "picked",
    ]  # fmt: skip


def test_a_picture_like_a_better_one_is_passed_over():
    better, same = candidate(0, line("x", 0.9)), candidate(0, line("y", 0.8, prompt="q"))
    assert choose([same, better], Pick()) == ["like a better one", "picked"]


def test_hands_reject_always_and_are_asked_for_by_a_setting():
    made = [candidate(i, line(f"{i}"), kept) for i, kept in enumerate((True, False, None))]
    assert choose(made, Pick(per_prompt=9)) == ["picked", "not kept by hand", "picked"]
    by_hand = Pick(per_prompt=9, by_hand=True)
    assert choose(made, by_hand) == ["picked", "not kept by hand", "not kept by hand"]


def test_all_embedders_but_the_last_pick():
    """Net 1 says good, net 2 bad: as the last it has no say; with a third behind it, it has."""
    good, bad = line("x")["scores"]["net"], line("x", verdict="extra")["scores"]["net"]
    nearest = {name: ["a", "b"] for name in "123"}
    two = line("x", scores={"1": good, "2": bad}, nearest=nearest)
    three = line("x", scores={"1": good, "2": bad, "3": good}, nearest=nearest)
    assert choose([candidate(0, two)], Pick()) == ["picked"]
    assert choose([candidate(0, three)], Pick()) == ["extra"]


def test_embedders_that_take_each_subject_for_the_other_pick_nothing():
    other = {"a": {"detection": 1}, "b": {"detection": 0}}
    one = {"score": 0.9, "verdict": "good", "subjects": line("x")["scores"]["net"]["subjects"]}
    nearest = {"1": ["a", "b"], "2": ["b", "a"], "3": ["a", "b"]}
    scores = {"1": one, "2": {**one, "subjects": other}, "3": one}
    made = line("x", scores=scores, nearest=nearest)
    assert choose([candidate(0, made)], Pick()) == ["mixed"]


def test_thumbnails_correlate_as_pictures_do():
    image = good_picture(PROMPTS[0], 1)
    darker = image.point(lambda value: value * 0.5 + 20)
    assert thumbnail(image) @ thumbnail(darker) == pytest.approx(1, abs=1e-3)
    assert thumbnail(image) @ thumbnail(good_picture(PROMPTS[0], 2)) < 0.9
    assert not thumbnail(Image.new("RGB", (8, 8), "red")).any()


def test_pictures_on_one_bright_background_are_not_alike_by_it():
    def picture(left, top):
        image = Image.new("RGB", (64, 64), "red")
        image.paste("white", (left, top, left + 14, top + 14))
        return thumbnail(image)

    assert picture(4, 4) @ picture(40, 40) < 0.5
    assert picture(4, 4) @ picture(4, 4) == pytest.approx(1)


def test_what_is_said_of_picks():
    picks = [
        {"fate": "mixed", "score": 0.2, "named": ["a"]},
        {"fate": "mixed", "score": 0.3, "named": ["b"]},
        {"fate": "unreadable", "score": None, "named": ["b"]},
    ]
    assert why_none(picks) == (
        "none of 3 pictures was picked: 2 mixed, 1 unreadable; the best score is 0.300"
    )
    alone = [{"fate": "picked", "named": ["a"]}, {"fate": "mixed", "named": ["a", "b"]}]
    assert only_subject(alone) == "a"
    many = [*picks, *alone, {"fate": "picked"}]
    assert how_many(many, 10, (3, 1)) == (  # 1/8 of the draws each, a photo 3/40
        "2 of 6 pictures are picked; each is drawn 1.7 times as often as one of the 10 photos"
    )
    assert only_subject([*alone, {"fate": "picked", "named": ["a", "b"]}]) is None


# Figures


def solo(*nearest: str) -> dict:
    scores = {"net": {"score": 0.5, "verdict": "?"}}
    boxes = [[0, 0, 1, 1]] * len(nearest)
    return {"named": ["a"], "boxes": boxes, "scores": scores, "nearest": {"net": nearest}}


def test_figures_by_hand():
    """Two of three together are good; alone: one right, two that bleed, one doubled, one empty."""
    together = [line("x", 0.9), line("y", 0.7), line("z", 0.2, "missing + mixed")]
    alone = [solo("a"), solo("b"), solo("a", "b"), solo("a", "a"), solo()]
    found = figures_of([*together, *alone, {"named": ["a", "b"], "problem": "broken"}])
    assert (found.pictures, found.solo_pictures) == (3, 5)
    assert found.success == pytest.approx(2 / 3) and found.score == pytest.approx(0.6)
    assert found.missing == found.mixed == pytest.approx(1 / 3) and found.extra == 0
    assert (found.solo_success, found.solo_bleed, found.solo_count) == (1 / 5, 2 / 4, 3 / 5)
    assert found.measure("success") == found.success and found.measure("score") == found.score
    assert figures_of(alone).measure("score") == 1 / 5


@pytest.mark.parametrize(
    "measures, rules, best, told",
    [
        ([0.5], Stop(), 0, None),
        ([0.5, 0.6], Stop(), 1, None),
        ([0.5, 0.5], Stop(), 0, "stays: 0.500 in round 0, 0.500 in round 1"),
        ([0.5, 0.6, 0.4], Stop(), 1, "falls: 0.600 in round 1, 0.400 in round 2"),
        ([0.5, 0.4, 0.6], Stop(patience=2), 2, None),
        ([0.5, 0.55], Stop(min_gain=0.1), 0, "stays"),
    ],
)
def test_the_loop_ends_where_the_measure_falls_or_stays(measures, rules, best, told):
    assert best_round(measures, rules.min_gain) == best
    why = ended(measures, rules)
    assert (why is None) == (told is None) and (told or "") in (why or "")
