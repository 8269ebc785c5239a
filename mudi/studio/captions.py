"""Names and captions: written to metadata.jsonl, and what the checker says of them."""

from typing import Any

from mudi.studio.folder import PhotoFolder
from mudi.studio.server import Answers, Asked


def answers(folder: PhotoFolder) -> Answers:
    """Return what the tab asks for; each answer is the folder's new state."""

    def caption(asked: Asked) -> dict[str, Any]:
        now = [str(line) for line in asked.items("now")]
        folder.set_text(asked.text("photo"), asked.raw("was"), now)
        return folder.state()

    def subject(asked: Asked) -> dict[str, Any]:
        folder.set_subject(asked.text("photo"), asked.maybe_text("was"), asked.text("now"))
        return folder.state()

    def name(asked: Asked) -> dict[str, Any]:
        folder.set_name(asked.text("id"), asked.maybe_text("was"), asked.text("now"))
        return folder.state()

    return {
        ("GET", "captioner"): lambda asked: {"captions": False},
        ("POST", "caption"): caption,
        ("POST", "subject"): subject,
        ("POST", "name"): name,
    }
