"""What a picture looks like, as a vector: the embedders that the metric compares with.

    embedder = load_embedder("dreamsim", device="cuda")
    vectors = embedder(images)  # (n, D) float32

MuDI's are DreamSim's ensemble (D&C-DS) and DINOv2-base, mean over all tokens (D&C-DINO).
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel

from detect_and_compare.args import POOLINGS
from detect_and_compare.histogram import ColourHistogram
from detect_and_compare.weights import with_weights
from mudi.ground.errors import SetupError, first_line
from mudi.ground.files import replace_file

DREAMSIM = "dreamsim"
CLIP = "openai/clip-vit-large-patch14"
CHECKPOINTS = {"dinov2": "facebook/dinov2-base", "clip": CLIP}
BATCH_SIZE = 32
UNREADABLE = (
    OSError,  # also a failed download
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


class EmbedError(SetupError):
    """An embedder can't be had; the message names the checkpoint and what to do, in one line."""


class Embedder(Protocol):
    """Turns RGB pictures into vectors (n, D) float32; `name` tells checkpoint and pooling."""

    name: str

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray: ...


def load_embedder(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    pooling: str | None = None,
    batch_size: int = BATCH_SIZE,
    cache_dir: Path | None = None,
) -> Embedder:
    """Load an embedder by name.

    Args:
        name: "dreamsim" (the ensemble), "dreamsim:<type>" (one of the package's single models),
            "dinov2", "clip", "colours" (needs no weights), or the folder or hub id of any
            AutoModel with an image processor.
        pooling: see `AutoEmbedder`; DreamSim has its own.
        batch_size: pictures that go through the network at once.
        cache_dir: where checkpoints are kept, or fetched to (by default in each library's place).

    Raises:
        EmbedError: it can't be loaded or fetched, or has no such pooling.
    """
    if name == ColourHistogram.name:
        return ColourHistogram()
    family, _, kind = name.partition(":")
    if family == DREAMSIM:
        if pooling is not None:
            raise EmbedError(f"{name}: pooling {pooling}: DreamSim pools by itself; give none")
        return DreamSim(kind or "ensemble", device, dtype, batch_size, cache_dir)
    checkpoint = CHECKPOINTS.get(name, name)
    return AutoEmbedder(checkpoint, device, dtype, pooling, batch_size, cache_dir)


class AutoEmbedder:
    """Any vision model of transformers' AutoModel, with its own image processor.

    Poolings: "mean" over all tokens of the last hidden state, class token included; "cls", its
    first token; "pooler", the model's own pooled output; "features", what a model with two towers
    compares with text. The default is "features" where there are such, else "mean".

    Raises:
        EmbedError: see `load_embedder`; when called, the network has not what the pooling needs.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        pooling: str | None = None,
        batch_size: int = BATCH_SIZE,
        cache_dir: Path | None = None,
    ):
        if pooling not in (None, *POOLINGS):
            raise EmbedError(f"{checkpoint}: pooling {pooling}: known are {', '.join(POOLINGS)}")
        self._model, self._processor, missing = load_pretrained(
            checkpoint, AutoImageProcessor, device, dtype, cache_dir
        )
        two_towers = hasattr(self._model, "get_image_features")
        self._pooling = pooling or ("features" if two_towers else "mean")
        if self._pooling == "features" and not two_towers:
            raise EmbedError(f"{checkpoint}: pooling features: the model has no text tower")
        if self._pooling != "pooler":
            missing = {key for key in missing if not key.startswith("pooler.")}
        refuse_missing(checkpoint, missing)
        self._batch_size = batch_size
        self.name = named(checkpoint, self._model, self._pooling)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        return in_batches(self._embed, images, self._batch_size)

    def _embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        inputs = self._processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
        if self._pooling == "features":
            return self._model.get_image_features(pixel_values=pixels).pooler_output
        outputs = getattr(self._model, "vision_model", self._model)(pixel_values=pixels)
        if self._pooling == "pooler":
            if getattr(outputs, "pooler_output", None) is None:
                raise EmbedError(f"{self.name}: the model has no pooled output; use mean or cls")
            return outputs.pooler_output.flatten(1)
        tokens = outputs.last_hidden_state  # (B, T, D)
        if tokens.ndim != 3:
            raise EmbedError(f"{self.name}: the model has no tokens; use pooling pooler")
        return tokens.mean(1) if self._pooling == "mean" else tokens[:, 0]


class DreamSim:
    """The `dreamsim` package's networks, their embeddings centred and normalised as it does.

    The package fetches what is not in cache_dir from GitHub, and for types with a DINO backbone
    also from torch.hub. Let one process do that first.

    Args:
        kind: the package's `dreamsim_type`.

    Raises:
        EmbedError: see `load_embedder`.
    """

    def __init__(
        self,
        kind: str = "ensemble",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH_SIZE,
        cache_dir: Path | None = None,
    ):
        from dreamsim import dreamsim  # takes seconds, needless for DINOv2
        from dreamsim.config import dreamsim_weights

        kinds = [known for known in dreamsim_weights if not known.endswith("_patch")]
        if kind not in kinds:
            raise EmbedError(f"{DREAMSIM}:{kind}: no such type; there are {', '.join(kinds)}")
        folder = cache_dir or Path(torch.hub.get_dir()) / DREAMSIM
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _hub_dir_kept(), _peft_warnings():
                self._model, self._preprocess = dreamsim(
                    device=str(device), cache_dir=str(folder), dreamsim_type=kind
                )
        except UNREADABLE as error:
            raise EmbedError(
                f"{DREAMSIM} {kind}: cannot be loaded from {folder} ({first_line(error)}); "
                f"unzip {dreamsim_weights[kind]} there{_dino_hint(kind)}"
            ) from error
        self._device = torch.device(device)
        self._dtype = dtype
        self._batch_size = batch_size
        self.name = f"{DREAMSIM} {kind}{_precision(dtype)}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        return in_batches(self._embed, images, self._batch_size)

    def _embed(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = torch.cat([self._preprocess(image) for image in images]).to(self._device)
        # Autocast, as the projections of CLIP are no parameters, which a cast would leave behind.
        mixed = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=mixed):
            return self._model.embed(pixels)


def load_pretrained(
    checkpoint: str,
    processor: Any,
    device: str | torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None,
) -> tuple[Any, Any, set[str]]:
    """Load an AutoModel and its processor.

    Args:
        processor: the Auto class of the processor.

    Returns:
        The model in eval mode, the processor, and the weights that the checkpoint lacks.

    Raises:
        EmbedError: there is no such checkpoint, it is broken, or it can't be reached.
    """
    try:
        model, loading = AutoModel.from_pretrained(
            checkpoint, dtype=dtype, cache_dir=cache_dir, output_loading_info=True
        )
        processor = processor.from_pretrained(checkpoint, cache_dir=cache_dir)
    except UNREADABLE as error:
        raise EmbedError(
            f"{checkpoint}: cannot be loaded ({first_line(error)}); give a folder made by "
            "save_pretrained, or a hub id; `hf download <id>` fetches one for use without a network"
        ) from error
    return model.to(device).eval(), processor, set(loading["missing_keys"])


def refuse_missing(checkpoint: str, missing: set[str]) -> None:
    """Raise EmbedError if weights are missing: transformers fills them with random numbers."""
    if missing:
        raise EmbedError(f"{checkpoint}: lacks {len(missing)} weights, such as {min(missing)}")


def named(checkpoint: str, model: Any, part: str) -> str:
    """Return a model's name for the records."""
    return f"{with_weights(checkpoint, model)} {part}{_precision(model.dtype)}"


def in_batches(
    embed: Callable[[Any], torch.Tensor], items: Sequence[Any], batch_size: int
) -> np.ndarray:
    """Return embed's (b, D) of all items as (n, D) float32; (0, 0) if there are none."""
    starts = range(0, len(items), batch_size)
    batches = [embed(items[i : i + batch_size]).float().cpu().numpy() for i in starts]
    return np.concatenate(batches) if batches else np.empty((0, 0), dtype=np.float32)


def cached_embeddings(
    embedder: Embedder, images: Sequence[Image.Image], cache_dir: Path | None
) -> np.ndarray:
    """Return embedder(images), each from cache_dir if its pixels were embedded before.

    What is not there is embedded and kept, one file a picture, by its pixels and the embedder's
    name. Several processes may share the folder. None: nothing is kept.
    """
    if cache_dir is None or not images:
        return embedder(images)
    paths = [cache_dir / f"{_content_key(embedder.name, image)}.npy" for image in images]
    fresh = {path: image for path, image in zip(paths, images, strict=True) if not path.is_file()}
    if fresh:
        for path, vector in zip(fresh, embedder(list(fresh.values())), strict=True):
            own = path.with_name(f"{os.getpid()}-{path.name}")
            replace_file(own, partial(_save_array, array=vector)).replace(path)
    return np.stack([np.load(path) for path in paths])


def _content_key(name: str, image: Image.Image) -> str:
    key = sha256(f"{name}\n{image.mode} {image.width} {image.height}\n".encode())
    key.update(image.tobytes())
    return key.hexdigest()


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, numpy would add a suffix
        np.save(file, array)


@contextmanager
def _hub_dir_kept() -> Iterator[None]:
    """Undo dreamsim's change of torch.hub's folder."""
    before = torch.hub.get_dir()
    try:
        yield
    finally:
        torch.hub.set_dir(before)


@contextmanager
def _peft_warnings() -> Iterator[None]:
    """Raise ValueError where peft would only warn that LoRA weights are missing.

    That the network has a LoRA already is no news: dreamsim loads the weights into that one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            yield
        except UserWarning as warning:
            raise ValueError(str(warning)) from warning


def _dino_hint(kind: str) -> str:
    """Name what torch.hub adds to the checkpoint of a type with a DINO backbone."""
    if kind not in ("ensemble", "dino_vitb16"):
        return ""
    return (
        ", put github.com/facebookresearch/dino there as facebookresearch_dino_main, and "
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth "
        "into its checkpoints/"
    )


def _precision(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"
