import json
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import HEIGHT, NAMES, ROOT, WIDTH, DataFolder, noise, rectangle
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mudi.metadata import PHOTO_TEXTS, MetadataError, Photo, load_subjects, read_records
from mudi.texts import folded


class Fault(NamedTuple):
    """How a folder is broken, and the problems to be told: (place, what is wrong, what to do)."""

    name: str
    damage: Callable[[DataFolder], object]
    problems: list[tuple[str, str, str]]


def edit(change_lines: Callable[[list], object]) -> Callable[[DataFolder], None]:
    """Change the list of the metadata's lines."""

    def damage(folder: DataFolder) -> None:
        change_lines(folder.lines)
        folder.save()

    return damage


def change(line: int, **values: object) -> Callable[[DataFolder], None]:
    """Set keys of a metadata line; a value of `...` deletes the key."""

    def change_line(lines: list) -> None:
        record = {**lines[line - 1], **values}
        lines[line - 1] = {k: v for k, v in record.items() if v is not ...}

    return edit(change_line)


def write_line(line: int, text: str) -> Callable[[DataFolder], None]:
    return edit(lambda lines: lines.__setitem__(line - 1, text))


def write_file(name: str, content: bytes) -> Callable[[DataFolder], object]:
    return lambda folder: (folder.path / name).write_bytes(content)


def save_image(name: str, image: Image.Image, **options: object) -> Callable[[DataFolder], object]:
    return lambda folder: image.save(folder.path / name, **options)


def cut_file(name: str) -> Callable[[DataFolder], object]:
    """Keep the first half of a file."""

    def damage(folder: DataFolder) -> None:
        path = folder.path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def point_at_cut_png(folder: DataFolder) -> None:
    noise().save(folder.path / "a0.png")
    cut_file("a0.png")(folder)
    change(2, file_name="a0.png")(folder)


def point_outside(name: str) -> Callable[[DataFolder], None]:
    """Name a photo that exists, but not in the folder."""

    def damage(folder: DataFolder) -> None:
        (folder.path / "sub").mkdir()
        noise().save(folder.path.parent / "x.jpg")
        change(3, file_name=name.format(parent=folder.path.parent))(folder)

    return damage


def rotated_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def grey(level: int, spot: int = 0, width: int = WIDTH) -> Image.Image:
    """A mask of one level, `spot` pixels of its first row white."""
    mask = Image.new("L", (width, HEIGHT), level)
    mask.paste(255, (0, 0, spot, 1))
    return mask


META = "metadata.jsonl"
FORMAT = "dataset/README.md describes the format"
ONCE = "twice in this line; keep one"

FAULTS = [
    # The file itself
    Fault("no folder", lambda f: shutil.rmtree(f.path), [("pair:", "no such folder", "check")]),
    Fault("no metadata", lambda f: f.metadata.unlink(), [(f"{META}:", "no such file", FORMAT)]),
    Fault("empty file", write_file(META, b""), [(f"{META}:", "is empty", FORMAT)]),
    Fault(
        "blank file", write_file(META, b" \n\t\n"),
        [(f"{META}:", "is empty", FORMAT)],
    ),
    Fault(
        "not UTF-8", write_file(META, '{"id": {"a": "caf\xe9"}}'.encode("latin-1")),
        [(f"{META}:", "not UTF-8", "save it as UTF-8")],
    ),
    # The first line
    Fault(
        "broken first line", write_line(1, '{"id": {"a": "olis robot"'),
        [(f"{META}:1:", "broken JSON", "mend the line")],
    ),
    Fault(
        "no first line", edit(lambda lines: lines.pop(0)),
        [(f"{META}:1:", "the first line must name the subjects", '{"id": {"a": ')],
    ),
    Fault(
        "subjects as a list", change(1, id=["a", "b"]),
        [(f"{META}:1:", "the first line must name the subjects", '{"id": {"a": ')],
    ),
    Fault(
        "no subject at all", change(1, id={}),
        [(f"{META}:1:", "the first line must name the subjects", '{"id": {"a": ')],
    ),
    Fault(
        "empty name", change(1, id={"a": "olis robot", "b": " "}),
        [(f"{META}:1:", 'subject "b"', "needs a name (a non-empty text)")],
    ),
    Fault(
        "name not a text", change(1, id={"a": None, "b": "hta teddy bear"}),
        [(f"{META}:1:", 'subject "a"', "needs a name (a non-empty text)")],
    ),
    Fault(
        "repeated id", write_line(1, '{"id": {"a": "olis robot", "a": "x", "b": "hta bear"}}'),
        [(f"{META}:1:", '"a" stands', ONCE)],
    ),
    Fault(
        "subject without photos", change(1, id={**NAMES}),
        [(f"{META}:1:", 'subject "c" (pll corgi) has no photo', "add its lines or drop it")],
    ),
    Fault(
        "photos of nobody", edit(lambda lines: lines.__delitem__(slice(1, None))),
        [
            (f"{META}:1:", 'subject "a" (olis robot) has no photo', "add its lines or drop it"),
            (f"{META}:1:", 'subject "b" (hta teddy bear) has no photo', "add its lines"),
        ],
    ),
    Fault(
        "subject without photos, below blank lines",
        lambda f: (change(1, id={**NAMES})(f), edit(lambda lines: lines.insert(0, "\n"))(f)),
        [(f"{META}:3:", 'subject "c" (pll corgi) has no photo', "add its lines or drop it")],
    ),
    # JSON of the photo lines
    Fault(
        "single quotes", write_line(3, "{'id': 'a'}"),
        [(f"{META}:3:", "broken JSON", "mend the line")],
    ),
    Fault(
        "cut last line", lambda f: write_line(7, json.dumps(f.lines[6])[:-20])(f),
        [(f"{META}:7:", "broken JSON (Unterminated string", "mend the line")],
    ),
    Fault(
        "two objects in a line", write_line(3, '{"id": "a"} {"id": "b"}'),
        [(f"{META}:3:", "broken JSON (Extra data at column 13)", "mend the line")],
    ),
    Fault(
        "endless nesting", write_line(3, "[" * 100_000),
        [(f"{META}:3:", "broken JSON", "mend the line")],
    ),
    Fault(
        "endless number", write_line(3, '{"id": ' + "9" * 5000 + "}"),
        [(f"{META}:3:", "broken JSON", "mend the line")],
    ),
    Fault(
        "deep nesting", write_line(3, '{"id": ' + "[" * 2000 + "]" * 2000 + "}"),
        [(f"{META}:3:", "broken JSON", "mend the line")],
    ),
    Fault(
        "half an emoji in a caption", change(3, text="A photo of a olis robot \ud83d."),
        [(f"{META}:3:", "holds half a character", "mend the line")],
    ),
    Fault(
        "half an emoji in a file name", change(3, file_name="\ude00.jpg"),
        [(f"{META}:3:", "holds half a character", "mend the line")],
    ),
    Fault(
        "half an emoji in a name", change(1, id={"a": "olis \ud83d robot", "b": "hta teddy bear"}),
        [(f"{META}:1:", "holds half a character", "mend the line")],
    ),
    Fault(
        "half an emoji as a key", change(3, **{"\ud83d": 1}),
        [(f"{META}:3:", "holds half a character", "mend the line")],
    ),
    Fault(
        "a list", write_line(4, '["a", "a2.jpg"]'),
        [(f"{META}:4:", "not a JSON object", "a line looks like")],
    ),
    Fault(
        "a number", write_line(4, "5"),
        [(f"{META}:4:", "not a JSON object", "a line looks like")],
    ),
    Fault(
        "repeated key", lambda f: write_line(2, json.dumps(f.lines[1])[:-1] + ', "id": "b"}')(f),
        [(f"{META}:2:", '"id" stands', ONCE)],
    ),
    # Keys of the photo lines
    Fault("no id", change(2, id=...), [(f"{META}:2:", 'no "id"', "add it to the line")]),
    Fault(
        "no photo key", change(2, file_name=...),
        [(f"{META}:2:", 'no "file_name"', "add it to the line")],
    ),
    Fault(
        "no mask key", change(7, mask_path=...),
        [(f"{META}:7:", 'no "mask_path"', "add it to the line")],
    ),
    Fault("no caption", change(5, text=...), [(f"{META}:5:", 'no "text"', "add it to the line")]),
    Fault(
        "empty caption", change(5, text=""),
        [(f"{META}:5:", '"text"', "must be a non-empty text")],
    ),
    Fault(
        "null mask", change(5, mask_path=None),
        [(f"{META}:5:", '"mask_path"', "must be a non-empty text")],
    ),
    Fault(
        "id a list", change(5, id=["a"]), [(f"{META}:5:", '"id"', "must be a non-empty text")],
    ),
    Fault(
        "file name an object", change(5, file_name={}),
        [(f"{META}:5:", '"file_name"', "must be a non-empty text")],
    ),
    Fault(
        "no captions", change(5, text=[]), [(f"{META}:5:", '"text"', "must be a non-empty text")],
    ),
    Fault(
        "an empty caption of several", change(5, text=["A hta teddy bear.", " "]),
        [(f"{META}:5:", '"text"', "must be a non-empty text")],
    ),
    Fault("id a number", change(5, id=1), [(f"{META}:5:", '"id"', "must be a non-empty text")]),
    Fault(
        "second first line", write_line(4, '{"id": {"c": "pll corgi"}}'),
        [
            (f"{META}:4:", 'no "file_name"', "add it"),
            (f"{META}:4:", 'no "mask_path"', "add it"),
            (f"{META}:4:", 'no "text"', "add it"),
            (f"{META}:4:", '"id" must be a non-empty text', "a second subjects line?"),
        ],
    ),
    Fault(
        "unknown id", change(3, id="A"),
        [(f"{META}:3:", 'unknown id "A"', "the first line has: a, b")],
    ),
    # Paths
    Fault(
        "no such photo", change(3, file_name="a1.jpeg"),
        [(f"{META}:3:", 'no such photo: "a1.jpeg"', 'mend "file_name" or add the file')],
    ),
    Fault(
        "no such mask", change(3, mask_path="mask_a1.jpg"),
        [(f"{META}:3:", 'no such mask: "mask_a1.jpg"', 'mend "mask_path" or add the file')],
    ),
    Fault(
        "photo is a folder", change(3, file_name="."),
        [(f"{META}:3:", 'no such photo: "."', "add the file")],
    ),
    Fault(
        "name of 300 letters", change(3, file_name="x" * 300),
        [(f"{META}:3:", 'no such photo: "xxx', "add the file")],
    ),
    Fault(
        "name with a zero", change(3, file_name="a\0.jpg"),
        [(f"{META}:3:", "no such photo", "add the file")],
    ),
    Fault(
        "photo above the folder", point_outside("../x.jpg"),
        [(f"{META}:3:", 'photo "../x.jpg" lies outside the folder', "move it inside")],
    ),
    Fault(
        "photo above by a detour", point_outside("sub/../../x.jpg"),
        [(f"{META}:3:", 'photo "sub/../../x.jpg" lies outside', "move it inside")],
    ),
    Fault(
        "absolute path", point_outside("{parent}/x.jpg"),
        [(f"{META}:3:", "x.jpg\" lies outside the folder", "move it inside")],
    ),
    Fault(
        "mask outside", change(3, mask_path="../mask.png"),
        [(f"{META}:3:", 'mask "../mask.png" lies outside the folder', "move it inside")],
    ),
    # Photos
    Fault(
        "zero-byte photo", write_file("a0.jpg", b""),
        [(f"{META}:2:", 'photo "a0.jpg" the file has zero bytes', "copy it again")],
    ),
    Fault(
        "truncated JPEG", cut_file("a0.jpg"),
        [(f"{META}:2:", 'photo "a0.jpg" cannot be read (image file is truncated', "save it again")],
    ),
    Fault(
        "truncated PNG", point_at_cut_png,
        [(f"{META}:2:", 'photo "a0.png" cannot be read (image file is truncated', "save it again")],
    ),
    Fault(
        "text named .jpg", write_file("b2.jpg", b"<html>404 not found</html>"),
        [(f"{META}:7:", 'photo "b2.jpg" cannot be read (no image format', "as JPEG or PNG")],
    ),
    Fault(
        "HEIC photo",
        lambda f: (write_file("a0.heic", b"heic" * 9)(f), change(2, file_name="a0.heic")(f)),
        [(f"{META}:2:", 'photo "a0.heic" .heic needs `pip install pillow-heif`', "or save it")],
    ),
    # Masks
    Fault(
        "zero-byte mask", write_file("mask_a0.png", b""),
        [(f"{META}:2:", 'mask "mask_a0.png" the file has zero bytes', "copy it again")],
    ),
    Fault(
        "text named .png", write_file("mask_a0.png", b"mask"),
        [(f"{META}:2:", 'mask "mask_a0.png" cannot be read', "save it again as JPEG or PNG")],
    ),
    Fault(
        "mask of another size", save_image("mask_b0.png", rectangle(HEIGHT, WIDTH)),
        [(f"{META}:5:", 'is 48x64, its photo "b0.jpg" 64x48', "make them equal")],
    ),
    Fault(
        "mask not turned with its photo", save_image("a0.jpg", noise(), exif=rotated_exif()),
        [(f"{META}:2:", 'is 64x48, its photo "a0.jpg" 48x64 (after EXIF', "make them equal")],
    ),
    Fault(
        "black mask", save_image("mask_a0.png", grey(0)),
        [(f"{META}:2:", "has 0.00% foreground", "the subject must be white (255)")],
    ),
    Fault(
        "nearly black mask", save_image("mask_a0.png", grey(0, spot=3)),
        # 3 of 64 * 48 = 3072 pixels
        [(f"{META}:2:", "has 0.10% foreground", "the subject must be white (255)")],
    ),
    Fault(
        "mask with 1 for white", save_image("mask_a0.png", rectangle().point(lambda v: v // 255)),
        [(f"{META}:2:", "its brightest is 1)", "the subject must be white (255)")],
    ),
    Fault(
        "mask of 128", save_image("mask_a0.png", grey(128)),
        [(f"{META}:2:", "(pixels above 128; its brightest is 128)", "must be white (255)")],
    ),
    Fault(
        "white mask", save_image("mask_a0.png", grey(255)),
        [(f"{META}:2:", "is foreground all over (100.00%)", "the background must be black (0)")],
    ),
    Fault(
        "transparent mask",
        save_image("mask_a0.png", Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 0))),
        [(f"{META}:2:", "has 0.00% foreground", "the subject must be white (255)")],
    ),
    Fault(
        "mask of another size, and black", save_image("mask_a0.png", grey(0, width=50)),
        [
            (f"{META}:2:", "is 50x48", "make them equal"),
            (f"{META}:2:", "has 0.00% foreground", "must be white"),
        ],
    ),
]  # fmt: skip


def problems_of(folder: Path, **options: object) -> list[str]:
    with pytest.raises(MetadataError) as caught:
        load_subjects(folder, **options)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def assert_told(problems: list[str], expected: list[tuple[str, str, str]], parent: Path) -> None:
    """Each problem says where, what and what to do, in this order and with none besides."""
    told = [problem.removeprefix(f"{parent}/").removeprefix("pair/") for problem in problems]
    assert len(told) == len(expected), told
    for problem, (place, what, remedy) in zip(told, expected, strict=True):
        assert problem.startswith(place), problem
        assert what in problem and remedy in problem.partition(what)[2], problem


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_malformed_folder_is_told_with_its_place_and_remedy(folder, fault):
    fault.damage(folder)
    assert_told(problems_of(folder.path), fault.problems, folder.path.parent)


def test_there_are_at_least_thirty_kinds_of_malformed_folders():
    assert len({fault.name for fault in FAULTS}) >= 30


def test_one_subject_is_too_few_for_segmix_only(tmp_path):
    folder = DataFolder(tmp_path / "pair", {"a": NAMES["a"]})
    assert load_subjects(folder.path).names == {"a": "olis robot"}
    remedy = "add one, or train with --segmix_prob 0"
    expected = [(f"{META}:1:", "1 subject, Seg-Mix needs 2 or more", remedy)]
    assert_told(problems_of(folder.path, min_subjects=2), expected, tmp_path)


def test_an_own_caption_key_that_is_missing_is_told(folder):
    problems = problems_of(folder.path, caption_key="caption")
    place = f"{folder.metadata}:"
    assert problems == [f'{place}{n}: no "caption"; add it to the line' for n in range(2, 8)]


def test_all_faults_of_a_folder_are_told_in_one_go_in_line_order(folder):
    cut_file("a0.jpg")(folder)
    change(2, text=...)(folder)
    write_line(3, "{")(folder)
    change(4, mask_path="nowhere.png")(folder)
    write_file("a2.jpg", b"")(folder)
    change(5, id="z")(folder)
    save_image("mask_b0.png", grey(0))(folder)
    change(6, file_name="../b1.jpg")(folder)
    save_image("mask_b2.png", grey(255))(folder)
    change(1, id={**NAMES})(folder)
    expected = [
        (f"{META}:1:", 'subject "c" (pll corgi) has no photo', "drop it"),
        (f"{META}:2:", 'no "text"', "add it"),
        (f"{META}:2:", 'photo "a0.jpg" cannot be read', "save it again"),
        (f"{META}:3:", "broken JSON", "mend the line"),
        (f"{META}:4:", 'no such mask: "nowhere.png"', "add the file"),
        (f"{META}:4:", 'photo "a2.jpg" the file has zero bytes', "copy it again"),
        (f"{META}:5:", 'unknown id "z"', "the first line has: a, b, c"),
        (f"{META}:5:", 'mask "mask_b0.png" has 0.00% foreground', "must be white"),
        (f"{META}:6:", 'photo "../b1.jpg" lies outside', "move it inside"),
        (f"{META}:7:", 'mask "mask_b2.png" is foreground all over', "must be black"),
    ]
    assert_told(problems_of(folder.path), expected, folder.path.parent)


def test_images_are_checked_though_the_first_line_is_broken(folder):
    write_line(1, "{")(folder)
    cut_file("b2.jpg")(folder)
    expected = [
        (f"{META}:1:", "broken JSON", "mend the line"),
        (f"{META}:7:", 'photo "b2.jpg" cannot be read', "save it again"),
    ]
    assert_told(problems_of(folder.path), expected, folder.path.parent)


def test_a_legal_folder_comes_back_as_written(folder):
    subjects = load_subjects(folder.path)
    assert subjects.names == {"a": "olis robot", "b": "hta teddy bear"}
    assert [photo.subject for photo in subjects.photos] == list("aaabbb")
    assert subjects.photos[4] == Photo(
        folder.path / "b1.jpg",
        folder.path / "mask_b1.png",
        "A photo of a hta teddy bear, number 1.",
        "b",
    )
    assert subjects.photos_of("b") == subjects.photos[3:]
    assert subjects.warnings == ()


@pytest.mark.parametrize(
    "write",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\n\n  \n").encode(),
        lambda text: b"\n" + text.encode(),
        lambda text: text.rstrip("\n").encode(),
    ],
    ids=["BOM", "CRLF", "blank-lines", "blank-first-line", "no-trailing-newline"],
)
def test_how_an_editor_saves_the_file_makes_no_difference(folder, write):
    before = load_subjects(folder.path)
    folder.metadata.write_bytes(write(folder.metadata.read_text()))
    assert load_subjects(folder.path) == before


def test_a_photo_may_have_several_captions(folder):
    captions = ["A olis robot.", "a photo of a  olis robot", "Another of a olis\u00a0robot."]
    change(2, text=captions)(folder)
    change(3, text=captions[:1])(folder)
    subjects = load_subjects(folder.path)
    assert subjects.photos[0].captions == tuple(captions)
    assert subjects.photos[0].caption == captions[0]
    assert subjects.photos[1].captions == ("A olis robot.",)
    assert subjects.warnings == ()


def test_names_are_told_apart_as_a_reader_would(folder):
    """Composed letters and single blanks, in names and in what captions are searched for."""
    change(1, id={"a": " olis \u00a0cafe\u0301", "b": "hta\tteddy  bear"})(folder)
    for line in (2, 3, 4):
        change(line, text="A photo of a olis\u2009 caf\u00e9.")(folder)
    subjects = load_subjects(folder.path)
    assert subjects.names == {"a": "olis caf\u00e9", "b": "hta teddy bear"}
    assert subjects.warnings == ()


@pytest.mark.parametrize("on_disk, in_file", [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_file_names_that_look_alike_are_alike(folder, on_disk, in_file):
    """macOS decomposes letters: of "é" in a folder's and a file's name, too."""
    name = "caf\u00e9 \u00fc/\u00e90.jpg"
    photo = folder.path / unicodedata.normalize(on_disk, name)
    photo.parent.mkdir()
    shutil.move(folder.path / "a0.jpg", photo)
    change(2, file_name=unicodedata.normalize(in_file, name).replace(" ", "\u00a0"))(folder)
    assert load_subjects(folder.path).photos[0].image == photo


def test_two_files_that_look_alike_are_not_guessed_between(folder):
    for form in ("NFC", "NFD"):
        noise().save(folder.path / unicodedata.normalize(form, "\u00e9 0.jpg"))
    change(2, file_name="\u00e9  0.jpg")(folder)
    [problem] = problems_of(folder.path)
    assert 'no such photo: "\u00e9  0.jpg"' in problem


words = st.lists(
    st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1), min_size=1
)
blanks = st.text(st.sampled_from(" \t\u00a0\u2003\u202f\u3000"), min_size=1, max_size=3)


@given(words, st.data())
def test_texts_that_look_alike_fold_to_one(parts, data):
    plain = " ".join(parts)
    spaced = data.draw(blanks).join(parts) + data.draw(blanks)
    for form in ("NFC", "NFD"):
        assert folded(unicodedata.normalize(form, spaced)) == folded(plain)
    assert folded(folded(spaced)) == folded(spaced)


@pytest.mark.parametrize(
    "line", ['{"id": ["a"]}', '{"file_name": [1], "id": "a"}', "[" * 9999, '"\\ud83d"']
)
def test_lines_that_are_read_to_be_written_again_are_checked(tmp_path, line):
    path = tmp_path / "class_metadata.jsonl"
    path.write_text('{"id": {"a": "robot"}}\n' + line + "\n")
    with pytest.raises(MetadataError, match=rf"^{path}:2: "):
        read_records(path, PHOTO_TEXTS)


def test_photos_may_lie_in_sub_folders(folder):
    (folder.path / "photos" / "masks").mkdir(parents=True)
    shutil.move(folder.path / "a0.jpg", folder.path / "photos" / "a0.jpg")
    shutil.move(folder.path / "mask_a0.png", folder.path / "photos" / "masks" / "a0.png")
    change(2, file_name="photos/a0.jpg", mask_path="./photos/x/../masks/a0.png")(folder)
    (folder.path / "photos" / "x").mkdir()
    assert load_subjects(folder.path).photos[0].image == folder.path / "photos" / "a0.jpg"


@pytest.mark.parametrize(
    "ids", ["a", "ab", "yx", "abcde", ["1", "the dog", "ä/ö", "{}", "None"]], ids=str
)
def test_any_number_of_subjects_and_any_ids(tmp_path, ids):
    names = {subject: f"tok{i} dog" for i, subject in enumerate(ids)}
    folder = DataFolder(tmp_path / "pair", {str(i): name for i, name in enumerate(names.values())})
    folder.lines[0] = {"id": names}
    for line in folder.lines[1:]:
        line["id"] = list(names)[int(line["id"])]
    folder.save()
    subjects = load_subjects(folder.path, min_subjects=len(names))
    assert list(subjects.names.items()) == list(names.items())
    assert all(len(subjects.photos_of(subject)) == 3 for subject in names)
    assert subjects.warnings == ()


def test_who_needs_no_captions_reads_none(folder):
    """Pictures and scores are made from folders whose captions have any key."""
    scene = {"file_name": "a0.jpg", "subjects": [{"id": "a"}, {"id": "b"}]}
    for line in folder.lines:
        line.pop("text", None)
    folder.lines.append(scene)
    folder.save()
    assert any('no "text"; add it' in problem for problem in problems_of(folder.path))
    found = load_subjects(folder.path, caption_key=None)
    assert len(found.photos) == 6 and len(found.scenes) == 1
    assert {picture.captions for picture in (*found.photos, *found.scenes)} == {("",)}
    assert not any("the caption lacks" in warning for warning in found.warnings)


def test_the_caption_key_can_be_chosen(folder):
    for line in folder.lines[1:]:
        line["caption"] = line.pop("text").upper()
    folder.save()
    captions = [photo.caption for photo in load_subjects(folder.path, caption_key="caption").photos]
    assert captions[0] == "A PHOTO OF A OLIS ROBOT, NUMBER 0."


def test_a_prior_set_has_its_own_file_name(tmp_path):
    folder = DataFolder(tmp_path / "pair", {"a": "robot"}, filename="class_metadata.jsonl")
    assert load_subjects(folder.path, "class_metadata.jsonl").names == {"a": "robot"}
    assert_told(
        problems_of(folder.path), [(f"{META}:", "no such file", FORMAT)], folder.path.parent
    )


def test_a_mask_turned_with_its_photo_by_its_own_tag_is_legal(folder):
    save_image("a0.jpg", noise(), exif=rotated_exif())(folder)
    save_image("mask_a0.png", rectangle(), exif=rotated_exif())(folder)
    save_image("mask_a1.png", rectangle(HEIGHT, WIDTH), exif=rotated_exif())(folder)
    assert load_subjects(folder.path).warnings == ()


def test_few_photos_duplicates_and_nameless_captions_are_warned_of(folder):
    del folder.lines[3]
    folder.lines[2]["text"] = "A photo of a robot."
    shutil.copy(folder.path / "b0.jpg", folder.path / "b2.jpg")
    folder.save()
    warnings = load_subjects(folder.path).warnings
    assert warnings == (
        f'{folder.metadata}:1: subject "a" (olis robot) has 2 photo(s); five are advised',
        f'{folder.metadata}:3: the caption lacks its subject\'s name "olis robot"',
        f'{folder.metadata}:6: "b2.jpg" is the photo of line 4',
    )


def test_data_and_flags_are_checked_without_torch():
    """So a mistake is told in a blink, and before any model is loaded."""
    code = (
        "import sys, mudi.training.args, mudi.metadata, mudi.training.checks;"
        "print(sorted({name.split('.')[0] for name in sys.modules}"
        " & {'torch', 'diffusers', 'transformers', 'accelerate'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
