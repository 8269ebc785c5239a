"""Sample in ComfyUI with our nodes, and compare what its sampler starts from with inference.py's.

    python tests/by_hand/comfyui_noise.py COMFYUI

COMFYUI is a checkout, and Python one that has its requirements and ours. Nodes are loaded and
called as ComfyUI does it, and its own samplers run; the VAEs have SDXL's and FLUX's full size and
random weights, and the denoiser is one that answers 0 and keeps what it was given. It prints a line
a way, and what in the example workflows is unknown to ComfyUI.
"""

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from comfyui_loras import FLUX_TRANSFORMER, SDXL_UNET
from diffusers import AutoencoderKL
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
PHOTOS = ROOT / "dataset" / "category" / "robot_and_teddy"
PROMPT = "a photo of a olis robot and a hta teddy bear"
LAYOUT = """
{"boxes": {"olis robot": [0.05, 0.3, 0.5, 0.95], "hta teddy bear": [0.4, 0.4, 0.9, 0.9]},
 "photos": {"olis robot": "a00.jpg", "hta teddy bear": "b00.jpg"}}"""
SIDE, SEED, GAMMA, STEPS = 256, 7, 0.4, 50
SMALL = {
    "sdxl": SDXL_UNET | {"model_channels": 32, "context_dim": 64, "num_head_channels": 32},
    "flux": FLUX_TRANSFORMER
    | {"hidden_size": 32, "num_heads": 2, "depth": 1, "depth_single_blocks": 1}
    | {"axes_dim": [4, 6, 6], "context_in_dim": 64, "vec_in_dim": 32},
}


def full_vae(family: str) -> AutoencoderKL:
    """Return a VAE of the base model's size with random weights."""
    own: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.13025}
    if family == "flux":
        own = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
        own |= {"use_quant_conv": False, "use_post_quant_conv": False}
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        **own,
    ).eval()


def our_start(family: str, vae: AutoencoderKL) -> tuple[Tensor, Any]:
    """Return inference.py's noise, before any scaling, and its pipeline's scheduler."""
    from comfyui.layout_json import parse_layout
    from mini.tiny import tiny_flux, tiny_sdxl
    from mudi.metadata import load_subjects
    from mudi.pictures.sampling import Sampler, Sampling, Shot

    subjects = load_subjects(PHOTOS)
    pipeline = {"sdxl": tiny_sdxl, "flux": tiny_flux}[family]()
    pipeline.register_modules(vae=vae)
    layout = parse_layout(LAYOUT, list(subjects.names.values()))
    sampler = Sampler(pipeline, Sampling(size=(SIDE, SIDE)), subjects)
    return sampler.noise(Shot(PROMPT, SEED, GAMMA, layout)), pipeline.scheduler


class Denoiser:
    """ComfyUI's model of a family; `first` is what its first step was given."""

    def __init__(self, family: str):
        from comfy import model_patcher, supported_models

        kind = {"sdxl": supported_models.SDXL, "flux": supported_models.Flux}[family]
        cpu = torch.device("cpu")
        network = kind(SMALL[family]).get_model({}, device=cpu)
        self.patcher = model_patcher.ModelPatcher(network, cpu, cpu)
        self.patcher.set_model_unet_function_wrapper(self._answer)
        self.first: Tensor | None = None

    def _answer(self, _: Any, given: dict[str, Any]) -> Tensor:
        if self.first is None:
            self.first = given["input"][:1].clone()
        return torch.zeros_like(given["input"])


def collage(library: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Load the photos and lay them out, by ComfyUI's nodes and ours."""
    given: dict[str, Any] = {}
    for number, name in enumerate(("a00", "b00"), 1):
        given[f"image_{number}"] = library["LoadImage"]().load_image(f"{name}.jpg")[0]
        [given[f"mask_{number}"]] = library["LoadImageMask"]().load_image(f"mask_{name}.png", "red")
    return library["MuDICollage"]().compose(SIDE, SIDE, LAYOUT, 0, "white", **given)


def tell(way: str, started: Tensor | None, wanted: Tensor) -> None:
    if started is None:
        raise RuntimeError(f"{way}: ComfyUI's sampler called no denoiser")
    error = float((started - wanted).abs().max() / wanted.abs().max())
    print(f"{way}: largest difference {error:.1e} of the largest value", flush=True)


def called(library: dict[str, Any], name: str, *inputs: Any) -> Any:
    """Return a node's first output."""
    node = library[name]
    return getattr(node(), node.FUNCTION)(*inputs)[0]


def try_family(family: str, library: dict[str, Any]) -> None:
    import comfy.sd

    vae = full_vae(family)
    noise, scheduler = our_start(family, vae)
    theirs = comfy.sd.VAE(sd=vae.state_dict(), dtype=torch.float32)
    picture, masks = collage(library)
    width = 2048 if family == "sdxl" else 64
    prompt = [[torch.zeros(1, 77, width), {"pooled_output": torch.zeros(1, 1280)}]]
    empty = {"samples": torch.zeros(1, noise.shape[1], SIDE // 8, SIDE // 8)}
    model = Denoiser(family).patcher
    own = "normal" if family == "sdxl" else "simple"
    tell_schedules(family, library, model)
    schedules = {own: called(library, "BasicScheduler", model, own, STEPS, 1.0)}
    if family == "sdxl":
        scheduler.set_timesteps(STEPS)
        schedules["diffusers' own"] = scheduler.sigmas
    for name, sigmas in schedules.items():
        first = float(sigmas[0])
        wanted = noise * (first**2 + 1) ** 0.5 if family == "sdxl" else noise
        settings = (str(GAMMA), SEED, "float32", sigmas)
        shifted = called(library, "MuDIMeanShiftedNoise", model, theirs, picture, masks, *settings)
        denoiser = Denoiser(family)
        guider = called(library, "BasicGuider", denoiser.patcher, prompt)
        euler = called(library, "KSamplerSelect", "euler")
        called(library, "SamplerCustomAdvanced", shifted, guider, euler, sigmas, empty)
        way = f"{family}, SamplerCustomAdvanced, sigmas {name}, the first {first:.4f}"
        tell(way, denoiser.first, wanted)
    if family == "sdxl":
        wanted = noise * (float(schedules[own][0]) ** 2 + 1) ** 0.5
        held = called(library, "MuDIStartLatent", model, shifted, empty)
        tell_latents(library, {"MuDIStartLatent": held, **exported(library, noise, scheduler)},
                     prompt, wanted)  # fmt: skip


def tell_schedules(family: str, library: dict[str, Any], model: Any) -> None:
    """Print where each of ComfyUI's schedules begins."""
    from comfy.samplers import SCHEDULER_NAMES

    firsts = {
        name: float(called(library, "BasicScheduler", model, name, STEPS, 1.0)[0])
        for name in SCHEDULER_NAMES
    }
    print(f"{family}, first sigmas: {firsts}", flush=True)


def exported(library: dict[str, Any], noise: Tensor, scheduler: Any) -> dict[str, Any]:
    """Write the start as inference.py --export_noise does, and load it by ComfyUI's node."""
    from mudi.pictures.export import start_latent, write_latent

    with TemporaryDirectory() as folder:
        path = write_latent(
            Path(folder) / "start.latent", start_latent(noise, scheduler.alphas_cumprod), "{}"
        )
        return {"LoadLatent of --export_noise": called(library, "LoadLatent", str(path))}


def tell_latents(
    library: dict[str, Any], latents: dict[str, Any], prompt: list, wanted: Tensor
) -> None:
    """Compare what KSamplerAdvanced starts from without adding noise."""
    for name, latent in latents.items():
        denoiser = Denoiser("sdxl")
        called(library, "KSamplerAdvanced", denoiser.patcher, "disable", 0, STEPS, 1.0, "euler",
               "normal", prompt, prompt, latent, 0, 10000, "disable")  # fmt: skip
        tell(f"sdxl, KSamplerAdvanced, {name}", denoiser.first, wanted)


def unknown(path: Path, library: dict[str, Any]) -> list[str]:
    """Say what of a workflow ComfyUI does not know."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for node in graph.values():
        kind = node["class_type"]
        if kind not in library:
            found.append(f"no node {kind}")
            continue
        groups = library[kind].INPUT_TYPES()
        declared = {**groups["required"], **groups.get("optional", {})}
        found += [f"{kind} without {key}" for key in groups["required"].keys() - node["inputs"]]
        for key, value in node["inputs"].items():
            if key not in declared:
                found.append(f"{kind}.{key} is not declared")
            elif isinstance(value, list):
                given = library[graph[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                if given != declared[key][0]:
                    found.append(f"{kind}.{key} gets {given}")
    return found


def load_comfyui(checkout: Path) -> dict[str, Any]:
    """Start ComfyUI without its server; return its nodes and ours by name."""
    sys.argv = sys.argv[:1]  # ComfyUI reads it as well
    sys.path[:0] = [str(checkout), str(ROOT)]
    from comfy.cli_args import args as settings

    settings.cpu = True
    import folder_paths
    import nodes

    logging.disable(logging.WARNING)  # of nodes that need what is not installed
    folder_paths.set_input_directory(str(PHOTOS))
    asyncio.run(nodes.init_builtin_extra_nodes())
    if not asyncio.run(nodes.load_custom_node(str(ROOT / "comfyui"))):
        raise RuntimeError("ComfyUI did not load our nodes")
    return nodes.NODE_CLASS_MAPPINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", type=Path)
    library = load_comfyui(parser.parse_args().comfyui)
    for name in ("sdxl", "flux"):
        told = unknown(ROOT / "comfyui" / "workflows" / f"{name}.json", library)
        print(f"{name}.json: {'; '.join(told) or 'every node and input is known'}", flush=True)
    with torch.no_grad():
        for family in ("sdxl", "flux"):
            try_family(family, library)


if __name__ == "__main__":
    main()
