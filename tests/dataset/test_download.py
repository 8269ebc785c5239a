"""dataset/download.py against a git repository that is made on the spot."""

import subprocess
from pathlib import Path

import pytest
from helpers import CLASSES, NAMES, DataFolder, noise

from dataset import download

PAIR = "dataset/category/dog6_and_dog2"
PHOTO = f"{PAIR}/a0.jpg"


def build(root: Path, name: str) -> DataFolder:
    folder = download.FOLDERS[name]
    names = CLASSES if folder.metadata.startswith("class") else NAMES
    pair = {key: names[key] for key in "ab"}
    return DataFolder(root / folder.path, pair, filename=folder.metadata)


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(
        ["git", "-C", folder, *names, *words], check=True, capture_output=True, text=True
    )
    return done.stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message=x")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Serves a pair and a folder that nobody asks for, without their files until they are."""
    root = tmp_path / "repository"
    build(root, "dog6_and_dog2")
    build(root, "count_ablation")
    git(root, "init", "--quiet")
    git(root, "config", "uploadpack.allowFilter", "true")
    git(root, "config", "uploadpack.allowAnySHA1InWant", "true")
    commit(root)
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(source: Path, out: Path, *more: str) -> int:
    usual = ["--repository", f"file://{source}", "--output", str(out)]
    return download.main(download.parse_args([*usual, *(more or ["dog6_and_dog2"])]))


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_pair_arrives_whole_and_alone_with_its_licence_message(source, out, capsys):
    assert run(source, out) == 0
    assert files(out / PAIR) == files(source / PAIR)
    assert [path.name for path in (out / "dataset" / "category").iterdir()] == ["dog6_and_dog2"]
    told = capsys.readouterr().out
    assert "DreamBench" in told and "CustomConcept101" in told and "no licence" in told
    assert f"{PAIR}: 13 fetched" in told


def test_nothing_of_other_folders_is_transferred(source, tmp_path):
    """Of both pairs' files only names come with the clone; then one pair's."""
    copy = tmp_path / "clone"
    download.clone(f"file://{source}", copy)

    def missing() -> set[str]:
        told = git(copy, "rev-list", "--objects", "--all", "--missing=print").split()
        return {word[1:] for word in told if word.startswith("?")}

    def blobs(path: str) -> set[str]:
        lines = git(source, "ls-tree", "-r", "HEAD", path).splitlines()
        return {line.split()[2] for line in lines}

    other = "dataset/category/count_ablation"
    assert missing() == blobs(PAIR) | blobs(other)
    download.check_out(copy, PAIR)
    assert missing() == blobs(other) - blobs(PAIR)


def test_everything_lands_where_it_should(source, out):
    for name in download.FOLDERS:
        build(source, name)
    commit(source)
    assert run(source, out, "--all") == 0
    for folder in download.FOLDERS.values():
        assert files(out / folder.path) == files(source / folder.path)
    assert (out / "flux/teddys/metadata.jsonl").is_file()
    assert (out / "dataset/reg/actionfigure_2_and_dog0/class_metadata.jsonl").is_file()
    assert len(download.PAIRS) == 8 and len(download.FOLDERS) == 11


def test_what_is_whole_is_not_fetched_again(source, out, capsys):
    run(source, out)
    source.rename(source.with_name("gone"))
    assert run(source, out, f"{PAIR}/", "dog6_and_dog2") == 0
    assert f"{PAIR}: there already" in capsys.readouterr().out


def test_what_is_missing_or_broken_is_fetched_again_and_what_was_edited_stays(source, out, capsys):
    run(source, out)
    (out / PHOTO).unlink()
    broken = out / PAIR / "mask_b1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    edited, metadata = out / PAIR / "mask_b0.png", out / PAIR / "metadata.jsonl"
    edited.write_bytes(edited.read_bytes() + b"\0extra")
    metadata.write_text(metadata.read_text().replace("number", "edited"))
    kept = {path: path.read_bytes() for path in (edited, metadata)}
    assert run(source, out) == 0
    assert f"{PAIR}: 11 there already, 2 fetched" in capsys.readouterr().out.replace(
        "fetched, ", ""
    )
    assert {path: path.read_bytes() for path in kept} == kept
    assert files(out / PAIR) == files(source / PAIR) | {p.name: data for p, data in kept.items()}


def test_only_pictures_and_the_metadata_are_taken_and_no_link_is_followed(source, out, tmp_path):
    noise().save(tmp_path / "secret.png")
    (source / PAIR / "run.sh").write_text("echo no")
    (source / PAIR / "link.png").symlink_to(tmp_path / "secret.png")
    (source / PAIR / "folder").symlink_to(tmp_path)
    commit(source)
    assert run(source, out) == 0
    names = {path.name for path in (out / PAIR).iterdir()}
    assert names == {path.name for path in (source / PAIR).iterdir()} - {"run.sh", "folder"}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert (out / PAIR / "link.png").read_text() == str(tmp_path / "secret.png")


def test_flaws_of_the_source_are_told_and_the_other_folders_come(source, out, capsys):
    noise(10, 10).save(source / PAIR / "mask_a0.png")
    (source / PAIR / "mask_a1.png").unlink()
    commit(source)
    assert run(source, out, "flux/teddys", "dog6_and_dog2", "count_ablation") == 1
    told = capsys.readouterr().out
    assert "flux/teddys: not in the repository" in told
    assert "mask_a0.png" in told and "make them equal" in told
    assert 'no such mask: "mask_a1.png"' in told
    assert len(files(out / "dataset/category/count_ablation")) == 13


def test_bad_arguments_stop_before_anything_is_fetched(source, out):
    with pytest.raises(SystemExit, match=r"^unknown: dog7; known: actionfigure_2_and_dog0, "):
        run(source, out, "dog7")
    with pytest.raises(SystemExit, match="--list shows the names"):
        download.main(download.parse_args(["--output", str(out)]))
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(SystemExit, match=f"--output {out}: {out} is a file"):
        run(source, out, "actionfigure_2_and_dog0")


def test_the_list_names_every_folder(capsys):
    assert download.main(download.parse_args(["--list"])) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [[name, folder.path] for name, folder in download.FOLDERS.items()]


def test_a_repository_that_is_not_there_is_one_line(out, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^fatal: .*nowhere"):
        run(tmp_path / "nowhere", out)
    with pytest.raises(SystemExit, match=r"^fatal: unable to access 'http://127.0.0.1:9/x/'"):
        where = ["--repository", "http://127.0.0.1:9/x", "--output", str(out)]
        download.main(download.parse_args([*where, "dog6_and_dog2"]))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^git is not installed"):
        run(tmp_path / "nowhere", out)
    assert not out.exists()
