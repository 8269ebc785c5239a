import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudi.layouts import (
    Layout,
    LayoutError,
    UnitBox,
    layout_prompt,
    load_layout,
    parse_layout,
    random_layout,
)

NAMES = ["olis robot", "hta corgi"]
ROBOT, CORGI = UnitBox(0.125, 0.25, 0.5, 1.0), UnitBox(0.5, 0.5, 0.75, 1.0)
EXPECTED = Layout((ROBOT, CORGI), (1, 0))

PLAIN = """{"boxes": {"olis robot": [0.125, 0.25, 0.5, 1], "hta corgi": [0.5, 0.5, 0.75, 1.0]},
            "front_to_back": ["hta corgi", "olis robot"]}"""

GOOD = {
    "plain": PLAIN,
    "fenced": f"```json\n{PLAIN}\n```",
    "fence without a language": f"```\n{PLAIN}\n```",
    "chatter on both sides": f"Here's it, [left, top] in [0, 1):\n{PLAIN}\nIsn't it {{nice}}?",
    "draft before the answer": PLAIN.replace("0.125", "0.3") + " No, better: " + PLAIN,
    "thoughts": f'<think>Perhaps {{"boxes": oh... [[</think>{PLAIN}',
    "case and article": PLAIN.replace("olis robot", "An  Olis Robot").replace("hta", "the HTA"),
    "order by number": PLAIN.replace('["hta corgi", "olis robot"]', "[1, 0]"),
    "listed the other way round": (
        '{"boxes": {"hta corgi": [0.5, 0.5, 0.75, 1], "olis robot": [0.125, 0.25, 0.5, 1]}}'
    ),
    "lists in the subjects' order": (
        '{"boxes": [[0.125, 0.25, 0.5, 1], [0.5, 0.5, 0.75, 1]], "front_to_back": [1, 0]}'
    ),
}

BAD = {
    "empty": ("", "no JSON in ''"),
    "no JSON": ("I can't draw.", 'no JSON in "I can\'t draw."'),
    "another JSON": ('{"error": "busy"}', 'JSON without "boxes"'),
    "cut off": (PLAIN[:100], "the JSON is not closed: it ends in"),
    "cut off after the boxes": (PLAIN[:-5], "not closed"),
    "draft, then cut off": (PLAIN + PLAIN[:-5], "not closed"),
    "no comma": (PLAIN.replace("1],", "1]"), "broken JSON .*Expecting ',' delimiter"),
    "keys without quotes": ("{boxes: " + PLAIN[9:], 'JSON without "boxes"'),
    "trailing comma": (PLAIN.replace("1]", "1,]"), "broken JSON"),
    "single quotes": (PLAIN.replace('"', "'"), "no JSON in"),
    "boxes without a key": ('{"olis robot": [0, 0, 1, 1]}', 'JSON without "boxes"'),
    "boxes under another key": (PLAIN.replace("boxes", "layout"), 'JSON without "boxes"'),
    "corners by key": (
        '{"boxes": {"hta corgi": [0, 0, 1, 1], "olis robot": {"x1": 0, "y1": 0, "x2": 1}}}',
        r'"olis robot": a box is \[left, top, right, bottom\], not',
    ),
    "entries": (
        '{"boxes": [{"name": "hta corgi", "box": [0, 0, 1, 1]}]}',
        "1 boxes for 2 subjects",
    ),
    "a canvas": ('{"canvas": [512, 512], ' + PLAIN[1:], 'unknown entries "canvas"; there are "bo'),
    "per cent": (
        '{"boxes": {"olis robot": [5, 30, 45, 95], "hta corgi": [0.5, 0.5, 1, 1]}}',
        r'"olis robot" \[5.0, 30.0, 45.0, 95.0\] reaches outside .* \(no pixels, no per cent\)$',
    ),
    "pixels": (
        '{"boxes": {"olis robot": [0, 0, 1, 1], "hta corgi": [512, 512, 768, 1024]}}',
        r'"hta corgi" \[512.0, 512.0, 768.0, 1024.0\] reaches outside',
    ),
    "beyond any number": (PLAIN.replace("0.25", "-1" + "0" * 400), "four numbers"),
    "missing subject": (
        '{"boxes": {"olis robot": [0, 0, 1, 1]}}',
        'no box for "hta corgi"; the subjects are "olis robot", "hta corgi"',
    ),
    "unknown subject": (
        PLAIN.replace("hta corgi", "dog"),
        'unknown subject "dog"; no box for "hta',
    ),
    "subject too many": (
        PLAIN.replace('{"olis', '{"tree": [0, 0, 1, 1], "olis'),
        '^unknown subject "tree"; the subjects are',
    ),
    "subject twice": (PLAIN.replace("hta corgi", "olis robot"), '"olis robot" stands twice'),
    "subject twice by article": (
        '{"boxes": {"a hta corgi": [0, 0, 1, 1], "hta corgi": [0, 0, 1, 1], "olis robot": []}}',
        'two boxes for "hta corgi"',
    ),
    "too few in a list": (
        '{"boxes": [[0, 0, 1, 1]]}',
        '1 boxes for 2 subjects: "olis robot", "hta',
    ),
    "three numbers": (
        PLAIN.replace("0.25, ", ""),
        r'"olis robot": a box is \[left, .* not \[0.125, 0.5',
    ),
    "words": (PLAIN.replace("0.25", '"top"'), '"olis robot": the box has to be four numbers'),
    "numbers as text": (PLAIN.replace("0.25", '"0.25"'), "four numbers"),
    "NaN": (PLAIN.replace("0.25", "NaN"), "four numbers"),
    "infinite": (PLAIN.replace("0.25", "1e999"), "four numbers"),
    "true": (PLAIN.replace("0.25", "true"), "four numbers"),
    "no box at all": ('{"boxes": {"olis robot": {}, "hta corgi": {}}}', r"a box is .* not \{\}"),
    "boxes is a number": ('{"boxes": 5}', '"boxes" must hold a box for every subject, not 5'),
    "boxes is empty": ('{"boxes": {}}', "must hold a box"),
    "outside": (
        PLAIN.replace("0.75", "1.2"),
        r'^"hta corgi" \[0.5, 0.5, 1.2, 1.0\] reaches outside',
    ),
    "negative": (PLAIN.replace("0.125", "-0.1"), '"olis robot" .* reaches outside'),
    "empty box": (PLAIN.replace("0.75", "0.5"), '"hta corgi" .* is empty: right must exceed left'),
    "corners swapped": (PLAIN.replace("0.25", "1").replace("1]", "0.2]"), "is empty"),
    "two bad boxes": (
        PLAIN.replace("0.75", "0.4").replace("0.125", "-1"),
        '"olis robot" .* outside .*; "hta corgi" .* is empty',
    ),
    "order with one missing": (
        PLAIN.replace(', "olis robot"]', "]"),
        r'front_to_back must list each of "olis robot", "hta corgi" once, not \[\'hta corgi\'\]',
    ),
    "order with a stranger": (PLAIN.replace('["hta corgi"', '["dog"'), "front_to_back must list"),
    "order is a word": (PLAIN.replace('["hta corgi", "olis robot"]', '"random"'), "front_to_back"),
    "photo is a number": (
        PLAIN[:-1] + ', "photos": {"hta corgi": 3}}',
        "photos must be file names",
    ),
    "photo of a stranger": (
        PLAIN[:-1] + ', "photos": {"dog": "a.jpg"}}',
        "unknown subject; they are",
    ),
    "endless nesting": ('{"boxes": ' + "[" * 100_000 + "]" * 100_000 + "}", "broken JSON"),
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
def test_a_good_answer_gives_the_layout_meant(answer):
    assert parse_layout(answer, NAMES) == EXPECTED


@pytest.mark.parametrize(("answer", "message"), BAD.values(), ids=BAD)
def test_a_bad_answer_is_refused_in_one_line_that_says_why(answer, message):
    with pytest.raises(LayoutError, match=message) as caught:
        parse_layout(answer, NAMES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda b: b[0] < b[2] and b[1] < b[3]),
    st.sampled_from([100, 255, 512, 1000, 1024]),
)
def test_only_fractions_are_taken(box, unit):
    answer = json.dumps({"boxes": [box]})
    assert parse_layout(answer, ["dog"]).boxes[0] == tuple(box)
    larger = [unit * edge for edge in box]
    if max(larger) > 1:
        with pytest.raises(LayoutError, match="reaches outside the canvas, 0 to 1"):
            parse_layout(json.dumps({"boxes": [larger]}), ["dog"])


@given(st.text() | st.text("{}[]\",:'01. adegox").map(lambda text: '{"boxes": ' + text))
def test_any_text_gives_a_layout_or_a_layout_error(answer):
    try:
        assert isinstance(parse_layout(answer, None), Layout)
    except LayoutError:
        pass


def test_the_prompt_s_own_example_is_an_answer_for_any_names_and_number():
    for names in (
        ["dog"],
        NAMES,
        ['a "quoted" cat', "größe {x} [1]", "b", "c", "d", "e", "f", "g"],
    ):
        text = layout_prompt("All of them on a beach.", names, (1280, 768))
        layout = parse_layout(text, names)
        assert len(layout.boxes) == len(names)
        assert layout.front_to_back == tuple(range(len(names)))
        assert "The picture: All of them on a beach.\n" in text
        assert "1.67 times as wide as it is high" in text


def test_a_file_gives_boxes_in_the_order_of_the_names_and_the_photos(tmp_path: Path):
    path = tmp_path / "layout.json"
    path.write_text(PLAIN[:-1] + ', "photos": {"hta corgi": "b02.jpg"}}')
    assert load_layout(path, NAMES) == Layout((ROBOT, CORGI), (1, 0), (None, "b02.jpg"))
    assert load_layout(path, NAMES[::-1]) == Layout((CORGI, ROBOT), (0, 1), ("b02.jpg", None))
    assert load_layout(str(path)) == load_layout(path, NAMES)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_layout_written_as_a_record_is_read_back_bit_for_bit(tmp_path: Path, count: int):
    layout = random_layout(count, random.Random(count))
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(asdict(layout)))
    assert load_layout(path) == layout
    assert load_layout(path, [f"subject {i}" for i in range(count)]) == layout


def test_a_bad_file_is_named(tmp_path: Path):
    path = tmp_path / "layout.json"
    with pytest.raises(LayoutError, match=r"layout.json: cannot be read \(.*No such file"):
        load_layout(path)
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(LayoutError, match=r"layout.json: cannot be read \(.*utf-8"):
        load_layout(path)
    path.write_text('{"boxes": [[0, 0, 1, 1]]}')
    with pytest.raises(LayoutError, match=r"layout.json: 1 boxes for 2 subjects"):
        load_layout(path, NAMES)
