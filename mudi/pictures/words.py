"""Learned words that stand beside LoRAs, for pipelines that make pictures."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from mudi.ground.errors import first_line
from mudi.ground.flags import looks_local
from mudi.learned_words import LearnedWords, attach, detach, join_words
from mudi.words import FILE_NAME, WordError, words_file

logger = logging.getLogger("mudi")


def attach_words(pipeline: Any, loras: Sequence[str], cache_dir: str | None = None) -> None:
    """Let a pipeline read the words that were learned with LoRAs, in place of those that it has.

    Args:
        loras: files, folders of training runs, or hub ids.

    Raises:
        WordError: two LoRAs have words that can't be told apart, or some are of another base.
    """
    detach(pipeline)
    files = _files(loras, cache_dir)
    if files:
        words, rows = join_words(files)
        attach(pipeline, LearnedWords(words, rows).requires_grad_(False))
        names = ", ".join(word.name for word in words)
        logger.info("learned words: %s (%s)", names, ", ".join(map(str, files)))


def word_complaints(loras: Sequence[str], cache_dir: str | None = None) -> list[str]:
    """Complain about words that can't be read, or can't be told apart; see `attach_words`."""
    try:
        join_words(_files(loras, cache_dir))
    except WordError as error:
        return [f"--lora: {error}"]
    return []


def _files(loras: Sequence[str], cache_dir: str | None) -> list[Path]:
    return [file for lora in loras if (file := find_words(lora, cache_dir)) is not None]


def find_words(lora: str, cache_dir: str | None = None) -> Path | None:
    """Return the file of the words that were learned with a LoRA; None: there is none.

    Args:
        lora: a file, a training run's folder, or a hub id.

    Raises:
        WordError: the hub does not say.
    """
    if Path(lora).exists() or looks_local(lora):
        return words_file(Path(lora))
    try:
        return Path(hf_hub_download(lora, FILE_NAME, cache_dir=cache_dir))
    except LocalEntryNotFoundError:
        logger.warning("%s: no way to ask the hub whether it has learned words", lora)
        return None
    except EntryNotFoundError:
        return None
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise WordError(f"{lora}: {first_line(error)}") from error
