"""Which weights a folder holds, for the records: a name alone may stand for others tomorrow."""

from hashlib import blake2b
from pathlib import Path

import torch


def with_weights(checkpoint: str, model: torch.nn.Module) -> str:
    """Return a checkpoint's name; a folder's ends in eight hex digits of its model's weights."""
    if not Path(checkpoint).is_dir():
        return checkpoint
    digest = blake2b(digest_size=4)
    for weights in model.state_dict().values():
        digest.update(weights.cpu().reshape(-1).view(torch.uint8).numpy())
    return f"{checkpoint}@{digest.hexdigest()}"
