"""What renaming a subject makes of its captions: they can always be had back."""

import json

import pytest
from helpers import DataFolder

from mudi.studio.folder import PhotoFolder
from mudi.studio.server import Refusal


def bears(path, *texts):
    """A folder of a bear and a teddy bear, with captions for the bear's photos."""
    data = DataFolder(path / "bears", {"a": "bear", "b": "teddy bear"})
    for line, text in zip(data.lines[1:], texts, strict=False):
        line["text"] = text
    data.save()
    return data


def texts_of(data):
    return [json.loads(line).get("text") for line in data.metadata.read_text().splitlines()[1:]]


def test_a_name_within_anothers_stays(tmp_path):
    data = bears(tmp_path, "A Bear next to a Teddy Bear.", ["bears", "a bear"], "no  name")
    data.lines[4] |= {"text": "a teddy bear hugs a bear", "subjects": [{"id": "a"}, {"id": "b"}]}
    del data.lines[4]["id"], data.lines[4]["mask_path"]
    data.save()
    before, folder = texts_of(data), PhotoFolder(data.path)
    folder.set_name("a", "bear", "grz grizzly")
    assert texts_of(data) == [
        "A grz grizzly next to a Teddy Bear.",
        ["bears", "a grz grizzly"],
        "no  name",
        "a teddy bear hugs a grz grizzly",
        *before[4:],
    ]
    folder.set_name("b", "teddy bear", "grz grizzly cub")
    assert texts_of(data)[3] == "a grz grizzly cub hugs a grz grizzly"
    folder.set_name("b", "grz grizzly cub", "teddy bear")
    folder.set_name("a", "grz grizzly", "bear")
    assert texts_of(data) == ["A bear next to a Teddy Bear.", *before[1:]]


@pytest.mark.parametrize("name", ["a", "A", "next", ".", "Bear cub", "to  a bear", "sks bear"])
def test_there_and_back_again_or_not_at_all(tmp_path, name):
    """One word, a sign, two names: what would be lost on the way back is refused."""
    data = bears(tmp_path, "A bear next to a chair.", "A bear cub, a bear.", "sks bear")
    before, folder = texts_of(data), PhotoFolder(data.path)
    try:
        folder.set_name("a", "bear", name)
    except Refusal:
        assert texts_of(data) == before and folder.names()["a"] == "bear"
    else:
        assert texts_of(data) != before
        folder.set_name("a", folder.names()["a"], "bear")
        assert texts_of(data) == before


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("bear", "", "needs an id and a name"),
        ("bear", "  ", "needs an id and a name"),
        ("bear", "Teddy  BEAR", 'subject b is named "teddy bear"'),
        ("bear", "a", 'caption of a0.jpg, "a" could not be told from other words'),
        ("bear", "photo", 'caption of a0.jpg, "photo" could not be told from other words'),
        ("olis robot", "sks robot", "has changed since"),
    ],
)
def test_what_no_name_can_be_is_refused(tmp_path, was, now, told):
    data = bears(tmp_path)
    before = data.metadata.read_text()
    with pytest.raises(Refusal, match=told):
        PhotoFolder(data.path).set_name("a", was, now)
    assert data.metadata.read_text() == before


def test_two_words_that_would_become_anothers_name_are_refused(tmp_path):
    data = bears(tmp_path, "a teddy robot bear")
    folder = PhotoFolder(data.path)
    folder.set_name("a", "bear", "robot bear")
    assert texts_of(data)[0] == "a teddy robot robot bear"
    folder.set_name("a", "robot bear", "bear")
    data.lines[0]["id"]["a"] = "robot bear"
    data.save()
    with pytest.raises(Refusal, match="could not be told"):
        folder.set_name("a", "robot bear", "bear")  # "a teddy bear" is the other one


def test_a_new_subjects_name_is_not_anothers(tmp_path):
    data = bears(tmp_path)
    with pytest.raises(Refusal, match="subject a is named"):
        PhotoFolder(data.path).set_name("c", None, "bear")


def test_a_name_is_mended_where_the_captions_have_it_already(tmp_path):
    data = bears(tmp_path, *["A photo of a sks bear."] * 3)
    data.lines[0]["id"]["a"] = "x bear"
    data.save()
    folder = PhotoFolder(data.path)
    folder.set_name("a", "x bear", "sks bear")
    assert folder.names()["a"] == "sks bear" and not folder.complaints()[0]
    assert texts_of(data)[:3] == ["A photo of a sks bear."] * 3
