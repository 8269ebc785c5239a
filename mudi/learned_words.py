"""Learned words: subjects' names as new tokens of SDXL's text encoders (arXiv 2402.12004).

A word has as many new tokens as its noun has in a tokenizer, each started from the noun's own, so
that at first it means what the noun means. Only these rows train; the encoders' own stay.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import Parameter

from mudi.ground.files import replace_file
from mudi.words import FILE_NAME, Vocabulary, Word, WordError, clash, header_of, read_words

EMBEDDINGS = "embeddings"  # folder of the one-word files
# What files call each encoder -> the pipeline's tokenizer and encoder
ENCODERS = {"clip_l": ("tokenizer", "text_encoder"), "clip_g": ("tokenizer_2", "text_encoder_2")}
_OLD_END = 2  # the end's id in CLIP's early configurations; see `_read_at_the_end`
_ATTACHED = "_before_learned_words"

Rows = Mapping[str, Tensor]  # encoder -> a word's rows (n, D) in float32
Joined = tuple[Sequence[Word], Sequence[Rows]]  # words, and the rows of each


class LearnedWords(nn.Module):
    """The rows of all learned words: what trains.

    Like an adapter it is switched off by `mudi.lora.adapters_off`: prompts then have the noun in
    each name's place.

    Attributes:
        rows: (n, D) float32 by encoder, the words' one after the other.
        vocabulary: finds their names in prompts.
        replaces: whether prompts have tokens or nouns for names; see `as_they_are`.
    """

    def __init__(self, words: Sequence[Word], rows: Sequence[Rows]):
        """Take one mapping of rows for each word; their norms are those that `rescale` gives."""
        super().__init__()
        self.words, self.vocabulary = tuple(words), Vocabulary(words)
        self._disable_adapters = False
        self.replaces = True
        self.counts = {name: [len(own[name]) for own in rows] for name in ENCODERS}
        self.rows = nn.ParameterDict(
            {name: Parameter(torch.cat([own[name].float() for own in rows])) for name in ENCODERS}
        )
        for name, values in self.rows.items():
            self.register_buffer(f"norm_{name}", _norms(values.detach()), persistent=False)

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        """Let prompts be read as they stand inside, no name replaced, not even by its noun."""
        self.replaces = False
        try:
            yield
        finally:
            self.replaces = True

    @property
    def disable_adapters(self) -> bool:
        """Whether prompts have nouns for names now; of the name that PEFT's layers have."""
        return self._disable_adapters

    def rescale(self, *_: Any) -> None:
        """Give every row the norm that it started with; a hook of the optimizer's steps."""
        with torch.no_grad():
            for name, values in self.rows.items():
                values.mul_(self.get_buffer(f"norm_{name}") / _norms(values))

    def of_word(self, index: int) -> dict[str, Tensor]:
        """Return a word's rows (n, D) by encoder."""
        found = {}
        for name, counts in self.counts.items():
            found[name] = self.rows[name].detach().split(counts)[index]
        return found

    def take(self, words: Sequence[Word], rows: Sequence[Rows]) -> list[str]:
        """Go on from another's rows, word by word; return the names that are not among its own.

        Raises:
            WordError: a word's rows have another shape.
        """
        own = {word.token: i for i, word in enumerate(self.words)}
        for word, values in zip(words, rows, strict=True):
            if word.token in own:
                for name, target in self.of_word(own[word.token]).items():
                    if values[name].shape != target.shape:
                        raise WordError(
                            f'the learned word "{word.name}" has {_shape(values[name])} numbers '
                            f"for {name} and not {_shape(target)}: another base model's?"
                        )
                    target.copy_(values[name])
        return [word.name for word in words if word.token not in own]

    def save(self, folder: Path) -> Path:
        """Write FILE_NAME into folder, complete or not at all.

        Raises:
            ValueError: a number is infinite or not a number; nothing is written.
        """
        if not all(values.isfinite().all() for values in self.rows.values()):
            raise ValueError("a learned word is broken, its numbers are not finite; not saved")
        return save_words(folder / FILE_NAME, self.words, self._all())

    def save_embeddings(self, folder: Path) -> None:
        """Write EMBEDDINGS/<token>.safetensors, one a word, as ComfyUI and A1111 load them."""
        for word, rows in zip(self.words, self._all(), strict=True):
            state = {name: values.clone().cpu() for name, values in rows.items()}
            replace_file(_embedding_file(folder, word), partial(save_file, state))

    def _all(self) -> list[dict[str, Tensor]]:
        return [self.of_word(i) for i in range(len(self.words))]


def _norms(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=1, keepdim=True)


def _shape(values: Tensor) -> str:
    return " x ".join(map(str, values.shape))


def noun_ids(tokenizer: Any, noun: str) -> list[int]:
    """Return the ids of a noun's tokens."""
    return tokenizer(noun, add_special_tokens=False).input_ids


def fresh_words(pipeline: Any, words: Sequence[Word]) -> LearnedWords:
    """Return words that mean what their nouns mean to a pipeline's text encoders."""
    return LearnedWords(words, [_start(pipeline, word.noun) for word in words])


def _start(pipeline: Any, noun: str) -> dict[str, Tensor]:
    rows = {}
    for name, (tokenizer, encoder) in ENCODERS.items():
        ids = noun_ids(getattr(pipeline, tokenizer), noun)
        weight = getattr(pipeline, encoder).get_input_embeddings().weight.detach()
        rows[name] = weight[torch.tensor(ids, device=weight.device)].float()
    return rows


class WordEmbedding(nn.Embedding):
    """An encoder's frozen embedding, with learned rows for the ids from `first` on.

    The rows stay another module's: nothing here trains, and no key of the encoder changes.
    """

    def __init__(self, base: nn.Embedding, first: int, words: LearnedWords, name: str):
        super().__init__(
            base.num_embeddings, base.embedding_dim, base.padding_idx, _weight=base.weight.detach()
        )
        self.weight = base.weight
        self._first, self._rows = first, lambda: words.rows[name]

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids (B, T) -> (B, T, D), in the base's precision."""
        new = ids >= self._first
        known = super().forward(ids.masked_fill(new, 0))
        rows = self._rows()
        places = (ids - self._first).clamp(min=0).to(rows.device)
        return torch.where(new[..., None], rows[places].to(known), known)


def attach(pipeline: Any, words: LearnedWords) -> None:
    """Let an SDXL pipeline read the words' names in prompts; see `detach`.

    Raises:
        WordError: it has learned words already, or the words are of another base model.
    """
    if hasattr(pipeline, _ATTACHED):
        raise WordError("the pipeline has learned words already; detach those first")
    if not all(getattr(pipeline, part, None) for parts in ENCODERS.values() for part in parts):
        raise WordError(f"a {type(pipeline).__name__} takes no learned words, which are SDXL's")
    before: dict[str, Any] = {}
    ends, own = [], []
    for name, (tokenizer_name, encoder_name) in ENCODERS.items():
        tokenizer, encoder = getattr(pipeline, tokenizer_name), getattr(pipeline, encoder_name)
        base = encoder.get_input_embeddings()
        if words.rows[name].shape[1] != base.embedding_dim:
            raise WordError(
                f"learned words of {words.rows[name].shape[1]} numbers for {name}, which has "
                f"{base.embedding_dim}: another base model's"
            )
        before[tokenizer_name], before[encoder_name] = tokenizer, (encoder, base)
        first = len(tokenizer)
        extended = with_tokens(tokenizer, words.words, words.counts[name])
        own.append((extended, tokenizer))
        setattr(pipeline, tokenizer_name, extended)
        encoder.set_input_embeddings(WordEmbedding(base, first, words, name))
        ends += _read_at_the_end(encoder, tokenizer.eos_token_id)
    pipeline.maybe_convert_prompt = _Converter(words, pipeline.maybe_convert_prompt, own)
    setattr(pipeline, _ATTACHED, (words, before, ends))


def attached(pipeline: Any) -> list[LearnedWords]:
    """Return the words that a pipeline reads, for `adapters_off`; none where it has none."""
    return [getattr(pipeline, _ATTACHED)[0]] if hasattr(pipeline, _ATTACHED) else []


def detach(pipeline: Any) -> None:
    """Undo `attach`; nothing where there is nothing to undo."""
    if not hasattr(pipeline, _ATTACHED):
        return
    _, before, ends = getattr(pipeline, _ATTACHED)
    for tokenizer_name, encoder_name in ENCODERS.values():
        setattr(pipeline, tokenizer_name, before[tokenizer_name])
        encoder, base = before[encoder_name]
        encoder.set_input_embeddings(base)
    for module in ends:
        module.eos_token_id = _OLD_END
    del pipeline.maybe_convert_prompt
    delattr(pipeline, _ATTACHED)


def with_tokens(tokenizer: Any, words: Sequence[Word], counts: Sequence[int]) -> Any:
    """Return a copy of a tokenizer that knows the words' tokens, in order, after its own."""
    tokenizer = copy.deepcopy(tokenizer)
    texts = [text for word, n in zip(words, counts, strict=True) for text in word.pieces(n)]
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(text, single_word=True, normalized=False) for text in texts])
    if tokenizer.convert_tokens_to_ids(texts) != list(range(first, first + len(texts))):
        raise WordError(f"the base's tokenizer knows one of {', '.join(texts)} already")
    return tokenizer


def _read_at_the_end(encoder: nn.Module, end: int) -> list[Any]:
    """Let the pooled vector be read at the end's token; return the modules that this changed.

    Configurations of early CLIPs, SDXL's among them, have a wrong id for it, and the vector is read
    at the largest id instead, which a new token's would be.
    """
    changed: list[Any] = [
        m for m in encoder.modules() if getattr(m, "eos_token_id", None) == _OLD_END
    ]
    for module in changed:
        module.eos_token_id = end
    return changed


class _Converter:
    """Stands for a pipeline's `maybe_convert_prompt`: names become tokens, or nouns if switched.

    Args:
        plain: the pipeline's own, for textual inversions that it had before.
        tokenizers: each that knows the words' tokens, with the one that does not.
    """

    def __init__(
        self,
        words: LearnedWords,
        plain: Callable[[str, Any], str],
        tokenizers: Sequence[tuple[Any, Any]],
    ):
        self._words, self._plain, self._tokenizers = words, plain, tokenizers

    def __call__(self, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
        if isinstance(prompt, list):
            return [self._converted(text, tokenizer) for text in prompt]
        return self._converted(prompt, tokenizer)

    def _converted(self, text: str, tokenizer: Any) -> str:
        for known, base in self._tokenizers:
            if known is tokenizer:
                text = self._plain(text, base)
        if not self._words.replaces:
            return text
        if self._words.disable_adapters:
            return self._words.vocabulary.with_nouns(text)
        known = tokenizer.added_tokens_encoder

        def tokens(word: Word) -> str:
            count = 1
            while word.pieces(count + 1)[-1] in known:
                count += 1
            return " ".join(word.pieces(count))

        return self._words.vocabulary.replace(text, tokens)


def write_results(folder: Path, words: LearnedWords | None) -> None:
    """Write a run's words and their one-word files; remove an earlier run's, and no other files.

    Those would be taken for this run's.

    Args:
        words: None: the run learned none.
    """
    file = folder / FILE_NAME
    own = {word.token for word in words.words} if words else set()
    for word in _earlier(file):
        if word.token not in own:
            _embedding_file(folder, word).unlink(missing_ok=True)
    if words is None:
        file.unlink(missing_ok=True)
    else:
        words.save(folder)
        words.save_embeddings(folder)
    if (folder / EMBEDDINGS).is_dir() and not any((folder / EMBEDDINGS).iterdir()):
        (folder / EMBEDDINGS).rmdir()


def _earlier(file: Path) -> tuple[Word, ...]:
    """Return what an earlier run learned; a broken file, which is replaced, tells of nothing."""
    try:
        return read_words(file) if file.is_file() else ()
    except WordError:
        return ()


def _embedding_file(folder: Path, word: Word) -> Path:
    return folder / EMBEDDINGS / f"{word.token}.safetensors"


def save_words(file: Path, words: Sequence[Word], rows: Sequence[Rows]) -> Path:
    """Write words with their rows (n, D), complete or not at all."""
    state = {
        f"{word.token}.{name}": values.detach().float().clone().cpu()
        for word, own in zip(words, rows, strict=True)
        for name, values in own.items()
    }
    return replace_file(file, lambda path: save_file(state, path, metadata=header_of(words)))


def load_words(file: Path) -> Joined:
    """Return the words of a file with their rows (n, D) in float32.

    Raises:
        WordError: it is broken, or no file of learned words.
    """
    words = read_words(file)
    try:
        state = load_file(file)
        rows = [{name: state[f"{word.token}.{name}"] for name in ENCODERS} for word in words]
    except (OSError, SafetensorError, KeyError) as error:
        raise WordError(f"{file}: not a file of learned words ({error!r})") from error
    return words, rows


def join_words(files: Iterable[Path]) -> Joined:
    """Return the words of several files with their rows; a file that comes twice counts once.

    Raises:
        WordError: two can't be told apart, or a file is broken.
    """
    words: list[Word] = []
    rows: list[Rows] = []
    owned: list[tuple[Word, str]] = []
    for file in dict.fromkeys(path.resolve() for path in files):
        found, values = load_words(file)
        words += found
        rows += values
        owned += [(word, str(file)) for word in found]
    if problem := clash(owned):
        raise WordError(problem)
    return words, rows
