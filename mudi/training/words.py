"""--learn_words: the words of a run, fresh or from an earlier LoRA's, and what they cost."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from torch import nn

from mudi.learned_words import LearnedWords, attach, fresh_words, load_words
from mudi.metadata import Scene, Subjects
from mudi.training.args import TrainingArgs
from mudi.words import Vocabulary, word_of, words_file, words_of

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


def tell_lacking(subjects: Subjects) -> None:
    """Warn of captions from which a subject's word is not learned."""
    vocabularies = {s: Vocabulary([word_of(name)]) for s, name in subjects.names.items()}
    asked = [
        (picture.image.name, subject, caption)
        for picture in subjects.pictures
        for subject in (picture.subjects if isinstance(picture, Scene) else (picture.subject,))
        for caption in picture.captions
    ]
    lacking = [one for one in asked if not vocabularies[one[1]].finds(one[2])]
    if lacking:
        image, subject, caption = lacking[0]
        logger.warning(
            f"--learn_words: {len(lacking)} of {len(asked)} captions lack a subject's name, whole "
            f'and in the singular, as "{caption}" of {image} lacks "{subjects.names[subject]}": '
            "words are learned from the others and from Seg-Mix's captions alone"
        )


def tell_cost(words: LearnedWords, encoders: Iterable[nn.Module], prompts: list[str]) -> None:
    """Say what it costs that prompts with learned words can't be encoded beforehand."""
    size = sum(p.nbytes for encoder in encoders for p in encoder.parameters())
    live = sum(map(words.vocabulary.finds, prompts))
    logger.info(
        f"--learn_words: the text encoders stay loaded ({size / 1e9:.2f} GB), and {live} of "
        f"{len(prompts)} prompts are encoded whenever they come"
    )
