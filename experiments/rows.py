"""What pictures come to: a row a picture and embedder, of scores and in results.csv."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from detect_and_compare.failures import bleeds, failures, meant_by_noun
from detect_and_compare.results import Line
from detect_and_compare.score import Likeness
from experiments.plan import DataSet
from mudi.ground.files import write_table

RESULTS = "results.csv"
GOOD = "good"
BLEED = "bleed"
DIGITS = 4
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What one picture comes to by one embedder.

    Attributes:
        variant: name of the variant that made it.
        training: seed of its LoRA.
        alone: the subject that it is to show alone; "" where it is to show all.
        boxes: things that were found.
        score: D&C; None where one subject is asked for.
        verdict: "good" or what is wrong; see `detect_and_compare.measure.Record`. Where one subject
            is asked for, it is good if there is one box and that is clearly this subject.
        failures: words of `detect_and_compare.failures`; a swap is known of different classes only.
        cosines: of each subject's most similar box to its references.
        background: whether it is of the prompt's colour; None where the prompt names none.
        size_ratio: longer side of the second subject's box to that of the first's; None where the
            number of boxes is not two.
    """

    image: str
    data_set: str
    kind: str
    variant: str
    training: int
    alone: str
    prompt: str
    seed: int
    embedder: str
    boxes: int
    score: float | None
    verdict: str
    failures: tuple[str, ...]
    cosines: tuple[float, ...]
    background: bool | None
    size_ratio: float | None

    @property
    def success(self) -> bool:
        return self.verdict == GOOD


def rows_of(
    line: Line, data_set: DataSet, embedders: Sequence[str], background: bool | None = None
) -> list[Row]:
    """Return the rows of a line of scores.jsonl; embedders name its scores, in their order."""
    ids, nouns = list(data_set.names), list(data_set.nouns.values())
    alone = line.get("alone")
    rows = []
    for embedder, scores in zip(embedders, line["scores"].values(), strict=True):
        crops = [Likeness(**found) for found in scores["likenesses"]]
        similarity = scores["similarity"] or []
        score, verdict, size_ratio = scores["score"], scores["verdict"], None
        if alone is None:
            texts = list(dict.fromkeys(nouns))
            meant = meant_by_noun(line["answers"], texts, nouns)
            words = failures(crops, len(ids), meant or [None] * len(crops))
            size_ratio = _size_ratio(line["boxes"], scores["subjects"])
        else:
            own = ids.index(alone)
            words = [BLEED] * bleeds(crops, own)
            score, verdict = None, _alone_verdict(crops, own)
        row = Row(
            image=line["image"],
            data_set=data_set.name,
            kind=data_set.kind,
            variant=line["variant"],
            training=line.get("training", 0),
            alone=alone or "",
            prompt=line["prompt"],
            seed=line["seed"],
            embedder=embedder,
            boxes=len(line["boxes"]),
            score=score,
            verdict=verdict,
            failures=tuple(words),
            cosines=tuple(
                round(max((found[i] for found in similarity), default=-1.0), DIGITS)
                for i in range(len(ids))
            ),
            background=background,
            size_ratio=size_ratio,
        )
        rows.append(row)
    return rows


def _alone_verdict(crops: Sequence[Likeness], own: int) -> str:
    if len(crops) != 1:
        return "extra" if crops else "missing"
    return GOOD if crops[0].is_clear and crops[0].subject == own else "mixed"


def _size_ratio(
    boxes: Sequence[Sequence[float]], subjects: Mapping[str, Mapping[str, Any]]
) -> float | None:
    if not len(boxes) == len(subjects) == 2:
        return None
    first, second = (_longer_side(boxes[s["detection"]]) for s in subjects.values())
    return round(second / first, DIGITS)


def _longer_side(box: Sequence[float]) -> float:
    left, top, right, bottom = box
    return max(right - left, bottom - top)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write results.csv: a row a picture and embedder."""
    records = [asdict(row) for row in rows]
    for record in records:
        record["failures"] = " ".join(record["failures"])
        record["cosines"] = " ".join(f"{cosine:g}" for cosine in record["cosines"])
    write_table(path, records)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row_of(record) for record in csv.DictReader(file)]


def _row_of(record: dict[str, str]) -> Row:
    kinds = get_type_hints(Row)
    plain: dict[str, Any] = {
        name: kinds[name](text) for name, text in record.items() if kinds[name] in (str, int)
    }
    score, size_ratio = (float(record[n]) if record[n] else None for n in ("score", "size_ratio"))
    background = {"": None, "True": True, "False": False}[record["background"]]
    return Row(
        **plain,
        score=score,
        failures=tuple(record["failures"].split()),
        cosines=tuple(float(cosine) for cosine in record["cosines"].split()),
        background=background,
        size_ratio=size_ratio,
    )
