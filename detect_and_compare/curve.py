"""Judged pictures of a training's saves -> what each save comes to, and which to take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from detect_and_compare.failures import DROP, DUPLICATE, MERGE, SWAP
from detect_and_compare.results import DIGITS, Line
from mudi.ground.files import replace_file, write_table
from mudi.ground.sheets import COLOURS

GOOD = "good"
CURVES = ("success", "swap", "merge", "solo_success", "solo_bleed")  # that are drawn
SIZE, DPI = (7.0, 4.0), 150  # inches; dots an inch


@dataclass(frozen=True)
class Point:
    """What a save comes to; shares of the pictures, from 0 to 1.

    Attributes:
        joint: pictures of all subjects together, which the shares up to `duplicate` are of.
        success: every subject is there, unmixed, and nothing else.
        score: mean D&C.
        swap, merge, drop, duplicate: see `failures`.
        solo: pictures of one subject alone, which the other shares are of.
        solo_success: one box, clearly the subject.
        solo_bleed: a crop is nearer to another subject.
        solo_count: another number of boxes than one.
    """

    step: int
    joint: int
    success: float
    score: float
    swap: float
    merge: float
    drop: float
    duplicate: float
    solo: int
    solo_success: float
    solo_bleed: float
    solo_count: float

    @property
    def worth(self) -> float:
        """What saves are ranked by: success less swap less solo bleed."""
        return self.success - self.swap - self.solo_bleed

    @property
    def error(self) -> float:
        """The standard error of the success; with a success and a failure more it is never 0."""
        count = self.joint + 2
        share = (self.success * self.joint + 1) / count
        return (share * (1 - share) / count) ** 0.5


def curve_of(lines: Iterable[Line], embedder: str) -> list[Point]:
    """Return a point a step, by one embedder.

    Args:
        lines: of joint and of solo pictures, both of every step; see `checkpoints.judged`.
    """
    steps: dict[int, list[Line]] = {}
    for line in lines:
        steps.setdefault(line["step"], []).append(line)
    return [_point(step, steps[step], embedder) for step in sorted(steps)]


def _point(step: int, lines: Sequence[Line], embedder: str) -> Point:
    joint = [line["found"][embedder] for line in lines if line["alone"] is None]
    solo = [line["found"][embedder] for line in lines if line["alone"] is not None]
    return Point(
        step,
        joint=len(joint),
        success=mean(found["verdict"] == GOOD for found in joint),
        score=mean(found["score"] for found in joint),
        swap=mean(SWAP in found["failures"] for found in joint),
        merge=mean(MERGE in found["failures"] for found in joint),
        drop=mean(DROP in found["failures"] for found in joint),
        duplicate=mean(DUPLICATE in found["failures"] for found in joint),
        solo=len(solo),
        solo_success=mean(found["success"] for found in solo),
        solo_bleed=mean(found["bleed"] for found in solo),
        solo_count=mean(found["boxes"] != 1 for found in solo),
    )


def choose(curve: Sequence[Point]) -> Point:
    """Return the save to take: of the largest worth, then of the largest D&C, then the earliest."""
    return max(curve, key=lambda point: (point.worth, point.score, -point.step))


def reasons(curve: Sequence[Point]) -> list[str]:
    """Say which save to take and why, a line each."""
    chosen = choose(curve)
    others = [
        str(point.step)
        for point in curve
        if point is not chosen and point.worth >= chosen.worth - chosen.error
    ]
    lines = [f"take {_told(chosen)}"]
    if not any(point.success for point in curve):
        lines = [f"no save succeeds; the least bad is {_told(chosen)}"]
    if others:
        lines.append(
            f"within one standard error of it ({chosen.error:.0%} of {chosen.joint} pictures): "
            f"{', '.join(others)}; more --num_images would tell"
        )
    before = [point for point in curve if point.step < chosen.step]
    after = [point for point in curve if point.step > chosen.step]
    if before:
        lines.append(f"before it, {_mostly(before, MERGE, 'short')}")
    if after:
        lines.append(f"after it, {_mostly(after, SWAP, 'long')}")
    if not after and len(curve) > 1:
        merges = chosen.merge > chosen.swap
        lines.append("it is the last" + (" and still merges: train longer" if merges else ""))
    if not before and len(curve) > 1:
        lines.append("it is the first: a smaller --save_steps may find a better one")
    return lines


def _told(point: Point) -> str:
    return (
        f"step {point.step}: success {point.success:.0%}, swap {point.swap:.0%}, merge "
        f"{point.merge:.0%} of {point.joint} pictures together; solo bleed "
        f"{point.solo_bleed:.0%} of {point.solo} alone"
    )


def _mostly(points: Sequence[Point], expected: str, length: str) -> str:
    """Say what saves fail by, and whether the users' rule explains it.

    Args:
        expected: the failure that comes of training too `length`.
    """
    shares = {SWAP: mean(p.swap for p in points), MERGE: mean(p.merge for p in points)}
    told = ", ".join(f"{word} {share:.0%}" for word, share in shares.items())
    told += f", solo bleed {mean(p.solo_bleed for p in points):.0%}"
    commonest = max(shares, key=lambda word: shares[word])
    if len(set(shares.values())) == 1:
        return told
    if commonest == expected:
        return f"{told}: mostly {commonest}, as of training too {length}"
    return f"{told}: mostly {commonest}, which training too {length} does not explain"


def write_curves(folder: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write checkpoints.csv, a row a step and embedder, and checkpoints.png, by the first."""
    table = [
        {"embedder": embedder}
        | {key: round(value, DIGITS) for key, value in asdict(point).items()}
        | {"worth": round(point.worth, DIGITS)}
        for embedder, curve in curves.items()
        for point in curve
    ]
    write_table(folder / "checkpoints.csv", table)
    figure = plot(*next(iter(curves.items())))
    replace_file(
        folder / "checkpoints.png", lambda path: figure.savefig(path, format="png", dpi=DPI)
    )


def plot(embedder: str, curve: Sequence[Point]) -> Figure:
    """Draw CURVES against the step, and where the chosen save stands."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    steps = [point.step for point in curve]
    for name, colour in zip(CURVES, COLOURS, strict=False):
        values = [getattr(point, name) for point in curve]
        style = "--" if name.startswith("solo") else "-"
        axes.plot(steps, values, style, marker="o", color=colour, label=name.replace("_", " "))
    axes.axvline(choose(curve).step, color="grey", linestyle=":", label="to take")
    axes.set(xlabel="step", ylabel="share of pictures", ylim=(-0.03, 1.03))
    axes.set_title(f"judged by {Path(embedder).name}", fontsize=8)
    axes.legend(fontsize=8)
    return figure
