"""How much of a text an encoder reads. CLIP's tokenizer is at hand without a model."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from mudi.ground.errors import SetupError

CLIP_TOKENS = 77  # with its two special ones; SDXL's both encoders read no more
CLIP_MERGES = 48894


def clip_tokenizer(num_merges: int = CLIP_MERGES) -> CLIPTokenizer:
    """Build CLIP's tokenizer, SDXL's, from the vocabulary that ships in open_clip_torch.

    Args:
        num_merges: the first of the real ones; with fewer, rarer words become more tokens. Every
            byte is a token, so any text can be encoded.

    Raises:
        SetupError: the package is missing.
    """
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise SetupError("open_clip_torch is missing: pip install -r requirements.txt")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1 : num_merges + 1]]
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=CLIP_TOKENS,
    )


def _byte_letters() -> list[str]:
    """Return the printable stand-ins of the 256 bytes in byte-level BPE (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def cut_text(text: str, tokenizer: Any, seen: int | None = None) -> str | None:
    """Say that a text is longer than the encoder reads; None: it is not.

    Args:
        seen: tokens of a text that are read; None: the tokenizer's own, without special ones.
    """
    if seen is None:
        seen = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    count = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if count <= seen:
        return None
    return f"the caption has {count} tokens; the text encoder sees the first {seen}"
