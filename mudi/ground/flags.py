"""What flags of any script have in common: their kinds, their words, what they name."""

import argparse
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

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


# What --resume_from_checkpoint makes of a flag that differs: told, not compared, or refused.
COMPARED, FREE, FIXED = "compared", "free", "fixed"


def flag(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    refused: str | None = None,
    on_resume: str = COMPARED,
    origin: bool = False,
    positional: bool = False,
    **words: Any,
) -> Any:
    """Declare a flag as a field of a dataclass, of the field's name and type; see `parse`.

    Args:
        at_least, above, at_most, below: the range of a number.
        refused: why the flag is an error, and what to use.
        on_resume: what a continued run may do with it.
        origin: what is made follows from it.
        positional: given by its place, without the name.
        words: more for `add_argument`.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    if refused is not None:
        words |= {"action": RefusedFlag, "const": refused}
    words |= {"help": help} if positional else {"help": help, "default": default}
    metadata = {"words": words, "bounds": bounds, "on_resume": on_resume, "origin": origin}
    metadata["dashes"] = "" if positional else "--"
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(
    record: type[Record],
    description: str | None,
    argv: Sequence[str] | None,
    prog: str | None = None,
    rest: str | None = None,
    **defaults: Any,
) -> Record:
    """Read a command line into a dataclass whose fields are declared by `flag`.

    Each of its bases is a group of flags, titled by its docstring.

    Args:
        rest: the field that takes the words which no flag knows; unset: they are an error.
        defaults: in place of the fields' own.
    """
    parser = Parser(
        prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=rest is None
    )
    kinds = get_type_hints(record)
    declared: Any = record
    flags = {f.name: f for f in fields(declared) if "words" in f.metadata}
    own, *bases = record.__mro__
    for owner in (*bases, own):
        names = [name for name in vars(owner).get("__annotations__", ()) if name in flags]
        group = parser.add_argument_group(owner.__doc__) if names else parser
        for name in names:
            words = dict(flags[name].metadata["words"])
            if name in defaults:
                words |= {"default": defaults[name], "required": False}
            written = flags[name].metadata["dashes"] + name
            group.add_argument(written, **words, **_kind(kinds[name], words))
    if rest is None:
        return record(**vars(parser.parse_args(argv)))
    known, unknown = parser.parse_known_args(argv)
    return record(**vars(known), **{rest: unknown})


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _kind(hint: Any, words: dict[str, Any]) -> dict[str, Any]:
    """Return what a field's type means to argparse: a switch, a choice, one value or several."""
    if hint is bool:
        on = words["default"] is True  # then there is --no-… to switch it off
        return {} if "action" in words else {"action": BooleanFlag if on else "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    options = [kind for kind in get_args(hint) if kind is not NoneType] or [hint]
    return {"type": get_args(options[0])[0] if get_origin(options[0]) is list else options[0]}


def resuming(args: Any, rule: str) -> list[str]:
    """Return the flags of a record for which a continued run has that rule."""
    return [f.name for f in fields(args) if f.metadata.get("on_resume") == rule]


def origins(args: Any, group: Any = None) -> dict[str, Any]:
    """Return the flags of a record that what is made follows from.

    Args:
        group: one of the record's bases, of which alone the flags are wanted; None: of all.
    """
    declared = fields(args if group is None else group)
    return {f.name: getattr(args, f.name) for f in declared if f.metadata.get("origin")}


def range_complaints(args: Any) -> list[str]:
    """Complain about the numbers of a record that are out of their range."""
    complaints = []
    for declared in fields(args):
        bounds = {k: v for k, v in declared.metadata.get("bounds", {}).items() if v is not None}
        value = getattr(args, declared.name)
        if bounds and value is not None and not all(_IN[k](value, v) for k, v in bounds.items()):
            low, high = bounds.get("at_least"), bounds.get("at_most")
            words = " and ".join(_WORDS[key].format(bound) for key, bound in bounds.items())
            if low is not None and high is not None:
                words = f"between {low} and {high}"
            complaints.append(f"--{declared.name} {value}: must be {words}")
    return complaints


_IN: dict[str, Callable[[float, float], bool]] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}
_WORDS = {
    "at_least": "{} or more",
    "above": "above {}",
    "at_most": "{} or less",
    "below": "below {}",
}


def text_complaints(args: Any) -> list[str]:
    """Complain about texts that no file can hold: bytes that are no UTF-8, half an emoji."""
    complaints = []
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            try:
                str(text).encode()
            except UnicodeEncodeError:
                told = str(text).encode(errors="backslashreplace").decode()
                complaints.append(
                    f"--{name} {told}: not Unicode text; is the command's encoding UTF-8?"
                )
    return complaints


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
        earlier = getattr(namespace, "refused", [])
        namespace.refused = [*earlier, f"{self.option_strings[0]}: {self.const}"]


def id_table(words: list[str], flag: str, problems: list[str]) -> dict[str, str]:
    """Read the ID=TEXT words of a flag; add what is wrong with them to problems."""
    table: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key.strip() or not value.strip():
            problems.append(f'{flag} {word}: write it as ID="text"')
        elif word != word.encode(errors="ignore").decode():
            problems.append(f"{flag} {word!a}: holds half a character; type it again")
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
        known = f"give one number for each of {', '.join(ids)}" if ids else "no ids are known"
        problems.append(f"{flag}: {known}")
    return numbers


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], plain: Mapping[str, Any] | None = None
) -> list[str]:
    """Say which of the run's settings differ from the checkpoint's, one line each.

    Args:
        plain: what settings that are not in saved were: the defaults of flags that came later.
    """
    saved = {**(plain or {}), **saved}
    return [
        f"{key} was {saved.get(key)!r} and is {value!r}"
        for key, value in now.items()
        if saved.get(key) != value
    ]
