"""The ComfyUI nodes, against their documented interface and against mudi's own start."""

import ast
import importlib.util
import json
import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, noise, rectangle

from mini.tiny import tiny_flux, tiny_sdxl
from mudi.init_noise import (
    Layout,
    compose_layout,
    gamma_map,
    latent_masks,
    mean_shifted_noise,
    subject_latents,
)
from mudi.layouts import UnitBox
from mudi.pictures.export import start_latent
from mudi.segmix import cut_out

FOLDER = ROOT / "comfyui"
BOXES = '{"boxes": [[0.05, 0.3, 0.5, 0.95], [0.4, 0.5, 0.95, 0.9]]}'
LAYOUT = Layout((UnitBox(0.05, 0.3, 0.5, 0.95), UnitBox(0.4, 0.5, 0.95, 0.9)), (0, 1))
SIZE = (64, 48)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """The package, from a copy of the folder alone, loaded as ComfyUI loads it."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "mudi"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert not hasattr(module, "WEB_DIRECTORY")
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    return SimpleNamespace(**{c.__name__: c for c in module.NODE_CLASS_MAPPINGS.values()})


class Vae:
    """ComfyUI's VAE as a node sees it: pixels (B, H, W, 3) in [0, 1] to raw latents."""

    def __init__(self, vae):
        self.vae = vae

    def encode(self, pixels):
        with torch.no_grad():
            return self.vae.encode(pixels.movedim(-1, 1) * 2 - 1).latent_dist.mode()


class Sdxl:
    """ComfyUI's MODEL as a node sees it, with its formulas for SDXL."""

    scale_factor, shift_factor = 0.13025, 0.0
    sigma_max = torch.tensor(14.6146)

    def get_model_object(self, name):
        assert name in ("latent_format", "model_sampling")
        return self

    def process_in(self, latent):
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor + self.shift_factor

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * (torch.sqrt(1 + sigma**2) if max_denoise else sigma) + latent_image


class Flux(Sdxl):
    scale_factor, shift_factor, sigma_max = 0.3611, 0.1159, torch.tensor(1.0)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image


def subjects():
    """Two photos with masks, as cut-outs and as what ComfyUI gives."""
    photos, masks = [noise(seed=1), noise(40, 80, seed=2)], [rectangle(), rectangle(40, 80)]
    cutouts = [cut_out(p, np.asarray(m) > 128) for p, m in zip(photos, masks, strict=True)]
    given = {}
    for number, (photo, mask) in enumerate(zip(photos, masks, strict=True), 1):
        given[f"image_{number}"] = torch.from_numpy(np.asarray(photo) / np.float32(255))[None]
        given[f"mask_{number}"] = torch.from_numpy(np.asarray(mask) / np.float32(255))[None]
    return cutouts, given


def collage(nodes, layout=BOXES, background="white", seed=0, **more):
    return nodes.Collage().compose(*SIZE, layout, seed, background, **{**subjects()[1], **more})


def ours(pipeline, gamma, seed, dtype=torch.float32):
    """mudi's start for the same layout: (1, C, h, w)."""
    scene = compose_layout(subjects()[0], LAYOUT, SIZE)
    latents = subject_latents(pipeline.vae, [scene.image])
    masks = latent_masks(scene.visible, latents.shape[-2:])
    if isinstance(gamma, list):
        gamma = gamma_map(gamma, masks)
    generator = torch.Generator().manual_seed(seed)
    return mean_shifted_noise(latents.to(dtype), masks.sum(0)[None, None], gamma, generator)


def noise_of(nodes, pipeline, model, gamma="0.4", seed=7, dtype="float32", **more):
    picture, masks = collage(nodes)
    [made] = nodes.MeanShiftedNoise().shift(
        model, Vae(pipeline.vae), picture, masks, gamma, seed, dtype, **more
    )
    return made


def latent(pipeline, batch=1, **more):
    channels = pipeline.vae.config.latent_channels
    return {"samples": torch.zeros(batch, channels, SIZE[1] // 8, SIZE[0] // 8), **more}


# The package


def test_a_copied_folder_needs_torch_numpy_and_pillow_only():
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "PIL"}
    for path in FOLDER.glob("*.py"):
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Import):
                assert {alias.name.split(".")[0] for alias in statement.names} <= allowed, path
            if isinstance(statement, ast.ImportFrom) and statement.level == 0:
                assert statement.module.split(".")[0] in allowed, path


def test_nodes_declare_what_comfyui_asks_of_them(nodes):
    for node in vars(nodes).values():
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"}
        names = [name for group in inputs.values() for name in group]
        for group in inputs.values():
            for kind, *options in group.values():
                assert isinstance(kind, str | list) and all(isinstance(o, dict) for o in options)
        call = getattr(node, node.FUNCTION)
        code = call.__code__
        taken = code.co_varnames[1 : code.co_argcount]
        assert set(taken) <= set(names) and isinstance(node.RETURN_TYPES, tuple)
        assert node.CATEGORY == "MuDI" and node.DESCRIPTION


# The collage


def test_the_collage_is_that_of_mudi(nodes):
    picture, masks = collage(nodes)
    scene = compose_layout(subjects()[0], LAYOUT, SIZE)
    assert picture.shape == (1, SIZE[1], SIZE[0], 3) and picture.dtype == torch.float32
    assert (np.rint(picture[0].numpy() * 255) == np.asarray(scene.image)).all()
    assert (masks.numpy() == scene.visible).all() and masks.dtype == torch.float32
    black, _ = collage(nodes, background="black")
    assert black[0, 0, 0].tolist() == [0, 0, 0] and picture[0, 0, 0].tolist() == [1, 1, 1]


def test_without_a_layout_the_seed_draws_one(nodes):
    first, again, other = (collage(nodes, "", seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first) == 2 and all(mask.any() for mask in first)


@pytest.mark.parametrize(
    "more, told",
    [
        ({"mask_2": None}, "image_2 has no mask_2"),
        ({"mask_2": torch.zeros(1, 64, 64)}, "image_2: mask is 64x64, image 40x80; Load Image"),
        ({"mask_2": torch.zeros(1, 80, 40)}, "image_2: mask has no foreground pixel"),
        ({"image_2": None}, "1 cut-outs, but 2 boxes"),
        ({"layout": '{"boxes": [[0, 0, 2, 1]]}'}, r"layout: .*reaches outside"),
    ],
)
def test_what_cannot_be_laid_out_is_told(nodes, more, told):
    with pytest.raises(ValueError, match=told):
        collage(nodes, **more)


# The noise


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model, build", [(Sdxl, tiny_sdxl), (Flux, tiny_flux)])
def test_the_noise_is_mudis(nodes, model, build, dtype):
    pipeline = build()
    made = noise_of(nodes, pipeline, model(), dtype=dtype)
    assert made.seed == 7
    out = made.generate_noise(latent(pipeline, 3))
    assert out.dtype == torch.float32 and out.shape[0] == 3
    for number in range(3):  # picture k has seed + k
        wanted = ours(pipeline, 0.4, 7 + number, getattr(torch, dtype)).float()
        assert abs(out[number] - wanted[0]).max() < (1e-6 if dtype == "float32" else 0.02)
    [second] = made.generate_noise(latent(pipeline, 1, batch_index=[1]))
    assert torch.equal(second, out[1])


def test_without_gamma_it_is_diffusers_own_noise(nodes):
    pipeline = tiny_sdxl()
    made = noise_of(nodes, pipeline, Sdxl(), "0").generate_noise(latent(pipeline))
    assert torch.equal(made, torch.randn(made.shape, generator=torch.Generator().manual_seed(7)))


def test_each_subject_can_have_its_own_gamma(nodes):
    pipeline = tiny_sdxl()
    made = noise_of(nodes, pipeline, Sdxl(), "0.4, 0.1").generate_noise(latent(pipeline))
    assert abs(made - ours(pipeline, [0.4, 0.1], 7)).max() < 1e-6
    assert abs(made - ours(pipeline, 0.4, 7)).max() > 1e-3


@pytest.mark.parametrize("first", [14.6146, 13.0832, 5.0])
def test_sampling_starts_where_diffusers_does(nodes, first):
    """ComfyUI's own rule: sqrt(1 + sigma^2) at the largest sigma, sigma below it."""
    pipeline, model = tiny_sdxl(), Sdxl()
    sigmas = torch.tensor([first, 1.0, 0.0])
    made = noise_of(nodes, pipeline, model, sigmas=sigmas)
    largest = math.isclose(first, float(model.sigma_max), rel_tol=1e-5)
    given = made.generate_noise(latent(pipeline))
    start = model.noise_scaling(sigmas[0], given, torch.zeros_like(given), max_denoise=largest)
    wanted = ours(pipeline, 0.4, 7) * math.sqrt(1 + first**2)
    assert abs(start - wanted).max() < 1e-5 * first

    [held] = nodes.StartLatent().start(model, made, latent(pipeline, noise_mask=1), sigmas)
    assert held["noise_mask"] == 1
    assert abs(model.process_in(held["samples"]) - wanted).max() < 1e-5 * first


def test_flux_needs_no_correction_and_takes_no_latent(nodes):
    pipeline = tiny_flux()
    made = noise_of(nodes, pipeline, Flux(), sigmas=torch.tensor([1.0, 0.5, 0.0]))
    assert made.scale == 1
    with pytest.raises(ValueError, match="starts from noise alone"):
        nodes.StartLatent().start(Flux(), made, latent(pipeline))


def test_other_noise_makes_a_start_too(nodes):
    pipeline = tiny_sdxl()
    plain = SimpleNamespace(seed=0, generate_noise=lambda given: torch.ones_like(given["samples"]))
    [held] = nodes.StartLatent().start(Sdxl(), plain, latent(pipeline))
    wanted = math.sqrt(1 + 14.6146**2) / 0.13025
    assert abs(held["samples"] - wanted).max() < 1e-3


@pytest.mark.parametrize("gamma", ["", "a", "0.1 0.2 0.3"])
def test_a_gamma_that_is_none_is_told(nodes, gamma):
    with pytest.raises(ValueError, match=f"^gamma '{gamma}': "):
        noise_of(nodes, tiny_sdxl(), Sdxl(), gamma)


def test_another_size_than_the_collages_is_told(nodes):
    made = noise_of(nodes, tiny_sdxl(), Sdxl())
    with pytest.raises(ValueError, match=r"the latent is \(4, 8, 8\), the collage's \(4, 6, 8\)"):
        made.generate_noise({"samples": torch.zeros(1, 4, 8, 8)})


def test_the_node_makes_the_start_that_inference_exports(nodes):
    """sqrt(1 + 14.6146^2) (epsilon + gamma M z) / 0.13025."""
    pipeline = tiny_sdxl()
    made = noise_of(nodes, pipeline, Sdxl())
    [held] = nodes.StartLatent().start(Sdxl(), made, latent(pipeline))
    exported = start_latent(ours(pipeline, 0.4, 7), pipeline.scheduler.alphas_cumprod)
    wanted = ours(pipeline, 0.4, 7) * math.sqrt(1 + 14.6146**2) / 0.13025
    assert abs(exported - wanted).max() < 1e-5 * abs(wanted).max()
    assert abs(held["samples"] - exported).max() < 1e-5 * abs(wanted).max()


# The example workflows

CORE = {  # ComfyUI 0.3.64's nodes in them: inputs, output types
    "BasicGuider": ("model conditioning", "GUIDER"),
    "BasicScheduler": ("model scheduler steps denoise", "SIGMAS"),
    "CFGGuider": ("model positive negative cfg", "GUIDER"),
    "CLIPTextEncode": ("text clip", "CONDITIONING"),
    "CheckpointLoaderSimple": ("ckpt_name", "MODEL CLIP VAE"),
    "DualCLIPLoader": ("clip_name1 clip_name2 type device", "CLIP"),
    "EmptyLatentImage": ("width height batch_size", "LATENT"),
    "EmptySD3LatentImage": ("width height batch_size", "LATENT"),
    "FluxGuidance": ("conditioning guidance", "CONDITIONING"),
    "KSamplerSelect": ("sampler_name", "SAMPLER"),
    "LoadImage": ("image", "IMAGE MASK"),
    "LoadImageMask": ("image channel", "MASK"),
    "LoraLoader": ("model clip lora_name strength_model strength_clip", "MODEL CLIP"),
    "PreviewImage": ("images", ""),
    "SamplerCustomAdvanced": ("noise guider sampler sigmas latent_image", "LATENT LATENT"),
    "SaveImage": ("images filename_prefix", ""),
    "UNETLoader": ("unet_name weight_dtype", "MODEL"),
    "VAEDecode": ("samples vae", "IMAGE"),
    "VAELoader": ("vae_name", "VAE"),
}


def check_value(spec, value, outputs):
    """That an input of ours gets a value, or an output, that it declares."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(value, list):
        source, index = value
        assert outputs[source][index] == kind
    elif isinstance(kind, list):
        assert value in kind
    else:
        assert isinstance(value, {"INT": int, "STRING": str}[kind])
        if kind == "INT":
            assert options["min"] <= value <= options["max"]
            assert value % options.get("step", 1) == 0


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_workflow_gives_every_node_what_it_declares(nodes, name):
    graph = json.loads((FOLDER / "workflows" / f"{name}.json").read_text())
    own = {f"MuDI{title}": node for title, node in vars(nodes).items()}
    outputs = {
        number: list(own[kind].RETURN_TYPES) if kind in own else CORE[kind][1].split()
        for number, kind in ((number, node["class_type"]) for number, node in graph.items())
    }
    kinds = [node["class_type"] for node in graph.values()]
    assert {"MuDICollage", "MuDIMeanShiftedNoise"} <= set(kinds)
    for node in graph.values():
        kind, given = node["class_type"], node["inputs"]
        if kind not in own:
            assert list(given) == CORE[kind][0].split()
            assert all(v[1] < len(outputs[v[0]]) for v in given.values() if isinstance(v, list))
            continue
        declared = own[kind].INPUT_TYPES()
        assert declared["required"].keys() <= given.keys()
        for key, value in given.items():
            check_value({**declared["required"], **declared["optional"]}[key], value, outputs)
    [layout] = [n["inputs"]["layout"] for n in graph.values() if n["class_type"] == "MuDICollage"]
    picture, masks = nodes.Collage().compose(*SIZE, layout, 0, "white", **subjects()[1])
    assert len(masks) == 2 and picture.shape == (1, SIZE[1], SIZE[0], 3)
