r"""Make the masks of a folder of photos: OWLv2 finds the subject, SAM cuts it out.

    python generate_masks.py --instance_data_dir photos --query a="action figure" b="dog" \
        --sam_checkpoint sam_vit_h_4b8939.pth \
        --write_metadata --names a="olis action figure" b="hta corgi"

A photo belongs to the id that metadata.jsonl gives it, else to the id its sub-folder is named
after, else to the longest id that its name begins with. Existing masks are kept. A contact sheet
shows every photo with its box and mask; photos that need help are listed with what was seen and
what to do.
"""

import argparse
from pathlib import Path

import torch

from mudi.ground.devices import accelerate_device
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.files import unwritable, write_image
from mudi.ground.flags import Parser, id_table
from mudi.ground.locks import hold
from mudi.masks import segment
from mudi.masks.folder import (
    METADATA,
    SHEET,
    Job,
    add_masking_flags,
    find_jobs,
    load_models,
    masking_complaints,
    name_complaints,
    write_metadata,
)
from mudi.masks.making import Masker, make_masks, result_sheet


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instance_data_dir", type=Path, required=True, help="folder of photos")
    parser.add_argument(
        "--query",
        nargs="+",
        action="extend",
        required=True,
        metavar="ID=NOUN",
        help="what to look for, per subject",
    )
    add_masking_flags(parser, segment.PHOTO_THRESHOLD)
    parser.add_argument("--pick", choices=("largest", "best"), help="which of several boxes")
    parser.add_argument(
        "--box",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE=x0,y0,x1,y1",
        help="a photo's box by hand (px), beyond which nothing is the subject",
    )
    parser.add_argument(
        "--point",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE=x,y",
        help="a pixel on the subject; repeatable",
    )
    parser.add_argument("--overwrite", action="store_true", help="make existing masks anew")
    parser.add_argument("--write_metadata", action="store_true", help=f"complete {METADATA}")
    parser.add_argument(
        "--names",
        nargs="+",
        action="extend",
        default=[],
        metavar="ID=NAME",
        help="prompt names for --write_metadata",
    )
    parser.add_argument("--device", default=str(accelerate_device()), help="of the models")
    return parser.parse_args(argv)


@program
def main(args: argparse.Namespace) -> None:
    folder = args.instance_data_dir
    problems = [*masking_complaints(args), *_device_complaints(args.device)]
    queries = id_table(args.query, "--query", problems)
    names = id_table(args.names, "--names", problems)
    boxes = _by_file(args.box, 4, "--box", problems)
    points = _by_file(args.point, 2, "--point", problems)
    jobs = find_jobs(folder, list(queries), problems)
    problems += _place_complaints({*boxes, *points}, jobs)
    problems += [f"--box {name}: given twice" for name, found in boxes.items() if len(found) > 1]
    if jobs and (why := unwritable(folder)):
        problems.append(f"--instance_data_dir {folder}: {why}")
    if args.write_metadata:
        problems += name_complaints(folder, queries, names)
    refuse(problems)

    hold(folder)
    models = load_models(
        args.detector, args.segmenter, args.sam_checkpoint, args.sam_type, args.device
    )
    masker = Masker(*models, queries, args.threshold, args.pick)
    one_box = {name: found[0] for name, found in boxes.items()}
    results = make_masks(jobs, masker, one_box, points, args.overwrite)

    write_image(folder / SHEET, result_sheet(results))
    unresolved = [f"{r.job.name}: {r.problem}" for r in results if r.problem]
    done = len(jobs) - len(unresolved)
    print(f"{done} of {len(jobs)} photos have masks; look at {folder / SHEET}")
    if args.write_metadata:
        write_metadata(folder, jobs, names)
    if unresolved:
        raise SetupError("These photos need help:\n" + "\n".join(unresolved))


def _place_complaints(given: set[str], jobs: list[Job]) -> list[str]:
    """Complain about boxes and points whose photo is not there, or not the only one so named."""
    found = []
    for name in sorted(given):
        named = [job.name for job in jobs if name in (job.name, job.photo.name)]
        if not named:
            found.append(f"no photo {name} to give a box or point")
        elif len(named) > 1 and name not in named:
            found.append(f"{name} could be {' or '.join(named)}; write it so")
    return found


def _device_complaints(name: str) -> list[str]:
    try:
        device = torch.device(name)
    except RuntimeError:
        return [f"--device {name}: torch knows no such device; give cuda, cuda:1, ... or cpu"]
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return [f"--device {name}: there is no such GPU here; give --device cpu"]
    return []


def _by_file(
    pairs: list[str], count: int, flag: str, problems: list[str]
) -> dict[str, list[tuple[int, ...]]]:
    """Read FILE=number,number,... words; a file may come several times."""
    table: dict[str, list[tuple[int, ...]]] = {}
    for pair in pairs:
        name, _, numbers = pair.rpartition("=")
        try:
            values = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            values = ()
        if not name or len(values) != count:
            problems.append(
                f"{flag} {pair}: write it as FILE={','.join('xyxy'[:count])}, in pixels"
            )
            continue
        table.setdefault(name, []).append(values)
    return table


if __name__ == "__main__":
    main(parse_args())
