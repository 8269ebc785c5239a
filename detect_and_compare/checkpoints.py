r"""Which save of a training to take: pictures by each, judged by Detect-and-Compare.

    python -m detect_and_compare.checkpoints output/robot_and_teddy_p0.3_s0

    accelerate launch -m detect_and_compare.checkpoints ...   (shares the pictures among all GPUs)

Draws the subjects together and each alone by every save-<step> and the final LoRA, from the same
seeds and layouts, and writes checkpoints.csv and checkpoints.png (success, swap, merge and solo
bleed by step), sheet.png, and choice.txt: which save to take, and why. Swaps tell of training too
long, merges of training too short. A stopped run goes on with the same command, and saves that came
since are added.
"""

from detect_and_compare.args import CheckpointArgs
from mudi.ground.flags import parse


def parse_args(argv: list[str] | None = None) -> CheckpointArgs:
    prog = "python -m detect_and_compare.checkpoints"
    return parse(CheckpointArgs, __doc__, argv, prog, pretrained_model_name_or_path="")


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from detect_and_compare.curve import curve_of, reasons, write_curves
from detect_and_compare.detect import OwlDetector
from detect_and_compare.draw import boxed
from detect_and_compare.failures import bleeds, failures, meant_by_noun, meant_by_place
from detect_and_compare.judge import Basis, Judge, checkpoint_complaints, load_judge, read_basis
from detect_and_compare.measure import Record
from detect_and_compare.results import Line
from mudi.ground.errors import RefusedError, program, refuse
from mudi.ground.files import unwritable, write_image, write_text
from mudi.ground.flags import origins, range_complaints
from mudi.ground.locks import hold
from mudi.ground.sheets import contact_sheet
from mudi.ground.work import Journal, join_processes, share
from mudi.images import load_rgb
from mudi.lora import WEIGHTS_NAME
from mudi.metadata import MetadataError, Subjects, load_subjects
from mudi.pictures.jobs import (
    ANEW,
    PICTURES,
    SHEET,
    Job,
    check_unchanged,
    data_digest,
    lora_digests,
    settings_of,
    write_picture,
)
from mudi.pictures.loras import lora_outlines, loras_in
from mudi.pictures.pipelines import (
    load_pipeline,
    pipeline_backbone,
    pipeline_complaints,
    pipeline_settings,
    place,
)
from mudi.pictures.sampling import Picture, Sampler, Sampling, Shot
from mudi.segmix import listed
from mudi.texts import printable
from mudi.training.checkpoints import saves
from mudi.training.saving import ARGUMENTS_NAME

FOLDER, CHOICE = "checkpoints", "choice.txt"
SUBJECTS = "{subjects}"
OF_THE_RUN = (  # flags that are the training's where they are not given
    "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "revision",
    "variant",
    "instance_data_dir",
    "resolution",
)
SHEET_TOGETHER, SHEET_TILE = 4, 192  # pictures of all subjects in a row; px

logger = logging.getLogger("mudi")


@dataclass(frozen=True)
class Trial:
    """A picture by a save.

    Attributes:
        lora: the save's folder.
        alone: the subject that it is to show alone; None: all together.
    """

    step: int
    lora: Path
    alone: str | None
    job: Job


@program
def main(args: CheckpointArgs) -> None:
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    problems: list[str] = []
    loras = find_loras(args.run, problems)
    refuse(problems)
    args = completed(args, next(iter(loras.values())), problems)
    output = args.output_dir or args.run / FOLDER
    refuse(problems)
    subjects = read_subjects(args.instance_data_dir or "")
    basis = read_basis(args, subjects.folder, "--instance_data_dir", problems)
    problems += complaints(args, subjects, output)
    refuse(problems)
    base = args.pretrained_model_name_or_path
    backbone = pipeline_backbone(base, args.revision, args.cache_dir)
    lora_outlines([str(path) for path in loras.values()], backbone, problems, args.cache_dir)
    refuse(problems)
    gamma = backbone.gamma if args.gamma is None else args.gamma

    state = join_processes()
    hold(output, state)
    if args.overwrite and state.is_main_process:
        for path in output.glob(f"{PICTURES}*"):
            path.unlink()
    state.wait_for_everyone()
    journal = Journal(output / PICTURES, "image", state)
    trials = list(trials_of(loras, args, subjects.names, gamma))
    common = {**origins(args), **basis.settings, "data": data_digest(subjects)}
    origin = {step: common | {"lora_files": lora_digests([str(p)])} for step, p in loras.items()}
    todo = [trial for trial in trials if not is_done(trial, journal, output, origin)]
    if todo:
        with state.local_main_process_first():  # fetches what the others then find on the disk
            judge = load_judge(args, basis, state.device)
        judge.check(journal.done, ANEW)
        draw(share(todo, state), args, subjects, basis, judge, journal, origin, state)
    lines = journal.finish([trial.job.name for trial in trials])[: len(trials)]
    if state.is_main_process:
        report(output, lines, subjects.names)


def find_loras(run: Path, problems: list[str]) -> dict[int, Path]:
    """Return the saves' folders by step, and the run's own for its last."""
    loras = {step: path for step, path in saves(run).items() if (path / WEIGHTS_NAME).is_file()}
    if not loras:
        problems.append(f"{run}: no save-<step> folder with a LoRA; train with --save_steps")
    own = run_arguments(run)
    last = own.get("step", own.get("max_train_steps"))  # runs by epochs once did not tell
    if (run / WEIGHTS_NAME).is_file() and isinstance(last, int):
        loras.setdefault(last, run)
    return dict(sorted(loras.items()))


def run_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments of the training that wrote a folder, as far as it tells."""
    path = folder / ARGUMENTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def completed(args: CheckpointArgs, save: Path, problems: list[str]) -> CheckpointArgs:
    """Return the flags with the run's own values where they are not given."""
    own = run_arguments(save)
    known = {name: own.get(name) for name in OF_THE_RUN if not getattr(args, name)}
    args = replace(args, **{name: value for name, value in known.items() if value is not None})
    problems += [
        f"--{name}: give it, {save / ARGUMENTS_NAME} does not tell"
        for name in ("pretrained_model_name_or_path", "instance_data_dir")
        if not getattr(args, name)
    ]
    return args


def read_subjects(folder: str) -> Subjects:
    try:
        return load_subjects(folder, min_subjects=2, caption_key=None)
    except MetadataError as error:
        raise RefusedError(str(error)) from error


def complaints(args: CheckpointArgs, subjects: Subjects, output: Path) -> list[str]:
    """Complain about the flags, before anything is loaded."""
    found = pipeline_complaints(args) + range_complaints(args)
    found += checkpoint_complaints(args.detector, args.embedder)
    found += [f'--prompts "{p}": no {SUBJECTS}' for p in args.prompts if SUBJECTS not in p]
    if why := unwritable(output):
        found.append(f"--output_dir {output}: {why}")
    return found


def trials_of(
    loras: Mapping[int, Path], args: CheckpointArgs, names: Mapping[str, str], gamma: float
) -> Iterator[Trial]:
    """Yield all pictures, save by save: every prompt of all subjects, then of each alone."""
    wishes: list[tuple[str | None, str, str]] = [(None, "together", listed(list(names.values())))]
    wishes += [(id, f"alone_{i}", listed([name])) for i, (id, name) in enumerate(names.items())]
    for step, lora in loras.items():
        for subject, word, told in wishes:
            for p, template in enumerate(args.prompts):
                for k in range(args.num_images):
                    shot = Shot(template.replace(SUBJECTS, told), args.seed + k, gamma)
                    image = f"save-{step:06}/{word}_{p:02}_{k:03}.png"
                    yield Trial(step, lora, subject, Job(image, shot))


def is_done(
    trial: Trial, journal: Journal, output: Path, origin: Mapping[int, Mapping[str, Any]]
) -> bool:
    """Say whether an earlier run made and judged this very picture.

    Raises:
        SetupError: it made another one of that name.
    """
    record, path = journal.done.get(trial.job.name), output / trial.job.name
    if record is None or not path.is_file():
        return False
    check_unchanged(path, record, settings_of(trial.job, origin[trial.step]))
    return True


def draw(
    trials: Sequence[Trial],
    args: CheckpointArgs,
    subjects: Subjects,
    basis: Basis,
    judge: Judge,
    journal: Journal,
    origin: Mapping[int, Mapping[str, Any]],
    state: PartialState,
) -> None:
    """Make pictures and judge them, save by save; the base is loaded once."""
    pipeline = load_pipeline(**pipeline_settings(args), device=state.device)
    size = (args.resolution, args.resolution) if args.resolution else None
    sampling = Sampling(size, args.steps, args.guidance_scale)
    sampler = Sampler(pipeline, sampling, subjects, state.device)
    place(pipeline, state.device, args.cpu_offload)
    bar = tqdm(total=len(trials), desc="pictures", disable=not state.is_main_process)
    for step, group in groupby(trials, lambda trial: trial.step):
        own = list(group)
        bar.set_postfix_str(f"step {step}")
        with loras_in(pipeline, [str(own[0].lora)], [1.0], args.cache_dir):
            pictures = sampler.draw([trial.job.shot for trial in own], args.batch_size)
            for trial, picture in zip(own, pictures, strict=True):
                path = journal.path.parent / trial.job.name
                record = write_picture(trial.job, picture, path, origin[step])
                [records] = judge([picture.image])
                found = {
                    name: judged(trial, picture, record, judge, basis)
                    for name, record in records.items()
                }
                told = {"step": step, "alone": trial.alone, "found": found}
                journal.add(judge.line({**record, **told}, records))
                bar.update()
    bar.close()


def judged(
    trial: Trial, picture: Picture, record: Record, judge: Judge, basis: Basis
) -> dict[str, Any]:
    """Return what a picture shows by one embedder, as `curve.curve_of` counts it."""
    ids, crops = list(basis.references.names), record.likenesses
    if trial.alone is None:
        words = failures(crops, len(ids), meant(picture, record, judge, basis))
        return {"score": record.score, "verdict": record.verdict, "failures": words}
    own = ids.index(trial.alone)
    is_own = [crop.is_clear and crop.subject == own for crop in crops]
    return {"boxes": len(crops), "success": is_own == [True], "bleed": bleeds(crops, own)}


def meant(picture: Picture, record: Record, judge: Judge, basis: Basis) -> Sequence[int | None]:
    """Return whom each box was meant to be: by its noun, or where nouns don't tell by its place."""
    found = None
    if isinstance(judge.detector, OwlDetector):
        answers = [detection.query for detection in record.detections]
        found = meant_by_noun(answers, judge.detector.queries, list(basis.queries.values()))
    if found is not None:
        return found
    if picture.start is None:
        return [None] * len(record.boxes)
    width, height = picture.image.size
    places = [
        (box.left * width, box.top * height, box.right * width, box.bottom * height)
        for box in picture.start.layout.boxes
    ]
    return meant_by_place(record.boxes, places)


def report(output: Path, lines: Sequence[Line], names: Mapping[str, str]) -> None:
    """Write the curves, the sheet and, by the first embedder, the choice."""
    curves = {embedder: curve_of(lines, embedder) for embedder in lines[0]["scores"]}
    write_curves(output, curves)
    write_image(output / SHEET, sheet(output, lines, names))
    told = reasons(next(iter(curves.values())))
    write_text(output / CHOICE, "\n".join(told) + "\n")
    for line in told:
        print(line)
    print(f"look at {output / 'checkpoints.png'} and {output / SHEET}")


def sheet(output: Path, lines: Sequence[Line], names: Mapping[str, str]) -> Image.Image:
    """Lay out a row a save: some pictures of all subjects, and one of each alone."""
    images, captions, columns = [], [], 0
    for step, group in groupby(lines, lambda line: line["step"]):
        own = list(group)
        shown = [line for line in own if line["alone"] is None][:SHEET_TOGETHER]
        shown += [next(line for line in own if line["alone"] == subject) for subject in names]
        columns = len(shown)
        for line in shown:
            scores = next(iter(line["scores"].values()))
            matched = [verdict["detection"] for verdict in scores["subjects"].values()]
            images.append(boxed(load_rgb(output / line["image"]), line["boxes"], matched))
            captions.append(f"step {step}, {caption(line, names)}")
    return contact_sheet(images, captions, columns, SHEET_TILE)


def caption(line: Line, names: Mapping[str, str]) -> str:
    found = next(iter(line["found"].values()))
    if line["alone"] is None:
        words = " ".join(found["failures"])
        return f"{found['score']:.2f}, {found['verdict']}{words and f': {words}'}"
    told = ["bleed"] * found["bleed"] + [f"{found['boxes']} boxes"] * (found["boxes"] != 1)
    return printable(f"{names[line['alone']]} alone: {', '.join(told) or 'no bleed'}")


if __name__ == "__main__":
    main(ARGS)
