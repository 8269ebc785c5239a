"""Summaries -> figures."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.results import Summary
from experiments.stats import Interval
from mudi.ground.files import replace_file
from mudi.ground.sheets import COLOURS

MEASURES = {"score": "D&C", "success": "success rate"}
PANEL = (3.6, 2.8)  # inches
BAR = 0.3  # inches
DPI = 150


def bars(summaries: Sequence[Summary]) -> Figure:
    """Draw D&C and success of every label, a row of panels for each, a column a kind."""
    kinds = list(dict.fromkeys(summary.kind for summary in summaries))
    labels = list(dict.fromkeys(summary.label for summary in summaries))[::-1]
    height = 1 + BAR * len(labels)
    figure = Figure((2 + PANEL[0] * len(kinds), 2 * height), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex="row", sharey=True)
    for row, measure in zip(panels, MEASURES, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            for summary in (s for s in summaries if s.kind == kind):
                place = labels.index(summary.label)
                interval = summary.found[measure]
                colour = COLOURS[place % len(COLOURS)]
                axes.barh(place, interval.mean, color=colour, alpha=0.8)
                axes.errorbar(interval.mean, place, xerr=_ends([interval]), color="black")
            axes.set_yticks(range(len(labels)), labels)
            axes.set_xlabel(MEASURES[measure])
            axes.set_title(f"{kind} ({_pictures(summaries, kind)} pictures each)", fontsize=9)
    return figure


def gamma_curves(summaries: Sequence[Summary]) -> Figure:
    """Draw D&C and success against gamma, a curve a kind."""
    figure, panels = _panels(len(MEASURES))
    for axes, (measure, name) in zip(panels, MEASURES.items(), strict=True):
        _curves(axes, summaries, measure, lambda s: s.kind, _value)
        steps = sorted({s.value for s in summaries if s.value})
        axes.set_xscale("symlog", linthresh=steps[0] if steps else 1.0)
        axes.set_xticks([0, *steps], [f"{step:g}" for step in (0, *steps)])
        axes.set(xlabel="gamma", ylabel=name)
        axes.legend(fontsize=8)
    return figure


def subject_curves(summaries: Sequence[Summary]) -> Figure:
    """Draw D&C and success against the number of subjects, a curve a method."""
    figure, panels = _panels(len(MEASURES))
    for axes, (measure, name) in zip(panels, MEASURES.items(), strict=True):
        _curves(axes, summaries, measure, lambda s: s.label, lambda s: s.num_subjects)
        axes.set_xticks(sorted({s.num_subjects for s in summaries}))
        axes.set(xlabel="subjects of different classes", ylabel=name)
        axes.legend(fontsize=8)
    return figure


def size_curves(summaries: Sequence[Summary]) -> Figure:
    """Draw the measured relative size against the one asked for, a curve a kind."""
    figure, [axes] = _panels(1)
    measured = [summary for summary in summaries if "size_ratio" in summary.found]
    asked = sorted({summary.value for summary in summaries if summary.value})
    axes.plot(asked, asked, color="grey", linestyle=":", label="as asked for")
    _curves(axes, measured, "size_ratio", lambda s: s.kind, _value)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(asked, [f"{ratio:g}" for ratio in asked])
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="relative size asked for", ylabel="measured")
    axes.legend(fontsize=8)
    return figure


def dose_curves(summaries: Sequence[Summary]) -> Figure:
    """Draw D&C and success against the traits in which a pair differs, a curve a method."""
    figure, panels = _panels(len(MEASURES))
    for axes, (measure, name) in zip(panels, MEASURES.items(), strict=True):
        _curves(axes, summaries, measure, lambda s: s.label, _traits)
        axes.set_xticks(sorted({int(_traits(s)) for s in summaries}))
        axes.set(xlabel="traits in which the subjects differ", ylabel=name)
        axes.legend(fontsize=8)
    return figure


def _traits(summary: Summary) -> float:
    return float(summary.kind.split()[0])


FIGURES: dict[str, Callable[[Sequence[Summary]], Figure]] = {
    "methods": bars,
    "losses": bars,
    "words": bars,
    "gamma": gamma_curves,
    "subjects": subject_curves,
    "size": size_curves,
    "ablations": bars,
    "interventions": bars,
    "dose": dose_curves,
}


def write_figures(folder: Path, summaries: Sequence[Summary]) -> list[Path]:
    """Write <embedder>/<experiment>.png for all that the summaries hold."""
    written = []
    for embedder in dict.fromkeys(summary.embedder for summary in summaries):
        for experiment, figure_of in FIGURES.items():
            members = [s for s in summaries if (s.embedder, s.experiment) == (embedder, experiment)]
            if members:
                path = folder / embedder / f"{experiment}.png"
                written.append(_write(path, figure_of(members)))
    return written


def _write(path: Path, figure: Figure) -> Path:
    return replace_file(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure((PANEL[0] * 1.3 * count, PANEL[1] * 1.3), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _curves(
    axes: Axes,
    summaries: Sequence[Summary],
    measure: str,
    label_of: Callable[[Summary], str],
    place_of: Callable[[Summary], float],
) -> None:
    """Draw a measure's means and intervals, a curve for every label."""
    for i, label in enumerate(dict.fromkeys(map(label_of, summaries))):
        members = sorted((s for s in summaries if label_of(s) == label), key=place_of)
        intervals = [member.found[measure] for member in members]
        axes.errorbar(
            [place_of(member) for member in members],
            [interval.mean for interval in intervals],
            yerr=_ends(intervals),
            label=label,
            color=COLOURS[i % len(COLOURS)],
            marker="o",
            capsize=3,
        )


def _ends(intervals: Sequence[Interval]) -> list[list[float]]:
    """Return the lengths of error bars below and above the means, never negative by rounding."""
    return [
        [max(0.0, i.mean - i.low) for i in intervals],
        [max(0.0, i.high - i.mean) for i in intervals],
    ]


def _value(summary: Summary) -> float:
    return summary.value or 0.0


def _pictures(summaries: Sequence[Summary], kind: str) -> str:
    counts = sorted({summary.pictures for summary in summaries if summary.kind == kind})
    return "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
