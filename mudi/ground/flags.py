"""What flags of any script have in common: their kinds, their words, what they name."""

import argparse
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

MODEL_INDEX = "model_index.json"
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}  # flags' words -> torch's


def looks_local(name: str) -> bool:
    """Say whether a name can only be meant as a path; a hub id is <owner>/<name>."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1


def model_folder_complaints(flag: str, name: str, index: str) -> list[str]:
    """Complain about a local path that is no model folder; a hub id is left to the hub.

    Args:
        index: the file that makes a folder a model's.
    """
    path = Path(name)
    if path.is_dir():
        if (path / index).is_file():
            return []
        return [f"{flag} {name}: the folder has no {index}, so it holds no diffusers model"]
    if path.exists() or looks_local(name):
        return [f"{flag} {name}: no such folder (nor a hub id, which is <owner>/<name>)"]
    return []


class Parser(argparse.ArgumentParser):
    """Takes `~/` at the beginning of any value for the home folder, as shells do not after "="."""

    def parse_known_args(self, args=None, namespace=None):
        given, rest = super().parse_known_args(args, namespace)
        for name, value in vars(given).items():
            setattr(given, name, _from_home(value))
        return given, rest


def _from_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_home(part) for part in value]
    if isinstance(value, str | Path) and (str(value) == "~" or str(value).startswith("~/")):
        return type(value)(Path(value).expanduser())
    return value


def text_complaints(args: argparse.Namespace) -> list[str]:
    """Complain about texts that no file can hold: bytes that are no UTF-8, half an emoji."""
    found = []
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            try:
                str(text).encode()
            except UnicodeEncodeError:
                told = str(text).encode(errors="backslashreplace").decode()
                found.append(f"--{name} {told}: not Unicode text; is the command's encoding UTF-8?")
    return found


class BooleanFlag(argparse.BooleanOptionalAction):
    """--flag and --no-flag, and also `--flag True` and `--flag False` as older commands write."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
        super().__init__(option_strings, dest, **kwargs)
        self.nargs = "?"

    def __call__(self, parser, namespace, values, option_string=None):
        words = {None: True, "true": True, "1": True, "false": False, "0": False}
        word = values.lower() if isinstance(values, str) else None
        if word not in words:
            parser.error(f"{option_string} takes True or False, got {values!r}")
        negated = (option_string or "").startswith("--no-")
        setattr(namespace, self.dest, words[word] != negated)


class RefusedFlag(argparse.Action):
    """A flag of the original that is an error here; its `const` says why and what to use.

    Its value is not kept, as it may be a secret.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.refused = [*namespace.refused, f"{self.option_strings[0]}: {self.const}"]


def id_table(words: list[str], flag: str, problems: list[str]) -> dict[str, str]:
    """Read the ID=TEXT words of a flag; add what is wrong with them to problems."""
    table: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key.strip() or not value.strip():
            problems.append(f'{flag} {word}: write it as ID="text"')
        elif key in table:
            problems.append(f"{flag}: {key} is given twice")
        table[key] = value.strip()
    return table


def id_numbers(
    words: list[str], flag: str, ids: Collection[str], problems: list[str]
) -> dict[str, float]:
    """Read a flag's ID=NUMBER words, one for each id; add what is wrong with them to problems."""
    numbers = {}
    for key, text in id_table(words, flag, problems).items():
        try:
            numbers[key] = float(text)
        except ValueError:
            numbers[key] = math.nan
        if not math.isfinite(numbers[key]):
            problems.append(f"{flag} {key}={text}: not a number")
    if numbers.keys() != set(ids):
        problems.append(f"{flag}: give one number for each of {', '.join(ids)}")
    return numbers


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say which of the run's settings differ from the checkpoint's, one line each."""
    return [
        f"{key} was {saved.get(key)!r} and is {value!r}"
        for key, value in now.items()
        if saved.get(key) != value
    ]
