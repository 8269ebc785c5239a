import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

from mudi.ground.files import (
    REPLACED,
    TEMPORARY,
    clean_up,
    finish_folder,
    remove_folder,
    replace_file,
    temporary_folder,
    write_text,
)
from mudi.ground.flags import differences
from mudi.training.checkpoints import STATE_NAME, checkpoints, read_state, resolve_resume, step_of


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code may catch it."""


def killed_while_writing(path: Path) -> None:
    path.write_text("half")
    raise Killed


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_folder(path: Path, text: str) -> None:
    """Replace a folder of two files, one of them in a sub-folder."""
    temporary = temporary_folder(path)
    (temporary / "weights").write_text(text)
    (temporary / "sub").mkdir()
    (temporary / "sub" / "state").write_text(text)
    finish_folder(path)


def content(path: Path) -> list[str]:
    return [(path / "weights").read_text(), (path / "sub" / "state").read_text()]


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path):
    path = tmp_path / "new" / "a.json"
    assert write_text(path, "old") == path
    assert replace_file(path, lambda temporary: temporary.write_text("new")) == path
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.json"]


def test_a_kill_while_writing_a_file_leaves_the_old_one(tmp_path):
    path = write_text(tmp_path / "a.json", "old")
    with pytest.raises(Killed):
        replace_file(path, killed_while_writing)
    assert path.read_text() == "old"
    clean_up(tmp_path)
    assert names(tmp_path) == ["a.json"]


def test_a_kill_while_writing_the_first_file_leaves_none(tmp_path):
    with pytest.raises(Killed):
        replace_file(tmp_path / "a.json", killed_while_writing)
    clean_up(tmp_path)
    assert names(tmp_path) == []


def test_what_a_killed_run_left_half_written_is_not_used_again(tmp_path):
    """Without clean_up, too."""
    with pytest.raises(Killed):
        replace_file(tmp_path / "a.json", killed_while_writing)
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"
    left = temporary_folder(tmp_path / "folder")
    (left / "half").touch()
    write_folder(tmp_path / "folder", "new")
    assert names(tmp_path) == ["a.json", "folder"]
    assert names(tmp_path / "folder") == ["sub", "weights"]


def test_a_folder_is_made_and_replaced(tmp_path):
    for text in ("old", "new"):
        write_folder(tmp_path / "deep" / "folder", text)
        assert content(tmp_path / "deep" / "folder") == [text, text]
        assert names(tmp_path / "deep") == ["folder"]


def test_a_replaced_folder_that_was_left_over_is_no_obstacle(tmp_path):
    write_folder(tmp_path / "folder", "old")
    shutil.copytree(tmp_path / "folder", tmp_path / f"{REPLACED}folder")
    write_folder(tmp_path / "folder", "new")
    assert content(tmp_path / "folder") == ["new", "new"]
    assert names(tmp_path) == ["folder"]


def kill_before(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Die before the number-th rename, or the first removal after it: the steps of a swap."""
    done = 0

    def guard(step: Callable) -> Callable:
        def guarded(*args: object, **kwargs: object) -> object:
            nonlocal done
            if done == number:
                raise Killed
            done += 1
            return step(*args, **kwargs)

        return guarded

    monkeypatch.setattr(Path, "rename", guard(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", guard(shutil.rmtree))


@pytest.mark.parametrize("number", range(5))
def test_a_kill_at_any_step_of_a_swap_leaves_the_old_or_the_new_folder(
    tmp_path, monkeypatch, number
):
    """The steps: remove an old temporary, remove an old swap, rename, rename, remove the old."""
    write_folder(tmp_path / "folder", "old")
    with monkeypatch.context() as patched:
        kill_before(patched, number)
        with pytest.raises(Killed):
            write_folder(tmp_path / "folder", "new")
    clean_up(tmp_path)
    expected = "new" if number == 4 else "old"
    assert content(tmp_path / "folder") == [expected, expected]
    assert names(tmp_path) == ["folder"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path):
    write_folder(tmp_path / "folder", "old")
    (tmp_path / "folder").rename(tmp_path / f"{REPLACED}folder")
    (temporary_folder(tmp_path / "folder") / "weights").write_text("new")
    clean_up(tmp_path)
    assert content(tmp_path / "folder") == ["old", "old"]
    assert names(tmp_path) == ["folder"]


def test_a_removed_folder_is_gone_even_when_killed_half_way(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", "old")
    with monkeypatch.context() as patched:
        kill_before(patched, 2)
        with pytest.raises(Killed):
            remove_folder(tmp_path / "folder")
    assert names(tmp_path) == [f"{TEMPORARY}folder"]
    clean_up(tmp_path)
    assert names(tmp_path) == []
    write_folder(tmp_path / "folder", "new")
    remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []


def test_clean_up_keeps_what_is_whole(tmp_path):
    write_folder(tmp_path / "folder", "kept")
    write_text(tmp_path / "a.json", "kept")
    clean_up(tmp_path)
    assert names(tmp_path) == ["a.json", "folder"]
    clean_up(tmp_path / "not there")


SWAP_FOREVER = """
import sys
from pathlib import Path
from mudi.ground.files import finish_folder, temporary_folder
number = 0
while True:
    number += 1
    temporary = temporary_folder(Path(sys.argv[1]))
    for name in ("one", "two"):
        (temporary / name).write_text(str(number) * 1000)
    finish_folder(Path(sys.argv[1]))
    print(number, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.031, 0.057])
def test_sigkill_leaves_a_whole_folder(tmp_path, delay):
    process = subprocess.Popen(
        [sys.executable, "-c", SWAP_FOREVER, str(tmp_path / "folder")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdout.readline()  # the first one stands
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    clean_up(tmp_path)
    assert names(tmp_path) == ["folder"]
    one, two = ((tmp_path / "folder" / name).read_text() for name in ("one", "two"))
    assert one == two and len(one) >= 1000


# Checkpoints


def make_checkpoint(folder: Path, name: str) -> Path:
    write_text(folder / name / STATE_NAME, '{"settings": {"rank": 4}}')
    return folder / name


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Checkpoints of steps 9, 10 and 200, and what is none."""
    for name in ("checkpoint-200", "checkpoint-9", "checkpoint-10"):
        make_checkpoint(tmp_path, name)
    make_checkpoint(tmp_path, f"{TEMPORARY}checkpoint-300")
    make_checkpoint(tmp_path, f"{REPLACED}checkpoint-400")
    for name in ("checkpoint-x", "checkpoint-500-old", "save-600"):
        make_checkpoint(tmp_path, name)
    write_text(tmp_path / "checkpoint-700", "a file")
    return tmp_path


def test_checkpoints_are_ordered_by_step(output):
    assert [path.name for path in checkpoints(output)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-200",
    ]
    assert [step_of(path) for path in checkpoints(output)] == [9, 10, 200]
    assert checkpoints(output / "not there") == []


def test_latest_is_the_last_step_or_none(output, tmp_path_factory):
    assert resolve_resume(output, "latest") == output / "checkpoint-200"
    assert resolve_resume(tmp_path_factory.mktemp("empty"), "latest") is None


def test_a_checkpoint_is_named_by_path_or_by_folder(output, tmp_path_factory, monkeypatch):
    expected = output / "checkpoint-10"
    for wish in ("checkpoint-10", str(expected), f"{expected}/"):
        assert resolve_resume(output, wish) == expected
    elsewhere = make_checkpoint(tmp_path_factory.mktemp("elsewhere"), "checkpoint-5")
    assert resolve_resume(output, str(elsewhere)) == elsewhere
    monkeypatch.chdir(elsewhere)
    assert resolve_resume(output, ".") == elsewhere


@pytest.mark.parametrize("wish", ["checkpoint-11", "checkpoint-700", "/nowhere/checkpoint-9", ""])
def test_no_such_checkpoint_says_which_there_are(output, wish):
    there = "has checkpoint-9, checkpoint-10, checkpoint-200"
    with pytest.raises(ValueError, match=f"no such checkpoint; {output} {there}"):
        resolve_resume(output, wish)


def test_no_such_checkpoint_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match="has none"):
        resolve_resume(tmp_path, "checkpoint-1")


def test_a_folder_by_another_name_is_no_checkpoint(output):
    with pytest.raises(ValueError, match="named checkpoint-<step>"):
        resolve_resume(output, "save-600")


def test_differences_of_settings_are_told_one_by_one(output):
    saved = read_state(output / "checkpoint-9")["settings"]
    assert differences(saved, {"rank": 4}) == []
    assert differences(saved, {"rank": 8, "seed": 1}) == [
        "rank was 4 and is 8",
        "seed was None and is 1",
    ]


# What the place allows


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_folders_need_not_be_synced_but_files_must(tmp_path, monkeypatch, number):
    """As on network shares and under WSL."""
    fsync, synced = os.fsync, []

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_text(tmp_path / "a.json", "new")
    write_folder(tmp_path / "folder", "new")
    assert (tmp_path / "a.json").read_text() == "new" and len(synced) == 3
    assert content(tmp_path / "folder") == ["new", "new"]

    def of_nothing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", of_nothing)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_text(tmp_path / "a.json", "newer")
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_folder_whose_disk_fails_is_an_error(tmp_path, monkeypatch):
    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "a.json", "new")


def test_clean_up_leaves_other_runs_folders_alone(tmp_path):
    (tmp_path / "pair").mkdir()
    (tmp_path / "validation").mkdir()
    for place in (tmp_path, tmp_path / "pair", tmp_path / "validation"):
        (place / f"{TEMPORARY}a.json").touch()
    clean_up(tmp_path, "validation")
    assert names(tmp_path) == ["pair", "validation"] and names(tmp_path / "validation") == []
    assert names(tmp_path / "pair") == [f"{TEMPORARY}a.json"]
