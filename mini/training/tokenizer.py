"""A small CLIP tokenizer: the world's words are whole tokens, names and other text are spelled.

So a name that was never heard is made of letters that names are made of.
"""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from mini.backgrounds import random_name
from mini.cast import CAST
from mini.world import random_caption, random_things

NUM_CAPTIONS = 4000  # that the words are taken from
PROMPT_TOKENS = 64  # the longest caption has about 50; real CLIP's 77 would only cost time
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def world_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer; it is always the same as long as the captions' words are."""
    words = Counter(
        word
        for text in random_captions(NUM_CAPTIONS, seed=0)
        for word in re.findall("[a-z]+", text.lower())
        if word not in CAST
    )
    merges: Any = count_merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [*("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=PROMPT_TOKENS,
    )


def random_captions(count: int, seed: int) -> list[str]:
    """Return captions as the scenes have them, without drawing the scenes."""
    rng = np.random.default_rng(seed)
    return [random_caption(random_things(rng), random_name(rng), rng) for _ in range(count)]


def count_merges(words: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merge the most frequent pair of pieces until every word is whole (byte-pair encoding).

    The tokenizers package's trainer breaks ties differently each time; here the order is fixed.

    Args:
        words: ASCII word -> how often it occurs.

    Returns:
        The merged pairs, first merge first.
    """
    split = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: _merged(pieces, best) for word, pieces in split.items()}


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of the pair, left to right."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
