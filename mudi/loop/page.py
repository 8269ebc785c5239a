"""One page of HTML: the rounds of a loop side by side."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from mudi.ground.files import write_text
from mudi.loop.picking import PICKED
from mudi.loop.rounds import Figures
from mudi.loop.stages import Round
from mudi.texts import printable

PAGE = "index.html"
SHOWN = 40  # held-out pictures
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } th.best { background: #e4f5ee }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd }
th, td { vertical-align: top }
td.number { text-align: right } img { min-width: 7rem; max-width: 14rem }
figure { margin: 0 } figcaption { font-size: 13px; color: #555 } img.sheet { max-width: 100% }
.good { outline: 3px solid #009e73 }
"""


@dataclass(frozen=True)
class Shown:
    """A round, as far as it has come; what is not there yet is empty."""

    made: Round
    figures: Figures | None
    held_out: Sequence[Mapping[str, Any]]
    picks: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]


def write_page(folder: Path, shown: Sequence[Shown], told: str, best: int | None) -> Path:
    """Write the page into the loop's folder; pictures are shown from where they lie.

    Args:
        told: how the loop stands.
        best: the round whose LoRA to take.
    """
    heads = "".join(
        f'<th class="{"best" if s.made.number == best else ""}">round {s.made.number}</th>'
        for s in shown
    )
    rows = [*_figure_rows(shown), *_pick_rows(shown), *_second_rows(shown)]
    pictures = "".join(_picture_row(name, shown, folder) for name in _names(shown))
    sheets = "".join(_sheet(s, folder) for s in shown)
    return write_text(
        folder / PAGE,
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(folder.name)}</title>
<style>{STYLE}</style></head><body>
<h1>{escape(folder.name)}: rounds side by side</h1>
<p>{escape(printable(told))}</p>
<table><tr><th></th>{heads}</tr>{"".join(rows)}</table>
<h2>Held-out pictures</h2>
<table><tr><th>prompt, seed</th>{heads}</tr>{pictures}</table>
<h2>What each round gave to the next</h2>{sheets}
</body></html>
""",
    )


def _row(title: str, cells: Sequence[str]) -> str:
    tds = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr><th>{escape(title)}</th>{tds}</tr>"


def _figure_rows(shown: Sequence[Shown]) -> list[str]:
    rows = []
    for declared in fields(Figures):
        values = [None if s.figures is None else getattr(s.figures, declared.name) for s in shown]
        if any(value is not None for value in values):
            title = "held out: " + declared.name.replace("_", " ")
            rows.append(_row(title, [_number(value, declared.name) for value in values]))
    return rows


def _number(value: float | int | None, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if name == "score" else f"{value:.0%}"


def _pick_rows(shown: Sequence[Shown]) -> list[str]:
    counts = [Counter(pick["fate"] for pick in s.picks) for s in shown]
    fates = dict.fromkeys([PICKED, *(fate for count in counts for fate in count)])
    return [
        _row(
            f"pictures: {fate}",
            [str(c[fate]) if s.picks else "" for c, s in zip(counts, shown, strict=True)],
        )
        for fate in fates
        if any(counts)
    ]


def _second_rows(shown: Sequence[Shown]) -> list[str]:
    names = dict.fromkeys(name for s in shown for name in s.seconds)
    return [
        _row(
            f"minutes: {name}",
            [f"{s.seconds[name] / 60:.1f}" if name in s.seconds else "" for s in shown],
        )
        for name in names
    ]


def _names(shown: Sequence[Shown]) -> list[str]:
    return list(dict.fromkeys(line["image"] for s in shown for line in s.held_out))[:SHOWN]


def _picture_row(name: str, shown: Sequence[Shown], folder: Path) -> str:
    cells, title = [], ""
    for s in shown:
        line = next((line for line in s.held_out if line["image"] == name), None)
        if line is None:
            cells.append("<td></td>")
            continue
        title = f"{line['prompt']}, {line['seed']}"
        scores = line.get("scores", {})
        told = "; ".join(f"{v['score']:.2f} {v['verdict']}" for v in scores.values())
        good = scores and all(v["verdict"] == "good" for v in scores.values())
        source = _link(s.made.held_out / name, folder)
        cells.append(
            f'<td><figure><img class="{"good" if good else ""}" src="{source}" alt="" '
            f'loading="lazy"><figcaption>{escape(told)}</figcaption></figure></td>'
        )
    return f"<tr><th>{escape(title)}</th>{''.join(cells)}</tr>"


def _sheet(s: Shown, folder: Path) -> str:
    sheet = s.made.sheet
    if not sheet.is_file():
        return ""
    number = s.made.number
    return (
        f"<h3>round {number} to round {number + 1}</h3>"
        f'<img class="sheet" src="{_link(sheet, folder)}" alt="masks of the picked pictures">'
    )


def _link(path: Path, folder: Path) -> str:
    return escape(Path(os.path.relpath(path, folder)).as_posix(), quote=True)
