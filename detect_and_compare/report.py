"""report.html: pictures with their boxes, matrices and verdicts, in one file; no network needed."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from detect_and_compare.draw import BADGE, EXTRA_COLOUR, colour_of, subjects_of_boxes
from detect_and_compare.measure import READERS
from detect_and_compare.pictures import IMAGE, PROMPT, Picture
from detect_and_compare.references import References
from detect_and_compare.results import Line, Summary
from detect_and_compare.score import MIN_SEPARATION
from mudi.ground.files import write_text
from mudi.images import Box, ImageError, load_rgb

TEMPLATE = "report.html"
THUMBNAIL = 288  # px, the longest side of an inlined picture
REFERENCE_HEIGHT = 144  # px; they are shown at half of it
JPEG_QUALITY = 80
SHADES = np.array([(247, 251, 255), (107, 174, 214), (8, 48, 107)])  # of heat maps, low to high
DARK = 0.62  # from this share of the range on, cells need white ink


@dataclass(frozen=True)
class Mark:
    """How the report refers to a subject: a coloured square with a number."""

    label: str
    colour: str
    name: str


EXTRA = Mark("+", EXTRA_COLOUR, "matched to no subject")


@dataclass(frozen=True)
class Cell:
    value: float
    colour: str
    ink: str


@dataclass(frozen=True)
class Heat:
    """A matrix as coloured cells; each row under its mark."""

    caption: str
    columns: list[Mark]
    rows: list[tuple[Mark, list[Cell]]]


@dataclass(frozen=True)
class Scale:
    """From a number between low and high to a shade."""

    low: float
    high: float

    def cell(self, value: float) -> Cell:
        share = float(np.clip((value - self.low) / max(self.high - self.low, 1e-6), 0, 1))
        stops = np.linspace(0, 1, len(SHADES))
        red, green, blue = (round(np.interp(share, stops, channel)) for channel in SHADES.T)
        return Cell(value, f"#{red:02x}{green:02x}{blue:02x}", "white" if share > DARK else "black")


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Attributes:
        pictures: by name; those of `lines`.
        expected: S_GT (N, N) by embedder, the first of which ranks the pictures.
        queries: what was looked for, by subject; empty for a detector without texts.
        text_model: the text-fidelity model's name, if there is one.
        settings: flags and their values, told at the end.
        limit: how many pictures to show.
    """

    lines: Sequence[Line]
    pictures: Mapping[str, Picture]
    references: References
    expected: Mapping[str, np.ndarray]
    summary: Sequence[Summary]
    queries: Mapping[str, str]
    text_model: str | None
    group_by: str | None
    settings: Mapping[str, Any]
    limit: int


def write_report(path: Path, report: Report) -> None:
    """Write the report; pictures that could not be read come first, then the lowest scores."""
    embedders = list(report.expected)
    names = report.references.names
    marks = {
        subject: Mark(str(i + 1), colour_of(i), name)
        for i, (subject, name) in enumerate(names.items())
    }
    scales = {name: _scale(report, name) for name in embedders}
    expected = {
        name: _heat("S_GT", list(marks.values()), list(marks.values()), matrix, scales[name])
        for name, matrix in report.expected.items()
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lines = sorted(report.lines, key=lambda line: _score(line, embedders[0]))[: report.limit]
    with ThreadPoolExecutor(READERS) as pool:
        jpegs = pool.map(lambda line: _thumbnail(report.pictures[line[IMAGE]].path, line), lines)
        rows = [
            _row(report.pictures[line[IMAGE]], line, jpeg, marks, scales, expected)
            for line, jpeg in zip(lines, jpegs, strict=True)
        ]
    html = environment.get_template(TEMPLATE).render(
        title=f"{len(report.lines)} pictures of {' and '.join(names.values())}",
        summary=report.summary,
        group_by=report.group_by,
        subjects=[
            {
                "mark": mark,
                "query": report.queries.get(subject),
                "images": [_reference(image) for image in report.references.images[subject]],
            }
            for subject, mark in marks.items()
        ],
        expected=[{"measure": name, "heat": heat} for name, heat in expected.items()],
        rows=rows,
        total=len(report.lines),
        embedders=embedders,
        text_model=report.text_model,
        norm="Frobenius norm" if report.settings["norm"] == "fro" else "spectral norm",
        matching=report.settings["matching"],
        min_separation=MIN_SEPARATION,
        count_aware=report.settings["count_aware"],
        settings={name: _told(value) for name, value in report.settings.items()},
    )
    write_text(path, html)


def _told(value: Any) -> str:
    """Return a setting as the command line has it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text}" for key, text in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value)
    return "none" if value is None else str(value)


def _score(line: Line, embedder: str) -> float:
    return line["scores"][embedder]["score"] if "scores" in line else -np.inf


def _scale(report: Report, embedder: str) -> Scale:
    """Return one scale for all of an embedder's matrices, so that they can be compared."""
    values = [*report.expected[embedder].ravel().tolist()]
    for line in report.lines:
        for row in line["scores"][embedder]["similarity"] if "scores" in line else []:
            values += row
    return Scale(min(values), max(values))


def _heat(
    caption: str, columns: list[Mark], rows: list[Mark], matrix: np.ndarray, scale: Scale
) -> Heat:
    cells = [[scale.cell(value) for value in row] for row in np.asarray(matrix).tolist()]
    return Heat(caption, columns, list(zip(rows, cells, strict=True)))


def _row(
    picture: Picture,
    line: Line,
    jpeg: str | None,
    marks: Mapping[str, Mark],
    scales: Mapping[str, Scale],
    expected: Mapping[str, Heat],
) -> dict[str, Any]:
    """Return what the template says of a picture."""
    row: dict[str, Any] = {
        "name": picture.name,
        "prompt": picture.prompt,
        "extra": [(key, value) for key, value in picture.extra.items() if key != PROMPT],
        "jpeg": jpeg,
        "problem": line.get("problem", "gone since it was scored"),
        "num_boxes": len(line.get("boxes", [])),
        "text_fidelity": line.get("text_fidelity"),
        "cells": [],
    }
    if jpeg is None:
        return row
    first = next(iter(line["scores"].values()))
    matched = _matched(first, marks, row["num_boxes"])
    width, height = line["size"]
    return row | {
        "width": width,
        "height": height,
        "unit": BADGE * max(width, height),
        "boxes": list(_boxes(line, matched)),
        "cells": [
            _cell(result, marks, scales[name], expected[name])
            for name, result in line["scores"].items()
        ],
    }


def _matched(result: Line, marks: Mapping[str, Mark], num_boxes: int) -> list[Mark]:
    """Return the mark of each box: its subject's, or EXTRA."""
    every = list(marks.values())
    matched = [verdict["detection"] for verdict in result["subjects"].values()]
    subjects = subjects_of_boxes(matched, num_boxes)
    return [EXTRA if subject is None else every[subject] for subject in subjects]


def _boxes(line: Line, matched: Sequence[Mark]) -> Iterator[dict[str, Any]]:
    for corners, confidence, mark in zip(line["boxes"], line["confidences"], matched, strict=True):
        box = Box(*corners)
        yield {
            "left": box.left,
            "top": box.top,
            "width": box.width,
            "height": box.height,
            "mark": mark,
            "title": f"{mark.name}, confidence {confidence:.2f}",
        }


def _cell(result: Line, marks: Mapping[str, Mark], scale: Scale, expected: Heat) -> dict[str, Any]:
    """Return what the template says of a picture by one embedder."""
    every = list(marks.values())
    if result["matrix"] is not None:
        found = _heat("S_DC", every, every, result["matrix"], scale)
    else:
        rows = _matched(result, marks, len(result["similarity"]))
        found = _heat("boxes", every, rows, result["similarity"], scale)
    chips = [
        {
            "mark": marks[subject],
            "status": verdict["status"],
            "other": None if verdict["mixed_with"] is None else every[verdict["mixed_with"]],
            "separation": verdict["separation"],
        }
        for subject, verdict in result["subjects"].items()
    ]
    return {
        "score": result["score"],
        "verdict": result["verdict"],
        "found": found,
        "expected": expected,
        "chips": chips,
    }


def _thumbnail(path: Path, line: Line) -> str | None:
    """Return a picture as a small JPEG in a data URI; None if it can't be read (any more)."""
    if "problem" in line:
        return None
    try:
        return _data_uri(ImageOps.contain(load_rgb(path), (THUMBNAIL, THUMBNAIL)))
    except ImageError:
        return None


def _reference(image: Image.Image) -> str:
    width = round(image.width * REFERENCE_HEIGHT / image.height)
    return _data_uri(image.resize((max(1, width), REFERENCE_HEIGHT), reducing_gap=3.0))


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
