"""CLIP-T: does a picture show what its prompt says?

clip_t = ClipText(device="cuda")
fidelity = clip_t(images, prompts)  # (n,)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel

from detect_and_compare.embed import (
    BATCH_SIZE,
    CLIP,
    EmbedError,
    in_batches,
    load_pretrained,
    named,
    refuse_missing,
)


class ClipText:
    """Cosine between CLIP's embeddings of a picture and of its text, in [-1, 1].

    Published values differ by backbone, so `name` says which. Prompts are cut at CLIP's 77 tokens.

    Args:
        checkpoint: folder or hub id of a CLIPModel.
        batch_size: pairs that go through the network at once.
        cache_dir: where hub checkpoints are kept (by default in the hub library's place).

    Raises:
        EmbedError: the checkpoint can't be loaded or is no CLIP.
    """

    def __init__(
        self,
        checkpoint: str = CLIP,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH_SIZE,
        cache_dir: Path | None = None,
    ):
        self._model, self._processor, missing = load_pretrained(
            checkpoint, AutoProcessor, device, dtype, cache_dir
        )
        if not isinstance(self._model, CLIPModel):
            raise EmbedError(
                f"{checkpoint}: a {type(self._model).__name__}; CLIP-T wants CLIPModel"
            )
        refuse_missing(checkpoint, missing)
        self._batch_size = batch_size
        self.name = named(checkpoint, self._model, "CLIP-T")

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each picture with its own text, (n,) float32."""
        pairs = list(zip(images, texts, strict=True))
        return in_batches(self._cosines, pairs, self._batch_size).ravel()

    def _cosines(self, pairs: Sequence[tuple[Image.Image, str]]) -> torch.Tensor:
        """Return (b, 1)."""
        images, texts = zip(*pairs, strict=True)
        inputs = self._processor(
            images=list(images),
            text=list(texts),
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self._model.device)
        pixels = inputs.pop("pixel_values").to(self._model.dtype)
        seen = self._model.get_image_features(pixel_values=pixels).pooler_output
        said = self._model.get_text_features(**inputs).pooler_output
        return torch.cosine_similarity(seen.float(), said.float()).unsqueeze(1)
