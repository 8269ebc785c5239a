import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mudi.layout_json import layout_prompt, load_layout, parse_layout
from mudi.layouts import Layout, LayoutError, UnitBox, random_layout

NAMES = ["olis robot", "hta corgi"]
ROBOT, CORGI = UnitBox(0.125, 0.25, 0.5, 1.0), UnitBox(0.5, 0.5, 0.75, 1.0)
EXPECTED = Layout((ROBOT, CORGI), (1, 0))

PLAIN = """{"boxes": {"olis robot": [0.125, 0.25, 0.5, 1], "hta corgi": [0.5, 0.5, 0.75, 1.0]},
            "front_to_back": ["hta corgi", "olis robot"]}"""
ROBOT_PIXELS, CORGI_PIXELS = [128, 256, 512, 1024], [512, 512, 768, 1024]  # of 1024 x 1024
ORDER = '"front_to_back": ["hta corgi", "olis robot"]'

GOOD = {
    "plain": PLAIN,
    "fenced": f"```json\n{PLAIN}\n```",
    "fence without a language": f"```\n{PLAIN}\n```",
    "chatter on both sides": f"Here's it, [left, top] in [0, 1):\n{PLAIN}\nIsn't it {{nice}}?",
    "draft before the answer": PLAIN.replace("0.125", "0.3") + " No, better: " + PLAIN,
    "thoughts": f'<think>Perhaps {{"boxes": oh... [[</think>{PLAIN}',
    "trailing commas": PLAIN.replace("1]", "1,]").replace("1.0]", "1.0],").replace('t"]', 't",],'),
    "single quotes": PLAIN.replace('"', "'"),
    "Python's brackets": PLAIN.replace('"', "'").replace(
        "[0.125, 0.25, 0.5, 1]", "(0.125, 0.25, 0.5, 1)"
    ),
    "comments": PLAIN.replace("1],", "1], // the big one, it's left\n").replace(
        '"front', '/* nearest first */ "front'
    ),
    "case and article": PLAIN.replace("olis robot", "An  Olis Robot").replace("hta", "the HTA"),
    "order by number": PLAIN.replace('["hta corgi", "olis robot"]', "[1, 0]"),
    "listed the other way round": (
        '{"boxes": {"hta corgi": [0.5, 0.5, 0.75, 1], "olis robot": [0.125, 0.25, 0.5, 1]}}'
    ),
    "lists in the subjects' order": (
        '{"boxes": [[0.125, 0.25, 0.5, 1], [0.5, 0.5, 0.75, 1]], "front_to_back": [1, 0]}'
    ),
    "without a key": (
        '{"olis robot": [0.125, 0.25, 0.5, 1], "hta corgi": [0.5, 0.5, 0.75, 1], ' + ORDER + "}"
    ),
    "wrapped": '{"layout": ' + PLAIN + "}",
    "entries": """[{"name": "hta corgi", "box": [0.5, 0.5, 0.75, 1]},
                   {"name": "olis robot", "box": [0.125, 0.25, 0.5, 1]}]""",
    "subjects with bbox": """{"subjects": [
        {"label": "hta corgi", "bbox": [0.5, 0.5, 0.75, 1]},
        {"label": "olis robot", "bbox": [0.125, 0.25, 0.5, 1]}]}""",
    "corners by key": """{"objects": [
        {"id": "hta corgi", "x1": 0.5, "y1": 0.5, "x2": 0.75, "y2": 1},
        {"id": "olis robot", "box": {"left": 0.125, "top": 0.25, "right": 0.5, "bottom": 1}}]}""",
    "width and height": """{"boxes": {
        "hta corgi": {"x": 0.5, "y": 0.5, "w": 0.25, "h": 0.5},
        "olis robot": {"left": 0.125, "top": 0.25, "width": 0.375, "height": 0.75}}}""",
    "pixels of a named canvas": json.dumps(
        {
            "canvas": [1024, 1024],
            "boxes": dict(zip(NAMES, [ROBOT_PIXELS, CORGI_PIXELS], strict=True)),
            "front_to_back": [1, 0],
        }
    ),
    "pixels, width and height named": json.dumps(
        {
            "width": 2048,
            "height": 1024,
            "boxes": {
                "hta corgi": [1024, 512, 1536, 1024],
                "olis robot": {"x": 256, "y": 256, "width": 768, "height": 768},
            },
        }
    ),
    "pixels of the usual square": json.dumps(
        {"hta corgi": CORGI_PIXELS, "olis robot": ROBOT_PIXELS},
    ),
    "per cent": '{"hta corgi": [50, 50, 75, 100], "olis robot": [12.5, 25, 50, 100]}',
}

BAD = {
    "empty": ("", "no JSON in ''"),
    "no JSON": ("I can't draw.", 'no JSON in "I can\'t draw."'),
    "another JSON": ('{"error": "busy"}', 'JSON without "boxes"'),
    "cut off": (PLAIN[:100], "the JSON is not closed: it ends in"),
    "cut off after the boxes": (PLAIN[:-5], "not closed"),
    "draft, then cut off": (PLAIN + PLAIN[:-5], "not closed"),
    "no comma": (PLAIN.replace("1],", "1]"), "broken JSON .*Expecting ',' delimiter"),
    "keys without quotes": ("{boxes: " + PLAIN[9:], "broken JSON .*property name"),
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
        '{"a hta corgi": [0, 0, 1, 1], "hta corgi": [0, 0, 1, 1], "olis robot": [0, 0, 1, 1]}',
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
    "no box at all": ('{"olis robot": {}, "hta corgi": {}}', r'"olis robot": a box is .* not \{\}'),
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
    "outside a named canvas": (
        '{"canvas": [512, 512], "olis robot": [0, 0, 600, 9], "hta corgi": [0, 0, 9, 9]}',
        '"olis robot" .* reaches outside',
    ),
    "canvas in words": (
        '{"canvas": "512", "olis robot": [0, 0, 600, 9], "hta corgi": [0, 0, 9, 9]}',
        r"the canvas must be \[width, height\], not '512'",
    ),
    "beyond any canvas": (
        '{"olis robot": [0, 0, 9000, 9], "hta corgi": [0, 0, 9, 9]}',
        "coordinates up to 9000; give fractions of the canvas",
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


def test_pixels_are_those_of_the_given_canvas_unless_the_answer_names_one():
    """512 wide of 2048 x 1024: a quarter of the width, half the height."""
    answer = '{"boxes": [[0, 0, 512, 512]]}'
    assert parse_layout(answer, ["dog"], (2048, 1024)).boxes[0] == (0, 0, 0.25, 0.5)
    named = '{"canvas": {"width": 512, "height": 1024}, "boxes": [[0, 0, 512, 512]]}'
    assert parse_layout(named, ["dog"], (2048, 1024)).boxes[0] == (0, 0, 1, 0.5)


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
        assert "1280 wide and 768 high" in text


def test_a_file_gives_boxes_in_the_order_of_the_names_and_the_photos(tmp_path: Path):
    path = tmp_path / "layout.json"
    path.write_text(PLAIN[:-1] + ', "photos": {"hta corgi": "b02.jpg"}}')
    assert load_layout(path, NAMES) == Layout((ROBOT, CORGI), (1, 0), (None, "b02.jpg"))
    assert load_layout(path, NAMES[::-1]) == Layout((CORGI, ROBOT), (0, 1), ("b02.jpg", None))
    assert load_layout(str(path)) == load_layout(path, NAMES)
    entries = [
        {"name": "hta corgi", "box": CORGI, "photo": "b02.jpg"},
        {"name": "olis robot", "box": ROBOT},
    ]
    path.write_text(json.dumps(entries))
    assert load_layout(path, NAMES) == Layout((ROBOT, CORGI), (1, 0), (None, "b02.jpg"))


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
