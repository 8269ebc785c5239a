"""Two runs in one folder."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import NAMES, ROOT, DataFolder
from training import EXAMPLE, reset_accelerate

import generate_masks
import generate_prior
import inference
from detect_and_compare import __main__ as metric
from mudi.ground.locks import LOCK, InUseError, locked


@contextmanager
def other_run(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the folder, with a child of its own; kills what is left of it."""
    command = [sys.executable, str(ROOT / "tests/locking.py"), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            if process.poll() is None:
                process.stdin.close()
            elif process.returncode < 0:
                os.kill(child, signal.SIGKILL)


def test_a_second_run_is_told_the_folder_and_the_first_one_s_process(tmp_path):
    folder = tmp_path / "new" / "out"
    with other_run(folder) as process:
        told = rf"^{re.escape(str(folder))}: process {process.pid} on .+ writes here; wait"
        with pytest.raises(InUseError, match=told), locked(folder):
            pass
        with locked(tmp_path / "new"):  # another folder
            pass
    with locked(folder):
        assert (folder / LOCK).is_file()
    assert list(folder.iterdir()) == []


def test_a_killed_run_does_not_block_though_its_workers_live_on(tmp_path):
    with other_run(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).is_file()
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL])
def test_where_there_are_no_locks_a_warning_and_on(tmp_path, monkeypatch, caplog, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = []
    with locked(tmp_path):
        done.append(1)
    assert done and f"{tmp_path} can't be locked" in caplog.text


def test_many_at_once_take_turns(tmp_path):
    """Each waits by asking again; no two are ever inside, though the lock's file comes and goes."""
    inside, most, turns = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(20):
            while True:
                try:
                    with locked(tmp_path):
                        with guard:
                            inside += 1
                            most, turns = max(most, inside), turns + 1
                        with guard:
                            inside -= 1
                    break
                except InUseError:
                    continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 80)


@pytest.mark.parametrize("backbone", ["sdxl", "flux"], indirect=True)  # shared by all
def test_every_command_that_writes_a_folder_locks_it(backbone, tmp_path, monkeypatch):
    """In the second of two runs no model is loaded."""
    photos = DataFolder(tmp_path / "photos", {"a": NAMES["a"]}).path
    (photos / "metadata.jsonl").unlink()
    out = tmp_path / "out"
    base = f"--pretrained_model_name_or_path={backbone.base}"
    pictures = ROOT / "detect_and_compare/examples"
    commands = {
        backbone.script: backbone.flags(out),
        inference: [base, f"--output_dir={out}", f"--instance_data_dir={EXAMPLE}", "--prompt=x",
                    "--gamma=0"],
        metric: f"--images={pictures}/pictures --references={pictures}/references --output={out} "
        "--detector=foreground --embedder=colours".split(),
        generate_prior: [base, "--gen_class", "a=robot", f"--out_dir={out}"],
        generate_masks: [f"--instance_data_dir={photos}", "--query", "a=robot",
                         "--segmenter=foreground"],
    }  # fmt: skip
    for script, loads in ((backbone.script, "load_models"), (inference, "load_pipeline"),
                          (metric, "load_models"), (generate_prior, "load_pipeline"),
                          (generate_masks, "load_models")):  # fmt: skip
        monkeypatch.setattr(script, loads, lambda *_, **__: pytest.fail("a model was loaded"))
    with other_run(out) as one, other_run(photos) as two:
        for script, words in commands.items():
            reset_accelerate()
            folder, run = (photos, two) if script is generate_masks else (out, one)
            with pytest.raises(SystemExit) as stopped:
                script.main(script.parse_args(words))
            assert f"{folder}: process {run.pid} on" in str(stopped.value), script
        assert {path.name for path in out.iterdir()} == {LOCK}
