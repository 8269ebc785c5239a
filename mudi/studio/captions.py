"""Names and captions: written to metadata.jsonl, suggested by a model that sees."""

import threading
from http import HTTPStatus
from typing import Any

from mudi.masks.args import CaptionArgs
from mudi.masks.captions import Describer, load_describer, suggest_caption
from mudi.studio.args import StudioArgs
from mudi.studio.folder import PhotoFolder
from mudi.studio.server import Answers, Asked, Refusal

SHARED = ("caption_model", "llm_url", "llm_model")  # flags, with generate_masks.py


class Captioner:
    """A model that sees, as the flags choose it, loaded when it is first asked."""

    def __init__(self, args: StudioArgs, device: str):
        self._args, self._device = args, device
        self._asking = threading.Lock()
        self._describe: Describer | None = None

    @property
    def is_there(self) -> bool:
        return bool(self._args.caption_model or self._args.llm_url)

    def suggest(self, folder: PhotoFolder, photo: str) -> str:
        """Return a caption for a photo, which is checked, and written by nobody yet.

        Raises:
            Refusal: no model was given, or the photo's subject has no name.
            CaptionError, LlmError: no usable answer.
        """
        name = folder.names().get(folder.entry(photo).subject or "")
        if not self.is_there or name is None:
            told = "name the subject first" if self.is_there else "no model was given that captions"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, told)
        with self._asking:
            if self._describe is None:
                given = {key: getattr(self._args, key) for key in SHARED}
                self._describe = load_describer(CaptionArgs(**given), self._device)
            colours = self._args.caption_colours
            return suggest_caption(folder.photo(photo), name, self._describe, colours)


def answers(folder: PhotoFolder, captioner: Captioner) -> Answers:
    """Return what the tab asks for; what writes is answered by the folder's new state."""

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
        ("GET", "captioner"): lambda asked: {"captions": captioner.is_there},
        ("POST", "suggest_caption"): lambda asked: {
            "caption": captioner.suggest(folder, asked.text("photo"))
        },
        ("POST", "caption"): caption,
        ("POST", "subject"): subject,
        ("POST", "name"): name,
    }
