"""Fetch the pictures of the MuDI paper from its repository: photos, masks and captions.

    python dataset/download.py actionfigure_2_and_dog0 flux/teddys
    python dataset/download.py --all

Each folder's metadata file says what else to fetch. A file appears under its name once it is whole;
run the same command again after a break. What is there already, edited or not, stays as it is.
"""

import argparse
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from mudi.ground.errors import SetupError, program
from mudi.ground.fetch import FetchError, Source, fetch_blobs, git_sha
from mudi.ground.files import TEMPORARY
from mudi.images import ImageError, load_gray, load_rgb
from mudi.metadata import MetadataError, load_subjects

ROOT = Path(__file__).resolve().parent.parent
BASE_URL = "https://raw.githubusercontent.com/agwmon/MuDI/main"
LISTING_URL = "https://api.github.com/repos/agwmon/MuDI/git/trees/main?recursive=1"
LICENCES = """\
These pictures belong to their owners. The subjects' photos come from DreamBench
(https://github.com/google/dreambooth) and CustomConcept101
(https://github.com/adobe-research/custom-diffusion); see there for their terms. The repository
they are fetched from carries no licence of its own."""


@dataclass(frozen=True)
class Folder:
    """A folder of the source, and the metadata file in it that names its pictures."""

    path: str
    metadata: str = "metadata.jsonl"


PAIRS = """actionfigure_2_and_dog0 bear_plushie_and_robot_toy can_and_monster_toy
    cat2_and_pet_dog1 dog6_and_dog2 monster_toy_and_robot_toy plushie_teddybear_and_bear_plushie
    scene_castle_and_scene_lighthouse""".split()
FIVE_SUBJECTS = "count_ablation"
FOLDERS = {name: Folder(f"dataset/category/{name}") for name in [*PAIRS, FIVE_SUBJECTS]} | {
    "reg/actionfigure_2_and_dog0": Folder(
        "dataset/reg/actionfigure_2_and_dog0", "class_metadata.jsonl"
    ),
    "flux/teddys": Folder("flux/teddys"),
}


def read_names(path: Path) -> dict[str, Callable[[Path], object]]:
    """Return the pictures that a metadata file names, each with the function that decodes it.

    Raises:
        ValueError: it is no metadata file, or names a file outside its folder.
    """
    names: dict[str, Callable[[Path], object]] = {}
    try:
        for line in filter(str.strip, path.read_text(encoding="utf-8-sig").split("\n")):
            record = json.loads(line)
            for key, load in (("file_name", load_rgb), ("mask_path", load_gray)):
                if key in record:
                    names[str(record[key])] = load
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"no metadata file ({error})") from error
    for name in names:
        if not _is_inside(name):
            raise ValueError(f'it names "{name}", which lies outside its folder')
    if not names:
        raise ValueError("it names no photo")
    return names


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = path.parts and not path.is_absolute() and not set(name) & set("\\:\0")
    return bool(plain) and not any(p == ".." or p.startswith(TEMPORARY) for p in path.parts)


def fetch_metadata(source: Source, root: Path, folder: Folder) -> dict:
    """Fetch a folder's metadata file unless it is there, and return what it names."""
    path = root / folder.path / folder.metadata
    if not path.exists():
        source.fetch(f"{folder.path}/{folder.metadata}", path, read_names)
    try:
        return read_names(path)
    except (ValueError, OSError) as error:
        raise FetchError(f"{path}: {error}; mend it, or delete it to fetch it again") from error


def fetch_picture(source: Source, root: Path, file: str, load: Callable[[Path], object]) -> str:
    """Fetch a picture unless it is there and whole; return what was done, in a word or two."""
    path = root / file
    if path.is_file():
        try:
            load(path)
            changed = file in source.blobs and git_sha(path) != source.blobs[file][1]
            return "kept though not the source's" if changed else "there already"
        except ImageError:
            pass  # it is no picture, so nothing is lost
    source.fetch(file, path, load)
    return "fetched"


def run_all(source: Source, jobs: int, tasks: Iterable[Callable]) -> Iterator:
    """Yield each task's result, or its FetchError, in order; a break stops the tasks under way."""

    def run(task: Callable) -> object:
        try:
            return task()
        except FetchError as error:
            return error

    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(run, tasks)
        except BaseException:
            source.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def fetch_folders(args: argparse.Namespace, folders: list[Folder]) -> list[str]:
    """Fetch the folders' files, with a progress bar; return the problems."""
    url = args.base_url.rstrip("/")
    source = Source(url, args.timeout, args.retries, args.backoff)
    problems: list[str] = []
    listing_url = LISTING_URL if args.listing_url is None and url == BASE_URL else args.listing_url
    if listing_url:
        try:
            source.blobs = fetch_blobs(source, listing_url)
        except FetchError as error:
            print(f"Going on without the listing of sizes and hashes: {error}")

    tasks: list[tuple[str, Callable]] = []
    named = run_all(
        source, args.jobs, [partial(fetch_metadata, source, args.output, f) for f in folders]
    )
    for folder, names in zip(folders, named, strict=True):
        if isinstance(names, FetchError):
            problems.append(str(names))
            continue
        for name, load in names.items():
            file = f"{folder.path}/{name}"
            tasks.append((folder.path, partial(fetch_picture, source, args.output, file, load)))

    done = {folder.path: Counter[str]() for folder in folders}
    received, lock = [0], threading.Lock()
    with tqdm(total=len(tasks), unit="file", miniters=0, disable=not tasks) as bar:

        def count(size: int) -> None:
            with lock:
                received[0] += size
                bar.set_postfix_str(f"{received[0] / 1e6:.1f} MB", refresh=False)
                bar.update(0)

        source.received = count
        results = run_all(source, args.jobs, [task for _, task in tasks])
        for (path, _), result in zip(tasks, results, strict=True):
            done[path]["failed" if isinstance(result, FetchError) else result] += 1
            problems += [str(result)] if isinstance(result, FetchError) else []
            with lock:
                bar.update()
    for path, counts in done.items():
        print(f"{path}: " + (", ".join(f"{n} {what}" for what, n in counts.items()) or "nothing"))
    return problems


def check_folders(root: Path, folders: list[Folder]) -> list[str]:
    """Read the folders as training will; return the problems, print the warnings."""
    problems = []
    for folder in folders:
        try:
            for warning in load_subjects(root / folder.path, folder.metadata).warnings:
                print(f"warning: {warning}")
        except MetadataError as error:
            problems += error.problems
    return problems


def check_args(args: argparse.Namespace) -> list[Folder]:
    """Return the folders asked for, or stop with one line for each wrong argument."""
    by_path = {folder.path: name for name, folder in FOLDERS.items()}
    asked = [by_path.get(name.strip("/"), name.strip("/")) for name in args.names]
    unknown = [name for name in asked if name not in FOLDERS]
    complaints = [f"unknown: {', '.join(unknown)}; known: {', '.join(FOLDERS)}"] if unknown else []
    if not asked and not args.all:
        complaints.append("name what to fetch, or give --all; --list shows the names")
    for flag, least in (("retries", 0), ("jobs", 1), ("timeout", 1e-3), ("backoff", 0)):
        if not getattr(args, flag) >= least:
            complaints.append(f"--{flag} {getattr(args, flag)}: must be {least} or more")
    if not args.base_url.startswith(("http://", "https://")):
        complaints.append(f"--base_url {args.base_url}: must begin with http:// or https://")
    if complaints:
        raise SetupError("\n".join(complaints))
    return [FOLDERS[name] for name in (FOLDERS if args.all else dict.fromkeys(asked))]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        description="Fetch the paper's pictures.", formatter_class=formatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="what to fetch; --list shows the names")
    add("--all", action="store_true", help="fetch everything")
    add("--list", action="store_true", help="show the names and where each goes, fetch nothing")
    add("--output", type=Path, default=ROOT, help="folder below which the paths are laid out")
    add("--base_url", default=BASE_URL, help="the repository's root, or a mirror's")
    add("--listing_url", help="files' sizes and SHA-1s in the form of GitHub's tree API; "
        "if not given, GitHub's own for the default --base_url, none for another")  # fmt: skip
    add("--retries", type=int, default=5, help="further tries of a file after the first")
    add("--backoff", type=float, default=1.0, help="seconds before the first retry; then doubled")
    add("--timeout", type=float, default=30.0, help="seconds of silence after which a try fails")
    add("--jobs", type=int, default=4, help="files fetched at a time")
    return parser.parse_args(argv)


@program
def main(args: argparse.Namespace) -> int:
    """Return the exit code: 0, or 1 if anything is missing or wrong."""
    if args.list:
        print("\n".join(f"{name:36} {folder.path}" for name, folder in FOLDERS.items()))
        return 0
    folders = check_args(args)
    print(LICENCES)
    try:
        problems = fetch_folders(args, folders)
        problems += check_folders(args.output, folders)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on where it was") from None
    if problems:
        print(f"{len(problems)} problem(s); what was fetched stays:", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
