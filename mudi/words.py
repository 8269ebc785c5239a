"""Learned words as text: the names that they stand for, and where those are. Knows no torch."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mudi.ground.errors import SetupError
from mudi.texts import class_noun, folded, mark_names, replace_names

FILE_NAME = "learned_words.safetensors"  # of a run's folder
_HEADER = "words"


class WordError(SetupError):
    """A learned word can't be used; the message is one line that says which and why."""


@dataclass(frozen=True)
class Word:
    """A subject's whole name, as tokens of its own.

    Attributes:
        name: rare word and noun, as prompts have it: "hta teddy bear".
        noun: what a base model knows the subject by: "teddy bear".
        token: its first token, and its file's name: "hta_teddy_bear". Others are token_1, …
    """

    name: str
    noun: str
    token: str

    def pieces(self, count: int) -> list[str]:
        """Return its tokens' texts, as `load_textual_inversion` numbers them."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, count))]


def word_of(name: str) -> Word:
    """Return the word that a subject's name becomes.

    Raises:
        WordError: the name is one word, so that no noun is left to start from, or all of its
            letters are in one.
    """
    name = folded(name)
    noun = class_noun(name)
    token = re.sub(r"\W+", "_", name.lower()).strip("_")
    if noun == name or not token:
        raise WordError(f'the name "{name}" is one word: a learned word starts from its noun')
    if "_" not in token:  # as that of "-- robot": every "robot" in a prompt would be it
        raise WordError(
            f'the name "{name}" has letters in one word only, "{token}", which a learned word '
            "can't be told from; give it a rare word of letters"
        )
    return Word(name, noun, token)


def words_of(names: Iterable[str]) -> tuple[Word, ...]:
    """Return the words of several subjects.

    Raises:
        WordError: a name is one word, or two would have the same token.
    """
    words = tuple(map(word_of, names))
    problem = clash([(word, "") for word in words])
    if problem:
        raise WordError(problem)
    return words


def clash(owned: Sequence[tuple[Word, str]]) -> str | None:
    """Say which two words can't be told apart in one tokenizer; None: there are none.

    Args:
        owned: words, each with where it comes from ("": nowhere in particular).
    """
    for i, (word, place) in enumerate(owned):
        for other, other_place in owned[:i]:
            short, long = sorted((word.token, other.token), key=len)
            if re.fullmatch(rf"{re.escape(short)}(_\d+)?", long):
                places = f" ({other_place} and {place})" if place else ""
                names = f'"{other.name}" and "{word.name}"'
                return f"the learned word {short} stands for both {names}{places}"
    return None


class Vocabulary:
    """Finds learned words in texts by their names or tokens, as `mudi.texts` finds names."""

    def __init__(self, words: Sequence[Word]):
        self._by_text = {text: word for word in words for text in (word.name, word.token)}

    def replace(self, text: str, by: Callable[[Word], str]) -> str:
        """Put something in the place of every name (or token) of a learned word."""
        return replace_names(text, {own: by(word) for own, word in self._by_text.items()})

    def with_nouns(self, text: str) -> str:
        """Return what the base model is told: the noun in each name's place."""
        return self.replace(text, lambda word: word.noun)

    def finds(self, text: str) -> bool:
        """Say whether a text holds a learned word."""
        marked, marks = mark_names(text, self._by_text)
        return any(mark in marked for mark in marks)


def words_file(lora: Path) -> Path | None:
    """Return the file of the words that were learned with a LoRA; None: there is none.

    Beside NAME.safetensors that is NAME_learned_words.safetensors (so are merged ones named), or
    the folder's FILE_NAME.

    Args:
        lora: a LoRA's file, or a training run's folder.
    """
    if lora.is_dir():
        found = [lora / FILE_NAME]
    else:
        stem = lora.stem.removesuffix("_kohya")  # the same LoRA in other names
        found = [lora.with_name(f"{stem}_{FILE_NAME}"), lora.with_name(FILE_NAME)]
    return next((path for path in found if path.is_file()), None)


def header_of(words: Sequence[Word]) -> dict[str, str]:
    """Return what a words' file says of them."""
    return {_HEADER: json.dumps([asdict(word) for word in words], ensure_ascii=False)}


def read_words(file: Path) -> tuple[Word, ...]:
    """Return the words that a file holds.

    Raises:
        WordError: it is broken, or no file of learned words.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            return tuple(Word(**record) for record in json.loads(opened.metadata()[_HEADER]))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise WordError(f"{file}: not a file of learned words ({error!r})") from error
