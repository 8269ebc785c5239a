"""Detect-and-Compare: did every subject appear, and did identities mix?

from detect_and_compare import load_detector, load_embedder, load_references, score_images
"""

from detect_and_compare.detect import load_detector
from detect_and_compare.draw import annotated
from detect_and_compare.embed import load_embedder
from detect_and_compare.measure import Metric, Record, Variant, score_images
from detect_and_compare.references import default_query, load_references

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
