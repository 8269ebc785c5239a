"""A page on this machine: masks by clicks, captions, what training will see, layouts, results.

    python -m mudi.studio photos/ --sam_checkpoint sam_vit_h_4b8939.pth

It prints the address to open. Nothing leaves this machine, and no other can ask. The tab Layout
draws with --pretrained_model_name_or_path and --lora; the tab Results shows pictures of --results.
"""

from mudi.ground.flags import parse
from mudi.studio.args import StudioArgs


def parse_args(argv: list[str] | None = None) -> StudioArgs:
    no_model = {"pretrained_model_name_or_path": ""}
    return parse(StudioArgs, __doc__, argv, prog="python -m mudi.studio", **no_model)


if __name__ == "__main__":
    ARGS = parse_args()  # --help and a mistyped flag are answered before PyTorch is imported

import logging

from mudi.ground.devices import accelerate_device
from mudi.ground.errors import program, refuse
from mudi.ground.files import unwritable
from mudi.ground.flags import model_folder_complaints, range_complaints
from mudi.studio import captions, masking, results
from mudi.studio.folder import PhotoFolder
from mudi.studio.server import Answers, Server, Site, bind

TRAINED_AT = 1024  # px, for the checker's warnings


@program
def main(args: StudioArgs) -> None:
    logging.basicConfig(format="%(message)s")
    server = open_server(args)
    for complaint in masking.Models(args, "cpu").complaints:
        print(f"no clicks yet: {complaint}")
    print(f"{args.photos} is open at\n\n    {server.address}\n\nCtrl-C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def open_server(args: StudioArgs) -> Server:
    """Return the server of a folder, bound to its port; no model is loaded yet.

    Raises:
        SetupError: a flag or the folder can't be used.
    """
    refuse(complaints(args))
    folder = PhotoFolder(args.photos, TRAINED_AT)
    device = args.device or str(accelerate_device())
    models, captioner = masking.Models(args, device), captions.Captioner(args, device)
    judged = results.Results(args.results, args.scores)
    answers = {
        **masking.answers(folder, models),
        **captions.answers(folder, captioner),
        **results.answers(judged, folder.lock),
    }
    return bind(Site(answers, lambda: slow_answers(args, folder)), args.port)


def slow_answers(args: StudioArgs, folder: PhotoFolder) -> Answers:
    """Return the answers of the tabs that need diffusers, which takes seconds to import."""
    from mudi.studio import collages, drawing, layout

    stages = layout.Stages(folder)
    return {
        **collages.answers(folder),
        **layout.answers(folder, stages, args),
        **drawing.answers(stages, drawing.Easel(args)),
    }


def complaints(args: StudioArgs) -> list[str]:
    """Say what is wrong with the flags that can be seen without loading anything."""
    found = range_complaints(args)
    if not args.photos.is_dir():
        found.append(f"{args.photos}: no such folder")
    elif why := unwritable(args.photos):
        found.append(f"{args.photos}: {why}")
    if args.pretrained_model_name_or_path:
        from mudi.pictures.pipelines import pipeline_complaints  # diffusers' import takes seconds

        found += pipeline_complaints(args)
    elif args.lora:
        found.append("--lora needs --pretrained_model_name_or_path, the model that it is for")
    if bool(args.llm_url) != bool(args.llm_model):
        found.append("--llm_url and --llm_model go together")
    if args.caption_model:
        found += model_folder_complaints("--caption_model", args.caption_model, "config.json")
    if args.scores and not args.results:
        found.append("--scores needs --results, the pictures that were scored")
    if args.lora_scale and len(args.lora_scale) != len(args.lora):
        found.append(f"--lora_scale: {len(args.lora_scale)} numbers for {len(args.lora)} LoRAs")
    return found


if __name__ == "__main__":
    main(ARGS)
