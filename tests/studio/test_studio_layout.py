"""What the layout tab draws follows from the files as they are; its command draws the same."""

import shlex
from dataclasses import fields

import numpy as np
import pytest
from helpers import noise, rectangle
from PIL import Image
from training import reset_accelerate

import inference
from mudi.best_of.asked import read_asked
from mudi.images import load_rgb
from mudi.layouts import load_layout
from mudi.pictures.args import SDXL_BASE, PipelineArgs
from mudi.studio import layout as tab
from mudi.studio.__main__ import parse_args
from mudi.studio.args import Drawing
from mudi.studio.drawing import Easel
from mudi.studio.folder import PhotoFolder
from mudi.studio.layout import Stages
from mudi.studio.server import Asked

OTHER = np.zeros((48, 64), bool)  # a mask that is not `rectangle`
OTHER[2:10, 2:60] = True


def wish_of(photo="a0.jpg", **more):
    """What the page sends of a picture of the first subject."""
    boxes = {"olis robot": [0.05, 0.1, 0.85, 0.95]}
    layout = {"boxes": boxes, "front_to_back": list(boxes), "photos": {"olis robot": photo}}
    shot = {"prompt": "a photo of a olis robot", "seed": 3, "gamma": {"a": 1.5}}
    return Asked({**shot, "width": 64, "height": 64, "layout": layout, **more})


def start_of(stages, asked):
    wish = stages.wish(asked)
    return np.asarray(wish.stage.start(wish.shot).scene.image)


def drawn(easel, wish):
    """Draw a wish here and now; return the start that is shown, and the picture."""
    picture = easel.begin(wish)
    with easel._busy:  # held until it is drawn
        assert picture.problem is None
    return np.asarray(picture.start), np.asarray(picture.image)


@pytest.fixture
def args(folder, sdxl_backbone):
    base = str(sdxl_backbone.base)
    return parse_args([str(folder.path), "--pretrained_model_name_or_path", base, "--steps", "2"])


def test_a_mended_mask_is_drawn(folder, args):
    photos = PhotoFolder(folder.path)
    stages, easel = Stages(photos), Easel(args)
    start, picture = drawn(easel, stages.wish(wish_of()))
    assert np.array_equal(drawn(easel, stages.wish(wish_of()))[1], picture)
    photos.save_mask("a0.jpg", OTHER, photos.version("a0.jpg"), {})
    new_start, new_picture = drawn(easel, stages.wish(wish_of()))
    assert not np.array_equal(new_start, start) and not np.array_equal(new_picture, picture)
    fresh = drawn(Easel(args), Stages(photos).wish(wish_of()))
    assert np.array_equal(new_start, fresh[0]) and np.array_equal(new_picture, fresh[1])


def test_a_scenes_mended_mask_is_seen(folder):
    noise(seed=77).save(folder.path / "both.png")
    rectangle().save(folder.path / "cut_a.png")
    cuts = [{"id": "a", "mask_path": "cut_a.png"}]
    folder.lines.append({"file_name": "both.png", "text": "a olis robot", "subjects": cuts})
    folder.save()
    stages, asked = Stages(PhotoFolder(folder.path)), wish_of("both.png")
    before = start_of(stages, asked)
    Image.fromarray(OTHER).save(folder.path / "cut_a.png")
    after = start_of(stages, asked)
    assert not np.array_equal(after, before)
    assert np.array_equal(after, start_of(Stages(PhotoFolder(folder.path)), asked))


def saved(folder, stages, args, **more):
    """Save a layout on the tab; return its command as inference.py reads it."""
    answers = tab.answers(PhotoFolder(folder.path), stages, args)
    told = answers["POST", "layout"](wish_of(name="one", version="", **more))["command"]
    python, script, *words = shlex.split(told.replace("\\\n", " "))
    assert (python, script) == ("python", "inference.py")
    return inference.parse_args(words)


def test_the_command_draws_the_very_picture(folder, sdxl_backbone, tmp_path, monkeypatch):
    """Of one subject of two, with all that the page was started with and decimals of any length."""
    once = ["--max_train_steps 1 --learning_rate 0.1"]
    lora = str(sdxl_backbone.train(tmp_path / "a lora", *once, data=folder.path))
    how = ["--lora", lora, lora, "--lora_scale", "3", "0.5", "--guidance_scale", "2.5"]
    base = ["--pretrained_model_name_or_path", str(sdxl_backbone.base), "--steps", "3"]
    args, stages = parse_args([str(folder.path), *base, *how]), Stages(PhotoFolder(folder.path))
    boxes = {"olis robot": [1 / 30, 1 / 7, 0.812345678, 0.95]}
    wanted = {
        "layout": {"boxes": boxes},
        "gamma": {"a": 1.23456789},
        "prompt": " an olis robot's box ",
    }
    asked = saved(folder, stages, args, **wanted)
    _, picture = drawn(Easel(args), stages.wish(wish_of(**wanted)))
    plain = parse_args([str(folder.path), *base])
    assert not np.array_equal(drawn(Easel(plain), stages.wish(wish_of(**wanted)))[1], picture)
    layout = load_layout(folder.path / "layouts" / "one.json")
    assert [list(box) for box in layout.boxes] == list(boxes.values())

    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    inference.main(asked)
    made = load_rgb(tmp_path / "output" / "one" / "000_000.png")
    assert np.array_equal(np.asarray(made), picture)


def test_every_flag_that_draws_is_in_the_command(folder, sdxl_backbone):
    words = ["--pretrained_model_name_or_path", str(sdxl_backbone.base), "--lora", "a/b", "c d/e"]
    words += ["--pretrained_vae_model_name_or_path", "some/vae", "--revision", "main"]
    words += ["--variant", "fp16", "--cache_dir", "kept here", "--dtype", "bf16", "--cpu_offload"]
    words += ["--lora_scale", "1", "-0.5", "--steps", "20", "--guidance_scale", "0"]
    args = parse_args([str(folder.path), *words])
    asked = saved(folder, Stages(PhotoFolder(folder.path)), args)
    for flag in (*fields(PipelineArgs), *fields(Drawing)):
        given = getattr(args, flag.name)
        assert getattr(asked, flag.name) == given != getattr(tab.DEFAULTS, flag.name), flag.name


def test_a_command_of_no_model_is_an_example_and_accepted(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "LORA").mkdir(parents=True)
    asked = saved(folder, Stages(PhotoFolder(folder.path)), parse_args([str(folder.path)]))
    assert (asked.pretrained_model_name_or_path, asked.lora) == (SDXL_BASE, ["output/LORA"])
    problems = []
    assert read_asked(asked, problems).gamma == {"a": 1.5, "b": 0.0} and not problems
