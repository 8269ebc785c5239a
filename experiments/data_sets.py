"""The data that experiments train on: the subjects' folders, and class pictures for the prior."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

import generate_prior
from detect_and_compare.args import FOREGROUND, OWLV2
from experiments.plan import DataSet
from mini import subjects as miniature
from mudi.ground.files import new_folder, write_records
from mudi.masks.folder import METADATA
from mudi.metadata import PRIOR_FILENAME, MetadataError, load_subjects


def write_miniatures(folder: Path) -> Path:
    """Write the data folders of the miniature's subjects, if they are not there."""
    if not all((folder / name / METADATA).is_file() for name in miniature.SETS):
        miniature.main(miniature.parse_args(["--output", str(folder)]))
    return folder


def find_data_sets(folder: Path, names: Sequence[str] | None, problems: list[str]) -> list[DataSet]:
    """Return the data sets of those names below a folder, all that there are for None."""
    if names is None:
        names = sorted(path.parent.name for path in folder.glob(f"*/{METADATA}"))
    found = []
    for name in names:
        try:
            subjects = load_subjects(folder / name)
        except MetadataError as error:
            problems += error.problems
        else:
            found.append(DataSet(name, folder / name, subjects.names))
    if not found and not problems:
        problems.append(f"{folder}: no sub-folder has a {METADATA}")
    return found


def make_priors(
    folder: Path,
    data_sets: Sequence[DataSet],
    base: str,
    detector: str,
    flags: str,
    state: PartialState,
) -> None:
    """Give every data set a prior set below folder, if it has none.

    Each class's pictures are made once, by all processes together, for all sets that need it.

    Args:
        base: the SDXL that makes them.
        detector: checkpoint that counts the objects in them; where the metric's is a name of its
            own ("owlv2", "foreground"), OWLv2 does.
        flags: more flags of generate_prior.py.
    """
    lacking = [s for s in data_sets if not (folder / s.name / PRIOR_FILENAME).is_file()]
    if not lacking:
        return
    nouns = dict.fromkeys(noun for data_set in lacking for noun in data_set.nouns.values())
    classes = folder / "classes"
    words = ["--gen_class", *(f"{_key(noun)}={noun}" for noun in nouns), "--gen_mask"]
    words += ["--pretrained_model_name_or_path", base]
    if detector not in (OWLV2, FOREGROUND):
        words += ["--detector", detector]
    words += ["--out_dir", str(classes), *shlex.split(flags)]
    generate_prior.main(generate_prior.parse_args(words))
    if state.is_main_process:
        for data_set in lacking:
            _deal(classes, data_set, folder / data_set.name)
    state.wait_for_everyone()


def _key(noun: str) -> str:
    return noun.replace(" ", "_")


def _deal(classes: Path, data_set: DataSet, folder: Path) -> None:
    """Copy a data set's class pictures into a folder of its own, under its subjects' ids."""
    made = load_subjects(classes, PRIOR_FILENAME)
    lines: list[dict] = [{"id": data_set.nouns}]
    with new_folder(folder) as temporary:
        for subject, noun in data_set.nouns.items():
            for photo in made.photos_of(_key(noun)):
                names = {"file_name": photo.image, "mask_path": photo.mask}
                files = {key: f"{subject}_{path.name}" for key, path in names.items()}
                for key, path in names.items():
                    shutil.copyfile(path, temporary / files[key])
                lines.append({"id": subject, **files, "text": photo.caption})
        write_records(temporary / PRIOR_FILENAME, lines)
