"""Disks that are full, and what other files' owners may do with ours: on a small file system."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers import noise
from safetensors.torch import save_file
from training import lora_of, reset_accelerate

from mudi import lora
from mudi.ground.errors import program
from mudi.ground.files import DiskFullError, new_folder, replace_file, write_image, write_text
from mudi.ground.work import Journal

KB = 1000
TENSOR = {"a": torch.arange(100_000.0)}  # 400 KB


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # a failed writer may hold it


def leave(disk: Path, free: int) -> Path:
    """Fill the disk up to so many bytes, or to a block less; return what fills it."""
    ballast = disk / "ballast"
    blocks = os.statvfs(disk)
    ballast.write_bytes(bytes(blocks.f_bavail * blocks.f_bsize - free))
    return ballast


def told(path: Path) -> str:
    return rf"^{re.escape(str(path))}: the disk is full: [\d.]+ [kM]B or more are wanted, [\d.]+ kB"


def save_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, TENSOR["a"].numpy())


WRITERS = {
    "text": lambda path: path.write_text("x" * 400 * KB),
    "torch": lambda path: torch.save(TENSOR, path),
    "safetensors": lambda path: save_file(TENSOR, path),
    "picture": lambda path: noise(400, 400).save(path, format="PNG"),
    "array": save_array,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_one_line_leaves_the_old_file_and_nothing_else(disk, write):
    path = write_text(disk / "file.pt", "old")
    ballast = leave(disk, 100 * KB)
    with pytest.raises(DiskFullError, match=told(path)) as stopped:
        replace_file(path, write)
    assert len(str(stopped.value).splitlines()) == 1 and stopped.value.wanted <= 104 * KB
    assert path.read_text() == "old"
    assert {entry.name for entry in disk.iterdir()} == {"file.pt", "ballast"}
    ballast.unlink()
    replace_file(path, write)
    assert path.stat().st_size > 390 * KB


def test_other_errors_of_a_writer_are_passed_on(disk):
    with pytest.raises(ZeroDivisionError):
        replace_file(disk / "file", lambda path: 1 / 0)
    with pytest.raises(RuntimeError, match="mine"):
        with new_folder(disk / "folder"):
            raise RuntimeError("mine")


def test_a_folder_that_does_not_fit_is_dropped_as_a_whole(disk):
    with new_folder(disk / "folder") as folder:
        write_text(folder / "a", "old")
    leave(disk, 500 * KB)
    with pytest.raises(DiskFullError, match=told(disk / "folder")) as stopped:
        with new_folder(disk / "folder") as folder:
            write_text(folder / "a", "x" * 300 * KB)
            write_text(folder / "b", "x" * 300 * KB)
    assert 400 * KB < stopped.value.wanted < 510 * KB
    assert {entry.name for entry in disk.iterdir()} == {"folder", "ballast"}
    assert (disk / "folder/a").read_text() == "old"


def test_a_line_of_a_journal_that_does_not_fit_is_done_anew(disk):
    reset_accelerate()
    journal = Journal(disk / "log.jsonl", "name", PartialState(cpu=True))
    journal.add({"name": "a", "text": "x"})
    ballast = leave(disk, 8 * KB)
    with pytest.raises(DiskFullError, match=told(disk / "log.jsonl.part0")):
        journal.add({"name": "b", "text": "x" * 100 * KB})
    ballast.unlink()
    again = Journal(disk / "log.jsonl", "name", PartialState())
    assert list(again.done) == ["a"]
    again.add({"name": "b", "text": "y"})
    assert [record["text"] for record in again.finish()] == ["x", "y"]


def test_a_training_ends_with_a_line_and_goes_on_when_there_is_room(sdxl_backbone, disk, tmp_path):
    more = "--segmix_prob 0 --checkpointing_steps 1 --max_train_steps 2"
    straight = sdxl_backbone.train(tmp_path / "straight", more)
    out = sdxl_backbone.train(disk / "out", more, "--max_train_steps 1")
    size = sum(path.stat().st_size for path in (out / "checkpoint-1").iterdir())
    for share in (0.2, 0.7):  # the LoRA does not fit; the optimizer does not
        ballast = leave(disk, int(share * size))
        with pytest.raises(SystemExit, match=told(out / "checkpoint-2")):
            sdxl_backbone.train(out, more, "--resume_from_checkpoint latest")
        assert not [path for path in out.iterdir() if path.name.startswith(".incomplete")]
        ballast.unlink()
    sdxl_backbone.train(out, more, "--resume_from_checkpoint latest")
    torch.testing.assert_close(lora_of(out), lora_of(straight), rtol=0, atol=0)


def test_a_full_disk_that_a_library_meets_is_one_line_too():
    @program
    def main() -> None:
        with open("/dev/full", "w") as file:  # noqa: PTH123
            file.write("x")

    with pytest.raises(SystemExit, match="No space left on device"):
        main()


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        for name, write in WRITERS.items():
            replace_file(tmp_path / f"{name}.x", write)
        write_image(tmp_path / "image.x", noise())
    finally:
        os.umask(before)
    modes = {path.stem: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys([*WRITERS, "image"], "0o640")


def test_a_lora_can_be_read_by_whom_the_umask_lets(run_once):
    mode = (run_once / "run_arguments.json").stat().st_mode
    for name in (lora.WEIGHTS_NAME, lora.KOHYA_WEIGHTS_NAME, f"save-2/{lora.WEIGHTS_NAME}"):
        assert (run_once / name).stat().st_mode == mode
