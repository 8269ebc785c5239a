"""Names as people and file systems write them: which of them are the same."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from comfyui.basics import folded

FIRST_MARK = 0xF0000  # private characters, which no font and no prompt has


def class_noun(name: str) -> str:
    """Return a subject's name without its first word, the rare token; a one-word name stays."""
    return name.split(maxsplit=1)[-1]


def mark_names(text: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return a text with a mark in each name's place, and the names by their marks.

    A name counts as a whole word or words, and not where it is part of a longer name. Case, kinds
    and numbers of blanks do not matter, nor how a letter's accent is written.
    """
    marks = {}
    text = folded(text)
    for i, name in enumerate(sorted(dict.fromkeys(names), key=len, reverse=True)):
        mark = chr(FIRST_MARK + i)
        marks[mark] = name
        text = re.sub(rf"(?<!\w){re.escape(folded(name))}(?!\w)", mark, text, flags=re.IGNORECASE)
    return text, marks


def replace_names(text: str, others: Mapping[str, str]) -> str:
    """Put others in the place of names, e.g. class nouns: {"olis robot": "robot"}.

    "a photo of an Olis robot" becomes "a photo of an robot": articles stay. What counts as a name:
    see `mark_names`.
    """
    text, marks = mark_names(text, others)
    for mark, name in marks.items():
        text = text.replace(mark, others[name])
    return text


def rename(text: str, was: str, now: str, others: Iterable[str]) -> str:
    """Put a name in another's place; a text without that one stays as it is.

    Args:
        others: names that stay as they are written, also where the old one is a part of them.
    """
    marked, marks = mark_names(text, [was, *others])
    if not any(marks.get(letter) == was for letter in marked):
        return text
    text, made, at = folded(text), "", 0
    for letter in marked:
        name = marks.get(letter)
        end = at + (1 if name is None else len(folded(name)))
        made += now if name == was else text[at:end]
        at = end
    return made


def has_half_character(text: str) -> bool:
    """Say whether a text holds a lone surrogate, as JSON's "\\ud83d" is; no file can hold that."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """Return a text with escape sequences and the like spelt out, as a terminal would obey them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file in a folder that has this relative name, or the only one that looks like it.

    macOS writes names in decomposed letters (NFD), which no other system takes for the same.
    """
    if is_file(folder / name):
        return folder / name
    found = [folder]
    for part in Path(name).parts:
        found = [entry for place in found for entry in _alike(place, part)]
    files = [path for path in found if is_file(path)]
    return files[0] if len(files) == 1 else None


def _alike(folder: Path, name: str) -> list[Path]:
    if name == "..":
        return [folder / name]
    wanted = folded(name)
    try:
        with os.scandir(folder) as entries:  # twice as fast as Path.iterdir
            return [folder / entry.name for entry in entries if folded(entry.name) == wanted]
    except OSError:
        return []


def is_file(path: Path) -> bool:
    """Say whether there is a file, also of a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one that no file can have
        return False
