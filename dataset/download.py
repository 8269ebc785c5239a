"""Fetch the pictures of the MuDI paper from its repository: photos, masks and captions.

    python dataset/download.py actionfigure_2_and_dog0 flux/teddys
    python dataset/download.py --all

git fetches the folders that are asked for and nothing else of the repository. A folder that is
whole is not fetched again; run the same command again after a break. What is there already, edited
or not, stays as it is.
"""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mudi.ground.errors import SetupError, program
from mudi.ground.files import replace_file, unwritable
from mudi.ground.flags import flag, parse
from mudi.images import ImageError, load_rgb
from mudi.metadata import MetadataError, load_subjects
from mudi.photo_files import photo_files

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/agwmon/MuDI"
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


def clone(repository: str, folder: Path) -> None:
    """Fetch the names of a repository's files, and none of the files.

    Raises:
        SetupError: there is no git, or no such repository.
    """
    # A link of the repository comes as a text, not as a way to files of this machine
    options = "--depth=1 --filter=blob:none --no-checkout --config=core.symlinks=false".split()
    run_git("clone", "--quiet", *options, "--", repository, str(folder))


def check_out(clone_dir: Path, path: str) -> None:
    """Fetch the files below a path of the repository, those of earlier calls go.

    Raises:
        SetupError: git can't.
    """
    run_git("-C", str(clone_dir), "sparse-checkout", "set", "--no-cone", f"/{path}/")
    run_git("-C", str(clone_dir), "checkout", "--quiet")


def run_git(*words: str) -> None:
    settings = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}  # no question for a password
    try:
        subprocess.run(
            ["git", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | settings,
        )
    except FileNotFoundError as error:
        raise SetupError("git is not installed, which the pictures are fetched by") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        told = [line for line in lines if line.startswith(("fatal:", "error:"))]
        raise SetupError((told or lines or ["git failed"])[0]) from error


def pick(source: Path, folder: Path, metadata: str) -> Iterator[str]:
    """Copy a folder's metadata file and pictures; yield what was done with each, in a word."""
    entries = photo_files(source) if source.is_dir() else []
    for entry in [source / metadata, *entries]:
        path = folder / entry.relative_to(source)
        if is_good(path, entry.name == metadata):
            yield "there already"
        elif entry.is_file():
            replace_file(path, partial(shutil.copyfile, entry))
            yield "fetched"


def is_good(path: Path, is_text: bool) -> bool:
    """Say whether a file is there and, if it is to be a picture, can be read."""
    if is_text or not path.is_file():
        return path.is_file()
    try:
        load_rgb(path)
    except ImageError:
        return False
    return True


def is_whole(folder: Path, metadata: str) -> bool:
    """Say whether training would take a folder as it is."""
    try:
        load_subjects(folder, metadata)
    except MetadataError:
        return False
    return True


def fetch_folders(repository: str, output: Path, folders: list[Folder]) -> None:
    """Fetch folders that are not whole, one after the other.

    Raises:
        SetupError: git can't.
    """
    missing = [f for f in folders if not is_whole(output / f.path, f.metadata)]
    for folder in folders:
        if folder not in missing:
            print(f"{folder.path}: there already")
    if not missing:
        return
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "clone"
        clone(repository, copy)
        for folder in missing:
            check_out(copy, folder.path)
            done = Counter(pick(copy / folder.path, output / folder.path, folder.metadata))
            told = ", ".join(f"{count} {what}" for what, count in done.items())
            print(f"{folder.path}: {told or 'not in the repository'}")


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


@dataclass
class DownloadArgs:
    """download"""

    names: list[str] = flag(
        [], "what to fetch; --list shows the names", positional=True, nargs="*", metavar="NAME"
    )
    all: bool = flag(False, "fetch everything")
    list: bool = flag(False, "show the names and where each goes, fetch nothing")
    output: Path = flag(ROOT, "folder below which the paths are laid out")
    repository: str = flag(REPOSITORY, "what git clones: a URL, or a folder")


def check_args(args: DownloadArgs) -> list[Folder]:
    """Return the folders asked for, or stop with one line for each wrong argument."""
    by_path = {folder.path: name for name, folder in FOLDERS.items()}
    asked = [by_path.get(name.strip("/"), name.strip("/")) for name in args.names]
    unknown = [name for name in asked if name not in FOLDERS]
    complaints = [f"unknown: {', '.join(unknown)}; known: {', '.join(FOLDERS)}"] if unknown else []
    if not asked and not args.all:
        complaints.append("name what to fetch, or give --all; --list shows the names")
    if complaints:
        raise SetupError("\n".join(complaints))
    return [FOLDERS[name] for name in (FOLDERS if args.all else dict.fromkeys(asked))]


def parse_args(argv: list[str] | None = None) -> DownloadArgs:
    return parse(DownloadArgs, __doc__, argv)


@program
def main(args: DownloadArgs) -> int:
    """Return the exit code: 0, or 1 if anything is missing or wrong."""
    if args.list:
        print("\n".join(f"{name:36} {folder.path}" for name, folder in FOLDERS.items()))
        return 0
    folders = check_args(args)
    if why := unwritable(args.output):
        raise SetupError(f"--output {args.output}: {why}")
    print(LICENCES)
    try:
        fetch_folders(args.repository, args.output, folders)
        problems = check_folders(args.output, folders)
    except KeyboardInterrupt:
        raise SetupError("stopped; the same command goes on with the folder where it was") from None
    if problems:
        print(f"{len(problems)} problem(s); what was fetched stays:", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
