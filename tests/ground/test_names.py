"""Names that no file, folder or text can have are told in a line, before anything is loaded."""

import os
from argparse import Namespace
from pathlib import Path

import pytest
from helpers import noise

from mudi.ground.errors import SetupError
from mudi.ground.files import unwritable
from mudi.ground.flags import id_table
from mudi.masks.folder import LONGEST_NAME, find_jobs
from mudi.photo_files import photo_files
from mudi.pictures.shot_args import read_prompts


def dangling(folder: Path) -> Path:
    (folder / "gone").symlink_to(folder / "nowhere")
    return folder / "gone"


def loop(folder: Path) -> Path:
    (folder / "one").symlink_to(folder / "other")
    (folder / "other").symlink_to(folder / "one")
    return folder / "one"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (lambda f: f / ("x" * 300), "no folder can be made there (File name too long)"),
        (lambda f: f / ("x" * 300) / "y", "no folder can be made there (File name too long)"),
        (dangling, "{f}/gone is a link that leads nowhere"),
        (lambda f: dangling(f) / "y", "{f}/gone is a link that leads nowhere"),
        (loop, "{f}/one is a link that leads nowhere"),
        (
            lambda f: loop(f) / "y",
            "no folder can be made there (Too many levels of symbolic links)",
        ),
        (
            lambda f: f / "a\0b",
            "no folder can be made there (embedded null byte)",
        ),
        (lambda f: Path("/dev/null/x/y"), "/dev/null is a file"),
        (lambda f: f / "new" / "deep", None),
        (lambda f: f, None),
    ],
)
def test_a_folder_that_cannot_be_made_is_told(tmp_path, place, told):
    assert unwritable(place(tmp_path)) == (told and told.format(f=tmp_path))


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert unwritable(tmp_path / "link" / "new") is None


def test_a_mask_whose_name_would_be_too_long_is_told(tmp_path):
    longest = LONGEST_NAME - len("mask_.png")
    for length in (longest, longest + 1):
        noise().save(tmp_path / f"{'a' * length}.png")
    problems: list[str] = []
    [job] = find_jobs(tmp_path, ["a"], problems)
    assert len(job.mask.name) == LONGEST_NAME
    assert problems == [
        f"{'a' * (longest + 1)}.png: the name of its mask is too long for a file; shorten it"
    ]


def test_file_names_that_are_no_text_are_told(tmp_path):
    noise().save(tmp_path / os.fsdecode(b"a\xff.png"))
    with pytest.raises(SetupError, match=r"a\\udcff.png': the name is no UTF-8; rename it$"):
        photo_files(tmp_path)


def test_half_characters_in_flags_are_told():
    problems: list[str] = []
    id_table(["a=größe\xa0x", "b=dog\ud83d"], "--names", problems)
    args = Namespace(prompt="a dog\udcff", prompt_file=None, negative_prompt="\ud83d")
    read_prompts(args, problems)
    assert problems == [
        r"--names 'b=dog\ud83d': holds half a character; type it again",
        r"the prompt 'a dog\udcff' holds half a character; type it again",
        r"the prompt '\ud83d' holds half a character; type it again",
    ]
