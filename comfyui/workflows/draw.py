"""Draw a workflow as ComfyUI shows it, for the README: boxes of inputs, and wires.

python comfyui/workflows/draw.py comfyui/workflows/sdxl.json sdxl.png
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, ROW, GAP, BESIDE = 196, 17, 16, 64  # px: a box, a line of it, between boxes, columns
LETTERS = 30  # of a line
SLACK = 40  # px that a wire bends out by
OURS, THEIRS, WIRE = "#cfe8d5", "#e6e6ea", "#7a7a88"

Graph = dict[str, dict[str, Any]]


def links(node: dict[str, Any]) -> dict[str, str]:
    """Return {input: id of the node that it comes from}."""
    return {key: value[0] for key, value in node["inputs"].items() if isinstance(value, list)}


def columns(graph: Graph) -> dict[int, list[str]]:
    """Put each node right of all that it needs, sources just left of who needs them."""
    depth: dict[str, int] = {}

    def depth_of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(depth_of, links(graph[name]).values()), default=-1)
        return depth[name]

    for name in graph:
        depth_of(name)
    for name, node in graph.items():
        if not links(node):
            users = [depth[user] for user in graph if name in links(graph[user]).values()]
            depth[name] = min(users) - 1
    placed: dict[int, list[str]] = defaultdict(list)
    for name in graph:
        placed[depth[name]].append(name)
    return placed


def corners(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return each box's left top corner (px), the columns centred."""
    placed = columns(graph)
    heights = {
        column: sum(height(graph[name]) + GAP for name in names) for column, names in placed.items()
    }
    found = {}
    for column, names in placed.items():
        top = GAP + (max(heights.values()) - heights[column]) // 2
        for name in names:
            found[name] = GAP + column * (WIDTH + BESIDE), top
            top += height(graph[name]) + GAP
    return found


def height(node: dict[str, Any]) -> int:
    return ROW * (len(node["inputs"]) + 1) + 6


def draw(graph: Graph) -> Image.Image:
    places = corners(graph)
    right = max(left for left, _ in places.values()) + WIDTH + GAP
    lowest = max(top + height(graph[name]) for name, (_, top) in places.items()) + GAP
    image = Image.new("RGB", (right, lowest), "white")
    pen = ImageDraw.Draw(image)
    for name, node in graph.items():
        left, top = places[name]
        for row, key in enumerate(node["inputs"], 1):
            if key in links(node):
                source = places[links(node)[key]]
                start = source[0] + WIDTH, source[1] + ROW // 2 + 2
                wire(pen, start, (left, top + row * ROW + ROW // 2))
    for name, node in graph.items():
        box(pen, *places[name], node)
    return image


def wire(pen: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw a Bezier curve that leaves and arrives level."""
    bends = start, (start[0] + SLACK, start[1]), (end[0] - SLACK, end[1]), end
    shares = [i / 24 for i in range(25)]
    points = []
    for t in shares:
        weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        points.append(
            tuple(
                sum(w * bend[axis] for w, bend in zip(weights, bends, strict=True))
                for axis in (0, 1)
            )
        )
    pen.line(points, fill=WIRE, width=2)


def box(pen: ImageDraw.ImageDraw, left: int, top: int, node: dict[str, Any]) -> None:
    kind = node["class_type"]
    colour = OURS if kind.startswith("MuDI") else THEIRS
    edges = (left, top, left + WIDTH, top + height(node))
    pen.rounded_rectangle(edges, radius=5, fill=colour, outline=WIRE)
    pen.text((left + 6, top + 2), kind, fill="black", font=ImageFont.load_default(13))
    for row, (key, value) in enumerate(node["inputs"].items(), 1):
        linked = isinstance(value, list)
        text = key if linked else f"{key}: {value}"
        text = text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
        middle = top + row * ROW + ROW // 2
        if linked:
            pen.ellipse((left - 4, middle - 4, left + 4, middle + 4), fill=WIRE)
        place = left + 10, middle - 7
        pen.text(place, text, fill="#333333", font=ImageFont.load_default(11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    draw(json.loads(args.workflow.read_text(encoding="utf-8"))).save(args.picture)


if __name__ == "__main__":
    main()
