"""--learn_words: the words of a run, fresh or from an earlier LoRA's, and what they cost."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from torch import nn

from mudi.learned_words import LearnedWords, attach, fresh_words, load_words
from mudi.training.args import TrainingArgs
from mudi.words import words_file, words_of

logger = get_logger("mudi")


def make_words(args: TrainingArgs, pipeline: Any, names: Iterable[str]) -> LearnedWords | None:
    """Teach a pipeline the words that stand for the subjects' names; None without --learn_words.

    Raises:
        WordError: the words of --resume_lora do not fit the base model.
    """
    if not args.learn_words:
        return None
    words = fresh_words(pipeline, words_of(names))
    file = words_file(Path(args.resume_lora)) if args.resume_lora else None
    if file is not None:
        left_out = words.take(*load_words(file))
        logger.info(f"--resume_lora: learned words from {file}")
        if left_out:
            logger.warning(f"{file}: {', '.join(left_out)}: not of this run, so not kept")
    attach(pipeline, words)
    return words


def tell_cost(words: LearnedWords, encoders: Iterable[nn.Module], prompts: list[str]) -> None:
    """Say what it costs that prompts with learned words can't be encoded beforehand."""
    size = sum(p.nbytes for encoder in encoders for p in encoder.parameters())
    live = sum(map(words.vocabulary.finds, prompts))
    logger.info(
        f"--learn_words: the text encoders stay loaded ({size / 1e9:.2f} GB), and {live} of "
        f"{len(prompts)} prompts are encoded whenever they come"
    )
