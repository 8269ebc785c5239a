"""The best of --best_of pictures: candidates are made, judged at once and listed; one is kept.

make_best(pictures, args, basis, origin, load_sampler, state)
"""

import filecmp
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from detect_and_compare.args import JudgeArgs
from detect_and_compare.draw import boxed
from detect_and_compare.judge import Basis, checkpoint_complaints, load_judge
from detect_and_compare.pictures import RESULT_KEYS
from detect_and_compare.results import Line
from mudi.best_of.args import ALL, BestArgs, CandidateArgs
from mudi.ground.errors import SetupError
from mudi.ground.files import replace_file, write_image
from mudi.ground.sheets import contact_sheet
from mudi.ground.work import Journal, share
from mudi.images import load_rgb
from mudi.metadata import Subjects
from mudi.pictures.jobs import (
    ANEW,
    PICTURES,
    SHEET,
    Job,
    check_unchanged,
    settings_of,
    write_picture,
)
from mudi.pictures.sampling import Picture, Sampler
from mudi.pictures.shot_args import MAX_SEED, named_subjects, nameless_complaints

FOLDER, LIST = "candidates", "candidates.jsonl"
BEST_OF = "best_of"  # key of a kept picture's line: which candidate it is, and of what scores
SHEET_PICTURES, SHEET_COLUMNS = 16, 8
KEPT, FRAME = "#009e73", 1 / 24  # a kept one's frame: its colour, its share of the longer side
FADED = 0.5  # of a thrown one's picture, how much is white


@dataclass(frozen=True)
class Candidate:
    """One that may become a picture.

    Attributes:
        number: among the picture's candidates, from 0.
        job: the picture's file name, and this candidate's shot.
    """

    number: int
    job: Job

    @property
    def name(self) -> str:
        """Its own file, relative to the output folder."""
        return f"{FOLDER}/{Path(self.job.name).stem}_{self.number:03}.png"


def best_of_complaints(
    args: BestArgs, prompts: Sequence[str], subjects: Subjects | None
) -> list[str]:
    """Complain about flags that do not go together, and prompts by which nothing can be judged."""
    if args.best_of == 1:
        plain = BestArgs()
        flags = [f.name for group in (CandidateArgs, JudgeArgs) for f in fields(group)]
        return [
            f"--{flag}: does nothing without a --best_of of 2 or more"
            for flag in flags
            if getattr(args, flag) != getattr(plain, flag)
        ]
    complaints = checkpoint_complaints(args.detector, args.embedder)
    if args.seed > MAX_SEED - args.num_images * args.best_of:
        complaints.append(f"--seed {args.seed}: the last candidate's must fit into 64 bits")
    if args.export_noise:
        complaints.append("--export_noise is of one picture that is sure to be made: no --best_of")
    if not args.instance_data_dir:
        complaints.append(
            "--best_of needs --instance_data_dir, whose photos pictures are judged by"
        )
    if subjects:
        complaints += nameless_complaints(prompts, subjects.names)
    return complaints


def candidates_of(pictures: Iterable[Job], args: BestArgs) -> list[Candidate]:
    """Return all candidates, every picture's first before any second."""
    pictures = list(pictures)
    return [
        Candidate(c, replace(job, shot=replace(job.shot, seed=job.shot.seed + c * args.num_images)))
        for c in range(args.best_of)
        for job in pictures
    ]


def make_best(
    pictures: Sequence[Job],
    args: BestArgs,
    basis: Basis,
    origin: Mapping[str, Any],
    load_sampler: Callable[[], Sampler],
    state: PartialState,
) -> None:
    """Make candidates, judge them and keep the best; together with the launch's other processes.

    Args:
        origin: what all pictures follow from beside their shots.
    """
    journal = Journal(args.output_dir / LIST, "image", state)
    kept = Journal(args.output_dir / PICTURES, "image", state)
    candidates = candidates_of(pictures, args)
    todo = find_todo(candidates, journal.done, kept.done, args, {**origin, **basis.settings})
    if todo:
        maker = Maker(args, basis, origin, journal, state)
        maker.make(share_out(todo, args.enough, state), load_sampler())
    lines = {line["image"]: line for line in journal.finish([c.name for c in candidates])}
    found = {picture.name: _lines_of(picture, candidates, lines) for picture in pictures}
    if state.is_main_process:
        for picture in pictures:
            kept.add(keep_best(picture.name, found[picture.name], basis, args.output_dir))
    kept.finish([picture.name for picture in pictures])
    if state.is_main_process:
        sheet = args.output_dir / SHEET
        if todo or not sheet.is_file():
            write_image(sheet, candidate_sheet(args.output_dir, found))
        if args.keep != ALL:
            throw_away(args.output_dir, lines)
        print(told(found, args.output_dir))


def _lines_of(
    picture: Job, candidates: Iterable[Candidate], lines: Mapping[str, Line]
) -> list[Line]:
    own = [c.name for c in candidates if c.job.name == picture.name]
    return [lines[name] for name in own if name in lines]


def score_of(line: Line) -> float:
    """Return a candidate's score by the first embedder."""
    return next(iter(line["scores"].values()))["score"]


def best(lines: Sequence[Line]) -> int:
    """Return which of a picture's candidates is best, the first of equals.

    The published score of a wrong count is 0, more than what mixed subjects may get; here any
    picture with as many boxes as subjects goes before any other.
    """
    return max(range(len(lines)), key=lambda i: (_counts(lines[i]), score_of(lines[i])))


def _counts(line: Line) -> bool:
    """Say whether there are as many boxes as subjects that the prompt names."""
    return len(line["boxes"]) == len(next(iter(line["scores"].values()))["subjects"])


def find_todo(
    candidates: Iterable[Candidate],
    done: Mapping[str, Line],
    kept: Mapping[str, Line],
    args: BestArgs,
    origin: Mapping[str, Any],
) -> list[Candidate]:
    """Return the candidates that are to be made.

    Of those that are listed, one whose file is gone is made again if the file is to stay.

    Args:
        done: lines of candidates by name.
        kept: lines of pictures by name.
        origin: what candidates and their scores follow from beside their shots.

    Raises:
        SetupError: there are pictures of these names that were made otherwise.
    """
    candidates = list(candidates)
    lines: dict[str, list[Line]] = {}
    for candidate in candidates:
        record, name = done.get(candidate.name), candidate.job.name
        if name in kept and BEST_OF not in kept[name]:
            raise SetupError(f"{args.output_dir / name} was made without --best_of: {ANEW}")
        if record is not None:
            check_unchanged(
                args.output_dir / candidate.name, record, settings_of(candidate.job, origin)
            )
            lines.setdefault(name, []).append(record)
    best_names = {name: own[best(own)]["image"] for name, own in lines.items()}
    closed = {name for name, own in lines.items() if any(map(partial(_is_enough, args), own))}

    def is_missing(candidate: Candidate) -> bool:
        picture = candidate.job.name
        if candidate.name not in done:
            return picture not in closed
        if args.keep != ALL and candidate.name != best_names[picture]:
            return False
        own = args.output_dir / candidate.name
        is_kept = kept.get(picture, {}).get(BEST_OF, {}).get("number") == candidate.number
        as_picture = is_kept and (args.output_dir / picture).is_file()
        return not (own.is_file() or (as_picture and args.keep != ALL))

    return [candidate for candidate in candidates if is_missing(candidate)]


def _is_enough(args: BestArgs, line: Line) -> bool:
    return args.enough is not None and score_of(line) >= args.enough


def share_out(
    todo: Sequence[Candidate], enough: float | None, state: PartialState
) -> list[Candidate]:
    """Return this process's candidates: each n-th, or of each n-th picture if one may end it."""
    if enough is None:
        return share(todo, state)
    names = share(list(dict.fromkeys(candidate.job.name for candidate in todo)), state)
    return [candidate for candidate in todo if candidate.job.name in names]


class Maker:
    """Makes candidates and judges them."""

    def __init__(
        self,
        args: BestArgs,
        basis: Basis,
        origin: Mapping[str, Any],
        journal: Journal,
        state: PartialState,
    ):
        self._args, self._basis, self._origin = args, basis, origin
        self._journal, self._state = journal, state
        with state.local_main_process_first():  # fetches what the others then find on the disk
            cache = Path(args.cache_dir) if args.cache_dir else None
            self._judge = load_judge(args, basis, state.device, cache_dir=cache)
        self._judge.check(journal.done, ANEW)

    def make(self, todo: Sequence[Candidate], sampler: Sampler) -> None:
        """Make candidates in their order, but none of a picture of which one was enough."""
        waiting, size = deque(todo), self._args.batch_size
        bar = tqdm(total=len(todo), desc="candidates", disable=not self._state.is_main_process)
        while waiting:
            batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
            closed = set()
            pictures = sampler.draw([candidate.job.shot for candidate in batch], size)
            for candidate, picture in zip(batch, pictures, strict=True):
                bar.update()
                if candidate.job.name in closed:  # as if it had been made alone
                    continue
                line = self._judged(candidate, picture)
                self._journal.add(line)
                if _is_enough(self._args, line):
                    closed.add(candidate.job.name)
            left = [candidate for candidate in waiting if candidate.job.name not in closed]
            bar.total -= len(waiting) - len(left)
            waiting = deque(left)
        bar.close()

    def _judged(self, candidate: Candidate, picture: Picture) -> Line:
        """Write a candidate's file; return its line."""
        path = self._args.output_dir / candidate.name
        record = write_picture(candidate.job, picture, path, self._origin)
        stamp = {**record, **self._basis.settings, "image": candidate.name}
        subjects = named_subjects(candidate.job.shot.prompt, self._basis.references.names)
        judge = self._judge.about(subjects)
        [records] = judge([picture.image])
        return judge.line({**stamp, "number": candidate.number}, records)


def keep_best(name: str, lines: Sequence[Line], basis: Basis, folder: Path) -> Line:
    """Give the best candidate the picture's name, if its file is there; return its line."""
    chosen = lines[best(lines)]
    source, path = folder / chosen["image"], folder / name
    if source.is_file() and not (path.is_file() and filecmp.cmp(source, path, shallow=False)):
        replace_file(path, lambda temporary: shutil.copyfile(source, temporary))
    without = (*RESULT_KEYS, *basis.settings, "number")
    record = {key: value for key, value in chosen.items() if key not in without}
    told = {
        "number": chosen["number"],
        "score": score_of(chosen),
        "scores": [score_of(line) for line in lines],
    }
    return {**record, "image": name, BEST_OF: told}


def throw_away(folder: Path, names: Iterable[str]) -> None:
    """Delete candidates' files."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()


def candidate_sheet(folder: Path, found: Mapping[str, Sequence[Line]]) -> Image.Image:
    """Lay out the candidates of the first pictures, the kept ones framed, the others faded."""
    columns = min(SHEET_COLUMNS, max(map(len, found.values())))
    images, captions = [], []
    for lines in list(found.values())[:SHEET_PICTURES]:
        kept = best(lines)
        for i, line in enumerate(lines):
            images.append(_tile(folder / line["image"], line, i == kept))
            scores = next(iter(line["scores"].values()))
            state = "KEPT" if i == kept else "thrown"
            captions.append(
                f"{state}: seed {line['seed']}, {scores['score']:.3f}, {scores['verdict']}: "
                f"{line['prompt']}"
            )
        gap = -len(images) % columns
        images += [Image.new("RGB", (1, 1), "white")] * gap
        captions += [""] * gap
    return contact_sheet(images, captions, columns)


def _tile(path: Path, line: Line, is_kept: bool) -> Image.Image:
    width, height = line["size"]
    if not path.is_file():  # thrown away by an earlier run
        return Image.new("RGB", (width, height), "lightgrey")
    scores = next(iter(line["scores"].values()))
    matched = [verdict["detection"] for verdict in scores["subjects"].values()]
    image = boxed(load_rgb(path), line["boxes"], matched)
    if is_kept:
        return ImageOps.expand(image, round(FRAME * max(image.size)), KEPT)
    return Image.blend(image, Image.new("RGB", image.size, "white"), FADED)


def told(found: Mapping[str, Sequence[Line]], folder: Path) -> str:
    """Say what came of it, in a line."""
    made = sum(map(len, found.values()))
    first = [score_of(lines[0]) for lines in found.values()]
    kept = [score_of(lines[best(lines)]) for lines in found.values()]
    return (
        f"{len(found)} pictures of {made} candidates in {folder}: mean score "
        f"{sum(kept) / len(kept):.3f}, of the first candidates {sum(first) / len(first):.3f}; "
        f"look at {folder / SHEET}"
    )
