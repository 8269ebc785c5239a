"""What nodes and mudi agree on below all else: how bad input is told, and which names are alike."""

import unicodedata


class SetupError(ValueError):
    """Something that the user gave forbids to go on; the message says what and what to do."""


def folded(text: str) -> str:
    """Return a text with composed letters (NFC) and single blanks, none at the ends.

    Two texts that look alike are then equal: of an accent as a letter of its own, a double blank, a
    non-breaking one.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())
