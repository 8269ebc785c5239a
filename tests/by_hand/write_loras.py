"""Write LoRAs of the full-size networks' layers, for the readers' own code to be tried on.

    python tests/by_hand/write_loras.py DIR

For each family, with and without text encoders: one file in diffusers' names, one in kohya's. The
values are random, the sizes those of the published networks, which are built without weights.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.published import FLUX, SDXL, ZIMAGE
from mudi.lora import ATTENTION_TARGETS, TEXT_ENCODER_TARGETS
from mudi.lora_files import About, write_diffusers, write_kohya

FAMILIES = {
    "sdxl": (SDXL, ("unet", "text_encoder", "text_encoder_2")),
    "flux": (FLUX, ("transformer", "text_encoder")),
    "zimage": (ZIMAGE, ("transformer",)),
}
RANK = 2


def random_lora(networks: dict, parts: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for part in parts:
        network = networks[part]
        with torch.device("meta"):
            is_dict = isinstance(network.config, dict)
            model = network.kind(**network.config) if is_dict else network.kind(network.config)
        targets = TEXT_ENCODER_TARGETS if "text" in part else ATTENTION_TARGETS
        for name, module in model.named_modules():
            if name.endswith(tuple(targets)):
                height, width = module.weight.shape
                state = states.setdefault(part, {})
                state[f"{name}.lora_A.weight"] = torch.randn(RANK, width, generator=generator)
                state[f"{name}.lora_B.weight"] = torch.randn(height, RANK, generator=generator)
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for family, (networks, parts) in FAMILIES.items():
        with_text = [(f"{family}_text", parts)] if parts[1:] else []
        for name, chosen in ((family, parts[:1]), *with_text):
            states = random_lora(networks, chosen)
            about = About(name, ("olis robot", "hta dog"), 1024)
            for file in (
                write_diffusers(folder / f"{name}_diffusers.safetensors", states, {}, about),
                write_kohya(folder / f"{name}_kohya.safetensors", states, about),
            ):
                print(file)


if __name__ == "__main__":
    main()
