"""Detect-and-Compare: did every subject appear, and did identities mix?

from detect_and_compare import load_detector, load_embedder, load_references, score_images

Names are imported when they are asked for, so that `detect_and_compare.score`, the maths, costs
NumPy only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detect_and_compare.detect import load_detector
    from detect_and_compare.draw import annotated
    from detect_and_compare.embed import load_embedder
    from detect_and_compare.measure import Metric, Record, Variant, score_images
    from detect_and_compare.references import default_query, load_references

_MODULES = {
    "Metric": "measure",
    "Record": "measure",
    "Variant": "measure",
    "annotated": "draw",
    "default_query": "references",
    "load_detector": "detect",
    "load_embedder": "embed",
    "load_references": "references",
    "score_images": "measure",
}
__all__ = [
    "Metric",
    "Record",
    "Variant",
    "annotated",
    "default_query",
    "load_detector",
    "load_embedder",
    "load_references",
    "score_images",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"detect_and_compare has no {name!r}")
    return getattr(import_module(f"detect_and_compare.{_MODULES[name]}"), name)
