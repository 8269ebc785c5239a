r"""Score generated pictures by Detect-and-Compare.

    python -m detect_and_compare --images output/pictures \
        --references dataset/category/robot_and_teddy --queries a="robot" b="teddy bear" \
        --detector owlv2 --embedder dreamsim dinov2 --output output/dnc

    accelerate launch -m detect_and_compare ...   (split over all GPUs)

--images is a folder, or a JSONL with an object a line: "image", a path relative to the JSONL;
"prompt", for --text_fidelity; and any other keys, which go into the result. In inference.py's
output folder the JSONL is pictures.jsonl, which is read if the folder is named. Writes
scores.jsonl, summary.csv and report.html. A stopped run goes on with the same command.
"""

from detect_and_compare.args import ScoreArgs
from mudi.ground.flags import parse


def parse_args(argv: list[str] | None = None) -> ScoreArgs:
    return parse(ScoreArgs, __doc__, argv, prog="python -m detect_and_compare")


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from detect_and_compare.judge import Basis, Judge, load_judge, read_basis
from detect_and_compare.measure import read_ahead
from detect_and_compare.pictures import IMAGE, PROMPT, Picture, find_pictures, without_results
from detect_and_compare.report import Report, write_report
from detect_and_compare.results import Line, summarise, to_line, write_summary
from detect_and_compare.text import ClipText
from mudi.ground.errors import RefusedError, program, refuse
from mudi.ground.files import unwritable, write_text
from mudi.ground.flags import DTYPES, differences, origins, range_complaints
from mudi.ground.locks import hold
from mudi.ground.work import Journal, join_processes, share
from mudi.images import ImageError
from mudi.texts import printable

SCORES, SUMMARY, REPORT, RUN = "scores.jsonl", "summary.csv", "report.html", "run.json"
CACHE = "reference_embeddings"


@program
def main(args: ScoreArgs) -> None:
    problems: list[str] = []
    basis = read_basis(args, args.references, "--references", problems)
    settings = {**origins(args), **basis.settings}
    pictures = find_pictures(args.images, problems)
    problems += flag_complaints(args, pictures) + change_complaints(args, settings)
    refuse(problems)

    state = join_processes()
    hold(args.output, state)
    for subject, query in settings["queries"].items():
        state.print(printable(f'{subject}: looking for "{query}"'))
    with state.local_main_process_first():  # fetches what the others then find on the disk
        judge, clip_text = load_models(args, basis, state.device)
    expected = {metric.name: metric.expected for metric in judge.metrics}
    text_model = None if clip_text is None else clip_text.name
    begin(args, {**settings, "measures": [judge.detector.name, *expected, text_model]}, state)

    journal = Journal(args.output / SCORES, IMAGE, state)
    todo = [picture for picture in pictures if not is_scored(picture, journal.done)]
    score(share(todo, state), args.batch_size, judge, clip_text, journal, state)
    lines = journal.finish([picture.name for picture in pictures])[: len(pictures)]
    if not state.is_main_process:
        return
    summary = summarise(lines, list(expected), text_model, args.group_by)
    write_summary(args.output / SUMMARY, summary, args.group_by)
    report = Report(
        lines=lines,
        pictures={picture.name: picture for picture in pictures},
        references=basis.references,
        expected=expected,
        summary=summary,
        queries=settings["queries"],
        text_model=text_model,
        group_by=args.group_by,
        settings=settings,
        limit=args.report_limit,
    )
    write_report(args.output / REPORT, report)
    for row in summary:
        print(row.told())
    print(f"look at {args.output / REPORT}")


def flag_complaints(args: ScoreArgs, pictures: Sequence[Picture]) -> list[str]:
    complaints = range_complaints(args)
    if why := unwritable(args.output):
        complaints.append(f"--output {args.output}: {why}")
    lacking = [picture.name for picture in pictures if args.group_by not in picture.extra]
    if args.group_by is not None and lacking:
        complaints.append(
            f'--group_by {args.group_by}: "{lacking[0]}" has no such key in the JSONL'
        )
    if args.text_fidelity and all(picture.prompt is None for picture in pictures):
        complaints.append(f'--text_fidelity: no picture has a "{PROMPT}"; give --images a JSONL')
    return complaints


def change_complaints(args: ScoreArgs, settings: Mapping[str, Any]) -> list[str]:
    """Complain about settings other than those of an earlier run into the same folder."""
    path = args.output / RUN
    if args.overwrite or not path.is_file():
        return []
    try:
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError, RecursionError) as error:
        return [f"{path}: cannot be read ({error}); --overwrite, or another --output"]
    told = "; ".join(differences(earlier, dict(settings)))
    return [f"{path}: scored otherwise ({told}); --overwrite, or another --output"] * bool(told)


def load_models(
    args: ScoreArgs, basis: Basis, device: torch.device
) -> tuple[Judge, ClipText | None]:
    dtype, cache = getattr(torch, DTYPES[args.dtype]), args.output / CACHE
    judge = load_judge(args, basis, device, dtype, args.cache_dir, cache)
    clip_text = None
    if args.text_fidelity:
        clip_text = ClipText(args.text_fidelity, device, dtype, cache_dir=args.cache_dir)
    return judge, clip_text


def begin(args: ScoreArgs, run: dict[str, Any], state: PartialState) -> None:
    """Note what the scores depend on, now that the models' weights are known too."""
    if changed := change_complaints(args, run):
        raise RefusedError(changed[0])
    if state.is_main_process:
        if args.overwrite:
            for path in args.output.glob(f"{SCORES}*"):
                path.unlink()
        write_text(args.output / RUN, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
    state.wait_for_everyone()


def is_scored(picture: Picture, done: Mapping[str, Line]) -> bool:
    """Say whether there are scores of the picture as it is now."""
    return picture.name in done and without_results(done[picture.name]) == picture.stamp


def score(
    pictures: Sequence[Picture],
    batch_size: int,
    judge: Judge,
    clip_text: ClipText | None,
    journal: Journal,
    state: PartialState,
) -> None:
    """Score pictures, batch by batch, into the journal."""
    batches = read_ahead([picture.path for picture in pictures], batch_size)
    bar = tqdm(
        total=len(pictures), unit="picture", disable=not (pictures and state.is_main_process)
    )
    for start, images in zip(range(0, len(pictures), batch_size), batches, strict=True):
        batch = pictures[start : start + batch_size]
        fidelities = text_fidelities(clip_text, batch, images)
        for picture, records, fidelity in zip(batch, judge(images), fidelities, strict=True):
            journal.add(to_line(picture.stamp, records, fidelity))
        bar.update(len(batch))
    bar.close()


def text_fidelities(
    clip_text: ClipText | None,
    pictures: Sequence[Picture],
    images: Sequence[Image.Image | ImageError],
) -> list[float | None]:
    """Return each picture's CLIP-T; None where it can't be read or has no prompt."""
    pairs = {
        i: (image, picture.prompt)
        for i, (picture, image) in enumerate(zip(pictures, images, strict=True))
        if isinstance(image, Image.Image) and picture.prompt is not None
    }
    if clip_text is None or not pairs:
        return [None] * len(pictures)
    seen, prompts = zip(*pairs.values(), strict=True)
    found = dict(zip(pairs, clip_text(seen, prompts).tolist(), strict=True))
    return [found.get(i) for i in range(len(pictures))]


if __name__ == "__main__":
    main(ARGS)
