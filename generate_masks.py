r"""Make the masks of a folder of photos: OWLv2 finds the subject, SAM cuts it out.

    python generate_masks.py --instance_data_dir photos --query a="action figure" b="dog" \
        --sam_checkpoint sam_vit_h_4b8939.pth \
        --write_metadata --names a="olis action figure" b="hta corgi"

A photo belongs to the id that metadata.jsonl gives it, else to the id its sub-folder is named
after, else to the longest id that its name begins with. Existing masks are kept. A contact sheet
shows every photo with its box and mask; photos that need help are listed with what was seen and
what to do. --suggest_captions --caption_model FOLDER_OR_HUB_ID has a vision model draft captions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mudi.ground.flags import flag, id_table, parse
from mudi.masks.args import CaptionArgs, MaskingArgs

MANY: dict[str, Any] = {"nargs": "+", "action": "extend"}  # repeatable


@dataclass
class Photos:
    """photos"""

    instance_data_dir: Path = flag(Path(), "folder of photos", required=True)
    query: list[str] = flag(
        [], "what to look for, per subject", **MANY, required=True, metavar="ID=NOUN"
    )
    pick: str | None = flag(None, "which of several boxes", choices=("largest", "best"))
    box: list[str] = flag(
        [],
        "a photo's box by hand (px), beyond which nothing is the subject",
        **MANY,
        metavar="FILE=x0,y0,x1,y1",
    )
    point: list[str] = flag([], "a pixel on the subject; repeatable", **MANY, metavar="FILE=x,y")
    negative_point: list[str] = flag(
        [], "a pixel that is none of the subject; repeatable", **MANY, metavar="FILE=x,y"
    )
    overwrite: bool = flag(False, "make existing masks anew")
    write_metadata: bool = flag(False, "complete metadata.jsonl")
    names: list[str] = flag([], "prompt names for --write_metadata", **MANY, metavar="ID=NAME")
    device: str | None = flag(None, "of the models; unset: the one that accelerate takes")


@dataclass
class MaskArgs(Photos, MaskingArgs, CaptionArgs):
    """What this script takes."""


def parse_args(argv: list[str] | None = None) -> MaskArgs:
    return parse(MaskArgs, __doc__, argv)


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import torch

from mudi.ground.devices import accelerate_device
from mudi.ground.errors import SetupError, program, refuse
from mudi.ground.files import unwritable, write_image
from mudi.ground.locks import hold
from mudi.masks.captions import caption_flag_complaints, load_describer, suggest_captions
from mudi.masks.folder import (
    METADATA,
    SHEET,
    find_jobs,
    load_models,
    masking_complaints,
    name_complaints,
    write_metadata,
)
from mudi.masks.making import Masker, make_masks, place_complaints, result_sheet


@program
def main(args: MaskArgs) -> None:
    folder, device = args.instance_data_dir, args.device or str(accelerate_device())
    problems = [*masking_complaints(args), *_device_complaints(device)]
    problems += caption_flag_complaints(args)
    if args.suggest_captions and not (args.write_metadata or (folder / METADATA).is_file()):
        problems.append(f"--suggest_captions: {folder} has no {METADATA}; give --write_metadata")
    queries = id_table(args.query, "--query", problems)
    names = id_table(args.names, "--names", problems)
    boxes = _by_file(args.box, 4, "--box", problems)
    points = _by_file(args.point, 2, "--point", problems)
    negatives = _by_file(args.negative_point, 2, "--negative_point", problems)
    jobs = find_jobs(folder, list(queries), problems)
    problems += place_complaints({*boxes, *points, *negatives}, jobs)
    problems += [f"--box {name}: given twice" for name, found in boxes.items() if len(found) > 1]
    if jobs and (why := unwritable(folder)):
        problems.append(f"--instance_data_dir {folder}: {why}")
    if args.write_metadata:
        problems += name_complaints(folder, queries, names)
    refuse(problems)

    hold(folder)
    models = load_models(args.detector, args.segmenter, args.sam_checkpoint, args.sam_type, device)
    masker = Masker(*models, queries, args.threshold, args.pick)
    one_box = {name: found[0] for name, found in boxes.items()}
    results = make_masks(jobs, masker, one_box, points, args.overwrite, negatives)
    del models, masker  # the caption model may need their memory

    write_image(folder / SHEET, result_sheet(results))
    unresolved = [f"{r.job.name}: {r.problem}" for r in results if r.problem]
    done = len(jobs) - len(unresolved)
    print(f"{done} of {len(jobs)} photos have masks; look at {folder / SHEET}")
    if args.write_metadata:
        write_metadata(folder, jobs, names)
    if args.suggest_captions:
        unresolved += _caption(folder, args, device)
    if unresolved:
        raise SetupError("These photos need help:\n" + "\n".join(unresolved))


def _caption(folder: Path, args: MaskArgs, device: str) -> list[str]:
    """Have captions written; return which photos have none, and why."""
    suggestions = suggest_captions(
        folder,
        load_describer(args, device),
        args.caption_colours,
        args.caption_tries,
        args.overwrite_captions,
    )
    written = sum(suggestion.caption is not None for suggestion in suggestions)
    print(f"{written} captions are written; read them: {folder / METADATA}")
    return [f"{s.name}: {s.problem}" for s in suggestions if s.problem]


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
    main(ARGS)
