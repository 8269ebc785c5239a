"""class_metadata.jsonl of a prior set, from the log of its pictures and from an earlier one."""

from pathlib import Path

from mudi.checks import PRIOR_FILENAME, SetupError
from mudi.metadata import MetadataError, load_subjects, read_records, write_records

CAPTION = "A photo of a {}, simple background."


def is_done(record: dict, out_dir: Path, with_mask: bool) -> bool:
    """Say whether a noted picture is there, and its mask if one is wanted."""
    keys = ("file_name", "mask_path") if with_mask else ("file_name",)
    return all(key in record and (out_dir / record[key]).is_file() for key in keys)


def read_listed(folder: Path, classes: dict[str, str], problems: list[str]) -> list[dict]:
    """Return the lines of an earlier class_metadata.jsonl, the names of its classes first."""
    path = folder / PRIOR_FILENAME
    try:
        records = read_records(path) or [{"id": {}}]
    except MetadataError as error:
        problems += error.problems
        return []
    names = records[0].get("id")
    if not isinstance(names, dict):
        problems.append(f"{path}:1: the first line must name the classes; mend or remove the file")
        return []
    for subject in names.keys() & classes.keys():
        if names[subject] != classes[subject]:
            problems.append(
                f'{path}:1: "{subject}" is a {names[subject]}, not a {classes[subject]}; '
                "take another --out_dir or --id"
            )
    return records


def class_lines(listed: list[dict], records: list[dict], made: list[dict]) -> list[dict]:
    """Return the lines of class_metadata.jsonl, class by class.

    Args:
        listed: see `read_listed`. Captions that stand there are kept, as are the lines of pictures
            that the log does not know.
        records: the log.
        made: those of its records whose files are there.
    """
    earlier = {line.get("file_name"): line for line in listed[1:]}
    ours = {record["file_name"] for record in records}
    lines = [line for name, line in earlier.items() if name not in ours]
    for record in made:
        places = {key: record[key] for key in ("id", "file_name", "mask_path")}
        text = CAPTION.format(record["class"])
        lines.append({"text": text, **earlier.get(record["file_name"], {}), **places})
    names = listed[0]["id"] | {record["id"]: record["class"] for record in made}
    by_class = {name: [line for line in lines if line.get("id") == name] for name in names}
    header = {subject: names[subject] for subject in names if by_class[subject]}
    unknown = [line for line in lines if line.get("id") not in names]  # told by the check
    return [{"id": header}, *(line for own in by_class.values() for line in own), *unknown]


def write_class_metadata(folder: Path, lines: list[dict]) -> None:
    """Write class_metadata.jsonl and check the folder.

    Raises:
        SetupError: training would refuse it; all problems are listed.
    """
    path = folder / PRIOR_FILENAME
    write_records(path, lines)
    try:
        load_subjects(folder, PRIOR_FILENAME)
    except MetadataError as error:
        raise SetupError(f"{path} is written, but training will not take it:\n{error}") from error
