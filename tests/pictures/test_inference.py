"""inference.py and its sampler: stock pipelines that start from mean-shifted noise."""

import json
import logging
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from endpoint import completion
from helpers import ROOT
from notebooks import count_pictures, execute
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_launch import LAUNCH, offline
from training import EXAMPLE, reset_accelerate

import inference
from detect_and_compare import __main__ as metric
from mudi.ground.work import CHECKSUM
from mudi.init_noise import load_layout
from mudi.metadata import Photo, load_subjects
from mudi.pictures.loras import load_loras
from mudi.pictures.sampling import (
    SCHEDULERS,
    Sampler,
    Sampling,
    SamplingError,
    Shot,
    Stage,
    photo_named,
    set_scheduler,
    signal_unit,
)
from mudi.pictures.shot_args import named_subjects, negative_prompt
from mudi.segmix import COLLAGE_NEGATIVE_PROMPT

torch.set_num_threads(1)
PROMPT = "a photo of a olis robot and a hta teddy bear"
BOXES = {"olis robot": [0.0, 0.5, 0.5, 1.0], "hta teddy bear": [0.25, 0.0, 1.0, 1.0]}


@pytest.fixture(scope="module")
def subjects():
    return load_subjects(EXAMPLE)


def loaded(backbone):
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def array(image):
    return np.asarray(image).astype(int)


def largest_difference(ones, others):
    return max(abs(array(a) - array(b)).max() for a, b in zip(ones, others, strict=True))


SMALL = Sampling(size=(96, 64), steps=2)


@pytest.mark.parametrize("scheduler", [None, "euler_a", "ddim", "dpmpp_2m", "unipc"])
def test_gamma_0_is_plain_diffusers_pixel_for_pixel(backbone, subjects, scheduler):
    pipeline = loaded(backbone)
    if scheduler and backbone.denoiser == "transformer":
        with pytest.raises(SamplingError, match=" has its own scheduler"):
            set_scheduler(pipeline, scheduler)
        return
    if scheduler:
        set_scheduler(pipeline, scheduler)
    shots = [Shot(PROMPT, seed=5), Shot("a robot", seed=6)]
    ours = list(Sampler(pipeline, SMALL, subjects).draw(shots, batch_size=2))
    plain = pipeline(
        prompt=[PROMPT, "a robot"], width=96, height=64, num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    ).images  # fmt: skip
    assert largest_difference([p.image for p in ours], plain) == 0
    assert [p.start for p in ours] == [None, None]


def test_a_picture_does_not_depend_on_its_batch(backbone, subjects):
    """Its noise is the same bit for bit; in a batch its pixels may be rounded otherwise."""
    sampler = Sampler(loaded(backbone), SMALL, subjects)
    shots = [Shot(PROMPT, seed, gamma=0.5) for seed in range(3)]
    starts = [sampler.stage.start(shot) for shot in shots]
    generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
    noise = [sampler._noise(*made) for made in zip(shots, starts, generators, strict=True)]
    again = sampler._noise(shots[1], starts[1], torch.Generator().manual_seed(1))
    assert torch.equal(noise[1], again) and not torch.equal(noise[0], noise[1])
    together = [p.image for p in sampler.draw(shots, batch_size=3)]
    alone = [next(sampler.draw([shot])).image for shot in shots]
    assert largest_difference(together, alone) <= 1
    assert largest_difference(alone, [next(sampler.draw([shot])).image for shot in shots]) == 0


def test_gamma_moves_the_mean_where_the_subjects_are(backbone, subjects):
    """gamma by subject: b's noise is shifted, where a alone stands it is the plain one."""
    sampler = Sampler(loaded(backbone), SMALL, subjects)
    plain = Shot(PROMPT, seed=3)
    start = sampler.stage.start(plain)
    draw = {
        name: sampler._noise(replace(plain, gamma=gamma), start, torch.Generator().manual_seed(3))
        for name, gamma in {"no": 0.0, "all": 2.0, "b": {"a": 0.0, "b": 2.0}}.items()
    }
    factor = 64 // draw["no"].shape[-2]
    moved = {name: (noise != draw["no"]).any(1)[0].numpy() for name, noise in draw.items()}
    a, b = (
        seen.reshape(64 // factor, factor, 96 // factor, factor).any((1, 3))
        for seen in start.scene.visible
    )
    assert np.array_equal(moved["all"], a | b)
    assert np.array_equal(moved["b"], b)


def test_a_prompt_takes_the_subjects_that_it_names(subjects):
    names = {"a": "olis robot", "b": "hta teddy bear", "c": "pll corgi"}
    assert named_subjects("A PLL corgi beside an Olis Robot", names) == ["a", "c"]
    assert named_subjects("a olis  robot\nand a\u00a0hta\u2003teddy \u202f bear", names) == [
        "a",
        "b",
    ]
    cafes = {"a": "olis caf\u00e9", "b": "hta cafe"}
    assert named_subjects("a olis cafe\u0301", cafes) == ["a"]
    bears = {"x": "teddy", "y": "brown teddy", "z": "sks cat"}
    assert named_subjects("a brown teddy and a sks catalogue", bears) == ["y"]
    assert named_subjects("a teddy, a brown teddy", bears) == ["x", "y"]
    stage = Stage(subjects, (64, 64))
    assert stage.start(Shot("one hta teddy bear", seed=0)).names == ("hta teddy bear",)
    with pytest.raises(SamplingError, match='"a robot" names no subject; there are "olis robot"'):
        stage.start(Shot("a robot", seed=0))


def test_scales_set_the_relative_sizes(subjects):
    shot = Shot(PROMPT, seed=0, scales={"a": 1.0, "b": 0.5})
    first, second = Stage(subjects, (256, 256)).start(shot).layout.boxes
    assert (second.bottom - second.top) / (first.bottom - first.top) == pytest.approx(0.5)


def test_sizes_and_prompts_that_do_not_fit_are_told(backbone, subjects):
    with pytest.raises(SamplingError, match="100x64: both must be multiples of"):
        Sampler(loaded(backbone), Sampling(size=(100, 64)), subjects)


def words(backbone, out, *more, gamma="0.5"):
    return [
        *("--pretrained_model_name_or_path", str(backbone.base)),
        *("--instance_data_dir", str(EXAMPLE), "--output_dir", str(out)),
        *("--width", "96", "--height", "64", "--steps", "2", "--gamma", gamma),
        *("--num_images", "3", "--batch_size", "2", *more),
    ]


def run(backbone, out, *more, prompt=PROMPT, **options):
    reset_accelerate()
    argv = [*words(backbone, out, *more, **options), "--prompt", prompt]
    inference.main(inference.parse_args(argv))
    return pictures(out)


def pictures(out):
    return {path.name: Image.open(path) for path in sorted(out.glob("0*.png"))}


@pytest.fixture(scope="module")
def made(backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("inference")
    run(backbone, out)
    return out


def test_the_command_writes_pictures_that_say_how_they_were_made(made, backbone, subjects):
    lines = [json.loads(line) for line in (made / "pictures.jsonl").read_text().splitlines()]
    assert all(line.pop(CHECKSUM) for line in lines)
    assert [line["image"] for line in lines] == ["000_000.png", "000_001.png", "000_002.png"]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    image = Image.open(made / "000_002.png")
    assert image.size == (96, 64) and json.loads(image.text["mudi"]) == lines[2]
    sampler = Sampler(loaded(backbone), SMALL, subjects)
    [alone] = sampler.draw([Shot(PROMPT, seed=2, gamma=0.5)])
    assert largest_difference([image], [alone.image]) <= 1
    assert lines[2]["start_photos"] == [photo.image.name for photo in alone.start.photos]
    assert Image.open(made / "sheet.png").width == 3 * 320


def test_a_finished_picture_is_not_made_again(made, backbone, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in made.glob("0*.png")}
    run(backbone, made)
    assert {path: path.stat().st_mtime_ns for path in made.glob("0*.png")} == before
    with pytest.raises(SystemExit, match=r"was made otherwise \(gamma was 0.5 and is 0.6\): use"):
        run(backbone, made, gamma="0.6")
    data = tmp_path / "data"
    shutil.copytree(EXAMPLE, data)
    shutil.copyfile(data / "a01.jpg", data / "a00.jpg")
    shutil.copyfile(data / "mask_a01.png", data / "mask_a00.png")
    with pytest.raises(SystemExit, match=r"was made otherwise \(data was "):
        run(backbone, made, "--instance_data_dir", str(data))
    run(backbone, tmp_path, "--num_images", "4", gamma="0.6")
    run(backbone, tmp_path, "--overwrite")
    assert len((tmp_path / "pictures.jsonl").read_text().splitlines()) == 3
    (tmp_path / "000_003.png").unlink()
    (tmp_path / "000_001.png").unlink()
    run(backbone, tmp_path)
    assert largest_difference(pictures(tmp_path).values(), pictures(made).values()) <= 1


@pytest.mark.parametrize("backbone", ["flux"], indirect=True)  # the sharing is shared
def test_two_processes_make_the_same_pictures(made, backbone, tmp_path):
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command = [*launch, str(ROOT / "inference.py"), *words(backbone, tmp_path), "--prompt", PROMPT]
    environment = offline()
    told = subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE).stderr
    assert b"| 2/2" in told and b"| 3/3" not in told  # the first one's share of three
    assert largest_difference(pictures(tmp_path).values(), pictures(made).values()) <= 1
    assert (tmp_path / "pictures.jsonl").read_text() == (made / "pictures.jsonl").read_text()


@pytest.mark.parametrize("kind", ["noise", "another model", "another shape", "strange names"])
def test_a_lora_that_cannot_be_loaded_is_one_line(backbone, run_once, tmp_path, kind):
    """Readers raise RuntimeError, AssertionError and others of their own."""
    file = tmp_path / "lora.safetensors"
    state = load_file(run_once / "pytorch_lora_weights.safetensors")
    if kind == "another model":
        state = {re.sub("attn|attention", "nowhere", name): v for name, v in state.items()}
    if kind == "another shape":
        state = {name: torch.cat([value, value], 1) for name, value in state.items()}
    if kind == "strange names":
        state = {f"lora_unet_{i}.lora_down.weight": v for i, v in enumerate(state.values())}
    save_file(state, file)
    if kind == "noise":
        file.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(SystemExit) as stopped:
        run(backbone, tmp_path / "out", "--lora", str(file))
    *heading, line = str(stopped.value).splitlines()
    assert str(file) in line and heading in ([], ["1 problem; nothing was loaded:"])


@pytest.mark.parametrize("seed", [2**63 - 3, 2**63, 2**70, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_told(sdxl_backbone, tmp_path, seed):
    told = rf"--seed {seed}: picture k has seed \+ k, which must fit into 64 bits"
    with pytest.raises(SystemExit, match=told):
        run(sdxl_backbone, tmp_path, f"--seed={seed}")


def test_half_an_emoji_in_a_prompt_is_told(sdxl_backbone, tmp_path):
    with pytest.raises(SystemExit, match=r"--prompt a \\ud83d dog: not Unicode text"):
        run(sdxl_backbone, tmp_path, prompt="a \ud83d dog")


def test_the_largest_seed_makes_pictures(sdxl_backbone, tmp_path):
    run(sdxl_backbone, tmp_path, f"--seed={2**63 - 2}", "--num_images=1")
    line = json.loads((tmp_path / "pictures.jsonl").read_text())
    assert line["seed"] == 2**63 - 2


def test_loras_work_together_and_scale_0_is_the_base(backbone, run_once, tmp_path):
    def picture(scales):
        pipeline = loaded(backbone)
        load_loras(pipeline, [str(run_once)] * len(scales), scales)
        return array(next(Sampler(pipeline, SMALL).draw([Shot("a olis robot", seed=0)])).image)

    plain = picture([])
    assert np.array_equal(picture([0.0, 0.0]), plain)
    assert not np.array_equal(picture([40.0]), plain)
    assert abs(picture([20.0, 20.0]) - picture([40.0])).max() <= 1
    more = ["--lora", str(run_once), "--lora_scale", "40"]
    run(backbone, tmp_path, *more, prompt="a olis robot", gamma="0")
    assert abs(array(pictures(tmp_path)["000_000.png"]) - picture([40.0])).max() <= 1


def test_a_layout_names_a_photo_by_its_path_or_by_a_last_part_that_is_its_own(tmp_path):
    """Of day1/01.jpg and day2/01.jpg the second is the second; 01.jpg alone could be either."""
    paths = ["day1/01.jpg", "day2/01.jpg", "day2/02.jpg", "x/day2/02.jpg", "03.jpg", "day1/03.jpg"]
    paths += ["day1/sub/../caf\u00e9.jpg"]
    photos = [Photo(tmp_path / path, tmp_path / "mask", "a dog", "a") for path in paths]

    def named(name: str) -> str:
        return photo_named(name, photos, tmp_path).image.relative_to(tmp_path).as_posix()

    assert named("day2/01.jpg") == named("./day1/../day2/01.jpg") == "day2/01.jpg"
    assert named("day2/02.jpg") == "day2/02.jpg" and named("x/day2/02.jpg") == "x/day2/02.jpg"
    assert named("03.jpg") == "03.jpg"
    assert named("cafe\u0301.jpg") == named("day1/caf\u00e9.jpg") == paths[-1]
    with pytest.raises(SamplingError, match=r'"01.jpg", which could be day1/01.jpg, day2/01.jpg;'):
        named("01.jpg")
    with pytest.raises(
        SamplingError, match=r'"day3/01.jpg", which is none of the subject\'s: day1'
    ):
        named("day3/01.jpg")


def test_a_layout_file_places_the_subjects(backbone, tmp_path, subjects):
    path = tmp_path / "layout.json"
    text = {"boxes": BOXES, "front_to_back": list(BOXES), "photos": {"olis robot": "a03.jpg"}}
    path.write_text(json.dumps(text))
    out = tmp_path / "out"
    run(backbone, out, "--layout", str(path))
    line = json.loads((out / "pictures.jsonl").read_text().splitlines()[0])
    assert line["start"]["boxes"] == list(BOXES.values())
    assert line["start_photos"][0] == "a03.jpg"
    shot = Shot(PROMPT, 0, layout=load_layout(path, list(BOXES)))
    scene = Stage(subjects, (96, 64)).start(shot).scene
    assert scene.boxes[0].bottom == 64 and scene.boxes[0].right <= 48
    path.write_text(json.dumps({**text, "photos": {"olis robot": "b03.jpg"}}))
    with pytest.raises(SystemExit, match=r'the layout wants the photo "b03.jpg", which .* a00.jpg'):
        run(backbone, tmp_path / "other", "--layout", str(path))
    path.write_text(json.dumps({"boxes": {"olis robot": [0, 0, 1, 1]}}))
    with pytest.raises(SystemExit, match=r"layout.json: .*hta teddy bear"):
        run(backbone, tmp_path / "other", "--layout", str(path))


def test_a_chat_models_layout_is_asked_for_once(sdxl_backbone, tmp_path, endpoint, monkeypatch):
    """And the key that the endpoint takes stands in nothing that is written."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-mine")
    answer = "Sure! " + json.dumps({"boxes": BOXES, "front_to_back": list(BOXES)})
    endpoint.replies = [(200, completion("no idea")), (200, completion(answer))]
    more = ["--layout", "llm", "--llm_url", endpoint.url, "--llm_model", "any"]
    run(sdxl_backbone, tmp_path, *more)
    assert len(endpoint.questions) == 2 and PROMPT in endpoint.questions[0]
    assert endpoint.requests[0]["key"] == "Bearer secret-of-mine"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [path for path in written if b"secret-of-mine" in path.read_bytes()]
    line = json.loads((tmp_path / "pictures.jsonl").read_text().splitlines()[2])
    assert line["start"]["boxes"] == list(BOXES.values())
    run(sdxl_backbone, tmp_path, *more)  # and kept: the endpoint has no third reply
    with pytest.raises(SystemExit, match=r"--layout llm: .*no connection"):
        more[3] = "http://127.0.0.1:9/v1"
        run(sdxl_backbone, tmp_path / "other", *more)


def test_what_is_wrong_is_told_before_anything_is_loaded(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", lambda *_: pytest.fail("was loaded"))
    for more, told in [
        (["--lora_scale", "1"], "--lora_scale: 1 numbers for 0 LoRAs"),
        (["--layout", "llm"], "--layout llm, --llm_url and --llm_model go together"),
        (["--scales", "a=1"], "--scales: give one number for each of a, b"),
        (["--scales", "a=1", "b=2"], "--scales b=2.0: must be above 0, at most 1"),
        (["--gamma", "much"], "--gamma all=much: not a number"),
        (["--gamma", "ax"], "--gamma all=ax: not a number"),
        (["--gamma", "a=nan", "b=1"], "--gamma a=nan: not a number"),
        (["--gamma", "0", "--layout", "x.json"], "--layout does nothing with gamma 0"),
        (["--gamma", "0", "--scales", "a=1", "b=1"], "--scales does nothing with gamma 0"),
        (["--layout", "x.json", "--scales", "a=1", "b=1"], "--scales are of a random layout"),
        (["--width", "100"], "--width 100: must be a multiple of 8"),
        (["--lora", "./nowhere"], "--lora ./nowhere: no such file or folder"),
        (["--output_dir", "/dev/null/x"], "--output_dir /dev/null/x: /dev/null is a file"),
        (["--export_noise", "x.png"], "--export_noise x.png: ComfyUI lists files in .latent only"),
        (["--export_noise", "/dev/null/x.latent"], "x.latent: /dev/null is a file"),
        (["--num_images", "0"], "--num_images 0: must be 1 or more"),
        (["--resolution", "64"], "--resolution is height and width in one"),
        (["--prompt", "a robot"], 'the prompt "a robot" names no subject'),
        (["--prompt_file", "/nowhere"], "give --prompt or --prompt_file"),
        (["--instance_data_dir", "/nowhere"], "/nowhere: no such folder"),
        (["--pretrained_model_name_or_path", "/nowhere"], "/nowhere: no such folder"),
    ]:
        reset_accelerate()
        argv = [*words(backbone, tmp_path), "--prompt", PROMPT, *more]
        with pytest.raises(SystemExit) as stopped:
            inference.main(inference.parse_args(argv))
        assert told in str(stopped.value)
    assert not list(tmp_path.iterdir())


def test_the_start_is_exported_as_comfyui_loads_it(sdxl_backbone, subjects, tmp_path):
    """ComfyUI makes 0.13025 * latent_tensor of it, and is to get sqrt(1 + 14.6146^2) * noise."""
    file = tmp_path / "start.latent"
    run(sdxl_backbone, tmp_path, "--num_images", "1", "--seed", "4")
    run(sdxl_backbone, tmp_path, "--num_images", "1", "--seed", "4", "--export_noise", str(file))
    held = load_file(file)
    assert held.keys() == {"latent_tensor", "latent_format_version_0"}
    assert held["latent_tensor"].dtype == torch.float32
    noise = Sampler(loaded(sdxl_backbone), SMALL, subjects).noise(Shot(PROMPT, 4, gamma=0.5))
    start = math.sqrt(1 + 14.6146**2) * noise
    assert abs(0.13025 * held["latent_tensor"] - start).max() < 1e-5 * abs(start).max()
    with safe_open(file, "pt") as opened:
        made = json.loads(opened.metadata()["mudi"])
    assert (made["prompt"], made["seed"], made["gamma"]) == (PROMPT, 4, 0.5)


def test_what_flux_has_no_use_for_is_told_too(flux_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_pipeline", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(SystemExit) as stopped:
        run(flux_backbone, tmp_path, "--negative_prompt=x", "--scheduler=ddim", "--width=72")
    for told in ("--negative_prompt: FLUX", "--scheduler: FLUX", "--width 72: must be a multiple"):
        assert told in str(stopped.value)
    with pytest.raises(SystemExit, match="--gamma a=3x b=1: sampling starts from noise alone here"):
        run(flux_backbone, tmp_path, "--gamma", "a=3x", "b=1")
    with pytest.raises(SystemExit, match="--export_noise: ComfyUI starts FLUX from noise alone"):
        run(flux_backbone, tmp_path, "--export_noise", "x.latent")
    with pytest.raises(SystemExit, match="--no_collage_look: FLUX takes none"):
        run(flux_backbone, tmp_path, "--no_collage_look")


def test_gamma_is_told_in_units_of_the_first_steps_signal(sdxl_backbone, flux_backbone):
    """SDXL's own schedule: sigma 11.7, 11.5 and 13.1 at 25, 30 and 50 steps (method, section 6)."""
    pipeline = loaded(sdxl_backbone)
    for steps, sigma in ((25, 11.7), (30, 11.5), (50, 13.1)):
        expected = (sigma**2 + 1) ** -0.5
        assert signal_unit(pipeline.scheduler, steps) == pytest.approx(expected, rel=0.01)
    assert signal_unit(loaded(flux_backbone).scheduler, 30) is None


def test_gamma_in_units_of_the_signal(sdxl_backbone, tmp_path, caplog):
    """3x at 50 steps is 3 / sqrt(13.1^2 + 1), on DDIM 3 sqrt(alpha_bar) at its own first step."""
    caplog.set_level(logging.INFO, "mudi")
    argv = [*words(sdxl_backbone, tmp_path, gamma="3x"), "--prompt", PROMPT, "--steps", "50"]
    args = inference.parse_args(argv)
    assert inference.plain_gamma(args, "ab") == pytest.approx(0.228, abs=0.001)
    args.gamma, args.scheduler = ["a=3x", "b=0.5"], "ddim"
    scheduler = SCHEDULERS["ddim"].from_config(loaded(sdxl_backbone).scheduler.config)
    scheduler.set_timesteps(50)
    signal = float(scheduler.alphas_cumprod[scheduler.timesteps[0]]) ** 0.5
    assert inference.plain_gamma(args, "ab") == {"a": pytest.approx(3 * signal), "b": 0.5}

    run(sdxl_backbone, tmp_path, "--num_images", "1", "--no_collage_look", gamma="3x")
    line = json.loads((tmp_path / "pictures.jsonl").read_text())
    unit = signal_unit(loaded(sdxl_backbone).scheduler, 2) or 0.0
    assert line["gamma"] == 3 * unit
    assert line["negative_prompt"] == COLLAGE_NEGATIVE_PROMPT
    assert f"({unit:.3f}): all: {3 * unit:g} = 3.00x" in caplog.text


def test_what_is_to_be_avoided_is_one_text():
    def told(*words):
        needed = ["--pretrained_model_name_or_path", "x", "--output_dir", "x"]
        return negative_prompt(inference.parse_args([*needed, *words]))

    assert [told(), told("--negative_prompt", "rain")] == [None, "rain"]
    assert told("--no_collage_look") == COLLAGE_NEGATIVE_PROMPT
    both = told("--negative_prompt", "rain", "--no_collage_look")
    assert both == f"rain, {COLLAGE_NEGATIVE_PROMPT}"


@pytest.mark.parametrize(  # each as inference.py, which knows all backbones alike
    ("backbone", "name", "num_sheets"),
    [("flux", "inference_demo", 4), ("sdxl", "inference_demo_more_than_two", 3)],
    indirect=["backbone"],
)
def test_the_notebooks_run(backbone, run_once, monkeypatch, name, num_sheets):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    more = {"ANSWER": repr(json.dumps({"boxes": BOXES}))} if "more" in name else {}
    notebook = execute(
        ROOT / f"{name}.ipynb",
        BASE=repr(str(backbone.base)),
        VAE="None",
        **more,
        LORAS=repr([str(run_once)]),
        DATA=repr(str(EXAMPLE)),
        PROMPT=repr(PROMPT),
        SEEDS="[0, 1]",
        STEPS="1",
        SIZE="(64, 64)",
        DEVICE='"cpu"',
    )
    assert count_pictures(notebook) == num_sheets


def test_detect_and_compare_scores_the_list_of_pictures(made, tmp_path):
    words = ["--images", made / "pictures.jsonl", "--references", EXAMPLE, "--output", tmp_path]
    words += ["--detector", "foreground", "--embedder", "colours", "--group_by", "gamma"]
    reset_accelerate()
    metric.main(metric.parse_args([str(word) for word in words]))
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    assert (tmp_path / "report.html").is_file()
