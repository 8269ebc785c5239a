"""Compare DreamBooth, Cut-Mix, Seg-Mix and MuDI on any SDXL folder; the miniature by default.

    python -m experiments.compare_methods --output output/compare
    accelerate launch -m experiments.compare_methods --output output/compare --experiments methods

Trains the LoRAs by train_segmix_lora_sdxl.py, several of each pair, makes pictures of the subjects
together and of each alone, scores them by Detect-and-Compare and writes results.csv (a row a
picture and embedder), summary.csv, tables.md, plots/ and sheet.png. LoRAs are shared among the
variants that need the same, and the work among the processes of a launch. A stopped run goes on
with the same command; more --experiments or --num_seeds add to it. Runs in several folders, of
other --data_sets or --trainings, are drawn up as one by experiments.gather.

Small models leave a GPU idle. Several processes share one by
ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes=6 -m ... --device cuda
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image, ImageOps

import train_segmix_lora_sdxl
from detect_and_compare import __main__ as metric
from experiments.backgrounds import BackgroundJudge, asked_colour
from experiments.data_sets import find_data_sets, make_priors, write_miniatures
from experiments.making import MakingArgs, make, prior_dir, read_settings, training_words
from experiments.plan import (
    EXPERIMENTS,
    DataSet,
    Unit,
    methods,
    plan_cases,
    plan_units,
)
from experiments.report import METRIC, RUN, write_report
from experiments.rows import Record, Row, rows_of
from experiments.scoring import (
    MetricArgs,
    embedder_labels,
    metric_complaints,
    score,
)
from mini import recipe
from mini.subjects import PILOT, SETS
from mudi.ground.errors import first_line, program, refuse
from mudi.ground.files import write_image, write_records, write_text
from mudi.ground.flags import (
    MODEL_INDEX,
    differences,
    flag,
    model_folder_complaints,
    origins,
    parse,
    range_complaints,
)
from mudi.ground.sheets import contact_sheet
from mudi.ground.work import Journal, join_processes, share
from mudi.images import load_rgb
from mudi.metadata import PRIOR_FILENAME, load_subjects
from mudi.pictures.jobs import file_digest
from mudi.pictures.pipelines import BASE_FLAG

QUICK = ("rabbit_and_panda", "two_cats")  # one of each kind, any
PICTURES, DNC, SHEET = "pictures.jsonl", "dnc", "sheet.png"
SHEET_TILE, SHEET_PICTURES = 128, 2  # px; of each method and data set, one a prompt


@dataclass
class Course:
    """experiments"""

    experiments: list[str] = flag(["methods"], "which", nargs="+", choices=EXPERIMENTS)
    data_dir: Path | None = flag(
        None, "folder of data folders; unset: the miniature's subjects", origin=True
    )
    data_sets: list[str] | None = flag(
        None,
        "names of folders in --data_dir; unset: all, of the miniature's all but the pilot's "
        f"({' '.join(PILOT)})",
        nargs="+",
    )
    gamma: float = flag(recipe.GAMMA, "of MuDI's mean shift")
    quick: bool = flag(
        False,
        f"a coarse table of methods: {' '.join(QUICK)}, one LoRA each, two pictures a prompt",
        action="store_true",
    )
    device: str | None = flag(
        None, "of training and pictures, cpu: of all; unset: accelerate's choice"
    )


@dataclass
class CompareArgs(Course, MakingArgs, MetricArgs):
    """What this command takes."""


def parse_args(argv: list[str] | None = None) -> CompareArgs:
    return parse(CompareArgs, __doc__, argv, prog="python -m experiments.compare_methods")


@program
def main(args: CompareArgs) -> None:
    refuse(complaints(args))
    if args.quick:
        args = replace(args, data_sets=list(QUICK), num_seeds=2, alone_seeds=1, trainings=[0])
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # of the prior sets and the metric as well
    state = join_processes()
    data_dir = args.data_dir or args.output / "data"
    with state.main_process_first():
        if args.data_dir is None and state.is_main_process:
            write_miniatures(data_dir)
    problems: list[str] = []
    names = args.data_sets
    if names is None and args.data_dir is None:
        names = [name for name in SETS if name not in PILOT]
    data_sets = find_data_sets(data_dir, names, problems)
    cases = plan_cases(args.experiments, args.gamma)
    units = plan_units(cases, data_sets, args.trainings)
    if not units:
        problems.append(
            f"nothing to do: no data set suits --experiments {' '.join(args.experiments)}"
        )
    else:
        training_args = train_segmix_lora_sdxl.parse_args(training_words(units[0], args))
        problems += train_segmix_lora_sdxl.check_args(training_args)
    refuse(problems + prior_complaints(args, units))
    begin(args, state)

    device = torch.device(args.device or state.device)
    if args.prior_dir is None:
        needing = dict.fromkeys(u.data_set.name for u in units if u.training.prior)
        make_priors(
            prior_dir(args),
            [data_set for data_set in data_sets if data_set.name in needing],
            args.pretrained_model_name_or_path,
            args.detector,
            args.prior_flags,
            state,
        )
    journal = Journal(args.output / PICTURES, "image", state)
    make(share(units, state), args, journal, device, state)
    records = journal.finish()
    see = BackgroundJudge()
    rows = [row for one in data_sets for row in score_set(one, records, args, see, state)]
    if state.is_main_process:
        sheet = method_sheet(args, data_sets)
        if sheet is not None:
            write_image(args.output / SHEET, sheet)
        note_metric(args.output, data_sets)
        write_report(args.output, rows, cases, data_sets)


def complaints(args: CompareArgs) -> list[str]:
    """Return what is wrong with the flags, as far as it can be seen at once."""
    base = args.pretrained_model_name_or_path
    complaints = model_folder_complaints(BASE_FLAG, base, MODEL_INDEX)
    complaints += metric_complaints(args)
    complaints += range_complaints(args)
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # a CPU-only PyTorch asserts
        complaints.append(f"--device {args.device}: {first_line(error)}")
    complaints += [
        f'--prompts "{p}": no {{subjects}}' for p in args.prompts if "{subjects}" not in p
    ]
    plain = CompareArgs()
    complaints += [
        f"--quick has its own --{name}; leave one of them out"
        for name in (
            "experiments",
            "data_dir",
            "data_sets",
            "num_seeds",
            "alone_seeds",
            "trainings",
        )
        if args.quick and getattr(args, name) != getattr(plain, name)
    ]
    return complaints


def prior_complaints(args: CompareArgs, units: Sequence[Unit]) -> list[str]:
    if args.prior_dir is None:
        return []
    paths = [args.prior_dir / u.data_set.name / PRIOR_FILENAME for u in units if u.training.prior]
    return [f"--prior_dir: no {path}" for path in dict.fromkeys(paths) if not path.is_file()]


def begin(args: CompareArgs, state: PartialState) -> None:
    """Note what LoRAs and pictures depend on; refuse to mix them with others in one folder."""
    settings = json.loads(json.dumps(origins(args), default=str))
    files = sorted(Path(args.pretrained_model_name_or_path).glob("*/*.safetensors"))
    settings["base_weights"] = [file_digest(file) for file in files]  # none of a hub's
    path = args.output / RUN
    earlier = read_settings(path) if path.is_file() else settings
    told = "; ".join(differences(earlier, settings))
    refuse([f"{path}: made otherwise; take another --output ({told})"] * bool(told))
    state.wait_for_everyone()
    if state.is_main_process:
        write_text(path, json.dumps(settings, indent=2) + "\n")


def score_set(
    data_set: DataSet,
    records: Sequence[Record],
    args: CompareArgs,
    see: BackgroundJudge,
    state: PartialState,
) -> list[Row]:
    """Score all pictures that there are of a data set."""
    pictures = [
        record
        for record in records
        if record["data_set"] == data_set.name and (args.output / record["image"]).is_file()
    ]
    if not pictures:
        return []
    path, output = args.output / f"{data_set.name}.jsonl", args.output / DNC / data_set.name
    if state.is_main_process:
        write_records(path, pictures)
    state.wait_for_everyone()
    rows: list[Row] = []
    for line in score(path, data_set.folder, output, args):
        wanted = asked_colour(line["prompt"])
        image = load_rgb(args.output / line["image"])
        background = None if wanted is None else see(image, line["boxes"]) == wanted
        rows += rows_of(line, data_set, embedder_labels(args), background)
    return rows


def note_metric(output: Path, data_sets: Sequence[DataSet]) -> None:
    """Write what all scores depend on, whatever the data set, the networks' weights among it."""
    paths = [output / DNC / one.name / metric.RUN for one in data_sets]
    settings = json.loads(next(path for path in paths if path.is_file()).read_text("utf-8"))
    common = {k: v for k, v in settings.items() if k not in ("queries", "references")}
    write_text(output / METRIC, json.dumps(common, indent=2) + "\n")


def method_sheet(args: CompareArgs, data_sets: Sequence[DataSet]) -> Image.Image | None:
    """Lay out the subjects, then the first pictures by every method, a column a data set.

    Returns None where no method has a picture.
    """
    names = [f"{p:02}_000.png" for p in range(min(SHEET_PICTURES, len(args.prompts)))]
    rows = {
        (label, name): [
            args.output / f"pictures/{one.name}/{variant.name}/{args.trainings[0]}/{name}"
            for one in data_sets
        ]
        for label, variant in methods(args.gamma).items()
        for name in names
    }
    shown = [i for i in range(len(data_sets)) if any(paths[i].is_file() for paths in rows.values())]
    if not shown:
        return None
    images = [subjects_tile(data_sets[i]) for i in shown]
    captions = [data_sets[i].name.replace("_", " ") for i in shown]
    for (label, _), paths in rows.items():
        for i in shown:
            blank = Image.new("RGB", (SHEET_TILE, SHEET_TILE), "white")
            images.append(load_rgb(paths[i]) if paths[i].is_file() else blank)
            captions.append(label)
    return contact_sheet(images, captions, len(shown), SHEET_TILE)


def subjects_tile(data_set: DataSet) -> Image.Image:
    """Lay a photo of each subject into a square."""
    subjects = load_subjects(data_set.folder)
    columns = math.ceil(len(subjects.names) ** 0.5)
    side = SHEET_TILE // columns
    tile = Image.new("RGB", (SHEET_TILE, SHEET_TILE), "white")
    for i, subject in enumerate(subjects.names):
        photo = load_rgb(subjects.photos_of(subject)[0].image)
        row, column = divmod(i, columns)
        tile.paste(ImageOps.fit(photo, (side, side)), (column * side, row * side))
    return tile


if __name__ == "__main__":
    main(parse_args())
