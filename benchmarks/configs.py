"""Write the published networks' configurations as a model folder without weights, for --dry_run.

    python -m benchmarks.configs sdxl output/configs/sdxl
    accelerate launch train_segmix_lora_sdxl.py --dry_run --fits 12 \\
        --pretrained_model_name_or_path output/configs/sdxl \\
        --instance_data_dir dataset/category/robot_and_teddy --output_dir output/dry_run

The tokenizers are small ones: other numbers for the words, as many a prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.bases import PUBLISHED, light_pipeline
from mudi.ground.files import write_text
from mudi.ground.flags import MODEL_INDEX, flag, parse


def write_configs(family: str, folder: Path) -> None:
    """Write what `from_pretrained` reads of a pipeline's folder, but for the weights."""
    light_pipeline(family).save_pretrained(folder)
    index = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))
    for name, network in PUBLISHED[family].items():
        library = "diffusers"
        if isinstance(network.config, Mapping):
            with torch.device("meta"):
                network.kind.from_config(network.config).save_config(folder / name)
        else:
            library = "transformers"
            network.config.save_pretrained(folder / name)
        index[name] = [library, network.kind.__name__]
    write_text(folder / MODEL_INDEX, json.dumps(index, indent=2))


@dataclass
class ConfigsArgs:
    """configs"""

    family: str = flag("", "whose", positional=True, choices=sorted(PUBLISHED))
    folder: Path = flag(Path(), "folder to write", positional=True)


def parse_args(argv: list[str] | None = None) -> ConfigsArgs:
    return parse(ConfigsArgs, __doc__, argv)


def main(args: ConfigsArgs) -> None:
    write_configs(args.family, args.folder)


if __name__ == "__main__":
    main(parse_args())
