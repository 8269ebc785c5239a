"""Which files below a folder are photos: every kind that Pillow reads, links, system folders."""

from pathlib import Path

import numpy as np
import pytest
from helpers import noise

from detect_and_compare.pictures import find_pictures
from detect_and_compare.references import load_references
from mudi.images import ImageError, load_rgb
from mudi.masks.folder import find_jobs
from mudi.photo_files import photo_files, photo_suffixes

READ = "jpg jpeg jfif jpe png apng webp avif gif jp2 j2k bmp tif tiff tga ppm qoi".split()


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise().save(path)


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in photo_files(folder)]


def jobs(folder: Path) -> list[str]:
    problems: list[str] = []
    found = [job.name for job in find_jobs(folder, ["a"], problems)]
    assert problems == []
    return found


def pictures(folder: Path) -> list[str]:
    problems: list[str] = []
    found = [picture.name for picture in find_pictures(folder, problems)]
    assert problems == []
    return found


@pytest.mark.parametrize("listing", [jobs, pictures])
def test_every_kind_that_pillow_reads_counts(tmp_path, listing):
    for suffix in READ:
        save(tmp_path / f"a_{suffix}.{suffix}")
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "a.mp4").write_bytes(b"no photo")
    (tmp_path / "a.h5").write_bytes(b"no photo")
    assert listing(tmp_path) == sorted(f"a_{suffix}.{suffix}" for suffix in READ)
    for path in photo_files(tmp_path):
        difference = np.asarray(load_rgb(path)).astype(int) - np.asarray(noise())
        assert abs(difference).mean() < 60, path.name  # lossy on noise, and 256 colours


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.heic", r"^.heic needs `pip install pillow-heif`, or save it as JPEG or PNG$"),
        ("a.HIF", r"^.HIF needs `pip install pillow-heif`"),
        ("a.jxl", r"^.jxl needs `pip install pillow-jxl-plugin`"),
        ("a.NEF", r"^a camera's raw .NEF is not read here; export it as JPEG or PNG$"),
    ],
)
def test_what_pillow_cannot_read_is_listed_with_what_to_do(tmp_path, name, told):
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    assert jobs(tmp_path) == pictures(tmp_path) == [name]
    with pytest.raises(ImageError, match=told):
        load_rgb(tmp_path / name)


def test_a_raw_photo_is_not_taken_for_the_thumbnail_that_pillow_sees(tmp_path):
    noise(16, 12).save(tmp_path / "a.dng", format="TIFF")
    with pytest.raises(ImageError, match=r"a camera's raw .dng"):
        load_rgb(tmp_path / "a.dng")


@pytest.mark.parametrize("listing", [jobs, pictures, names])
def test_links_to_folders_are_followed_and_system_folders_are_not(tmp_path, listing):
    """Each real folder once; a link to a folder above, or to itself, is none of photos."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    save(elsewhere / "deep" / "2.png")
    save(tmp_path / "above.png")
    for folder in ".thumbnails @eaDir .ipynb_checkpoints __MACOSX a/@eaDir".split():
        save(data / folder / "a.jpg")
    save(data / "a" / "0.jpg")
    save(data / ".a.jpg")
    (data / "a" / "linked").symlink_to(elsewhere)
    (data / "a" / "again").symlink_to(data / "a")
    (data / "a" / "up").symlink_to(tmp_path)
    (data / "a" / "loop").symlink_to("loop")
    (data / "a" / "1.jpg").symlink_to(data / "a" / "0.jpg")
    (data / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert listing(data) == ["a/0.jpg", "a/1.jpg", "a/linked/deep/2.png"]


def test_references_pass_system_folders_over_and_follow_links(tmp_path):
    save(tmp_path / "elsewhere" / "0.gif")
    data = tmp_path / "data"
    save(data / "@eaDir" / "0.jpg")
    save(data / "__MACOSX" / "0.jpg")
    (data / "dog").symlink_to(tmp_path / "elsewhere")
    references = load_references(data)
    assert {name: len(images) for name, images in references.images.items()} == {"dog": 1}


def test_a_listed_photo_counts_wherever_it_lies(tmp_path):
    save(tmp_path / ".hidden" / "0.jpg")
    save(tmp_path / "0.jpg")
    lines = '{"id": {"a": "x"}}\n{"id": "a", "file_name": ".hidden/0.jpg"}\n'
    more = '{"id": "a", "file_name": "0.jpg"}\n{"id": "a", "file_name": "../0.jpg"}\n'
    (tmp_path / "metadata.jsonl").write_text(lines + more)
    save(tmp_path.parent / "0.jpg")
    assert jobs(tmp_path) == [".hidden/0.jpg", "0.jpg"]
    (tmp_path.parent / "0.jpg").unlink()


def test_suffixes_are_small_letters_with_a_dot():
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in photo_suffixes())
    assert not photo_suffixes() & {".txt", ".jsonl", ".pdf", ".mp4", ".html"}
