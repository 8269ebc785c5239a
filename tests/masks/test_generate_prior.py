"""generate_prior.py from the published command to a folder that training accepts."""

import json
import shutil
import subprocess
from unicodedata import normalize

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from helpers import ROOT
from PIL import Image
from test_launch import LAUNCH, offline
from training import lora_of, reset_accelerate, sdxl_on

import generate_prior
from generate_prior import LOG
from mini.tiny import save_tiny_owlv2, save_tiny_sam, tiny_sdxl
from mudi.ground.files import write_records
from mudi.masks import prior, segment
from mudi.metadata import PRIOR_FILENAME, load_subjects

torch.set_num_threads(1)
PAIR = ["--gen_class", "a=robot", "b=teddy bear", "--gen_mask"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random SDXL, an OWLv2 that always finds one box and one that finds several, a SAM."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl().save_pretrained(folder / "sdxl")
    save_tiny_owlv2(folder / "one", grid=1)
    save_tiny_owlv2(folder / "many", grid=2)
    save_tiny_sam(folder / "sam.pth")
    return folder


def words(models, out, *more, detector="one", threshold=0.0):
    return [
        *("--out_dir", str(out), "--pretrained_model_name_or_path", str(models / "sdxl")),
        *("--detector", str(models / detector), "--threshold", str(threshold)),
        *("--segmenter", "foreground", "--resolution", "64", "--num_inference_steps", "1"),
        *("--num_images", "3", "--batch_size", "2", *more),
    ]


def run(models, out, *more, **options):
    reset_accelerate()
    generate_prior.main(generate_prior.parse_args(words(models, out, *more, **options)))


def pixels(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))}


def same(one, other):
    """Equal up to the rounding of a different batch."""
    return one.keys() == other.keys() and all(abs(one[k] - other[k]).max() <= 1 for k in one)


@pytest.fixture(scope="module")
def pair(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("prior") / "pair"
    run(models, out, *PAIR)
    return out


@pytest.mark.parametrize(("noted", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_picture_is_there_in_whichever_letters_its_name_is_written(tmp_path, noted, on_disk):
    names = {"file_name": "bär_img_0.png", "mask_path": "bär_mask_0.png"}
    record = {key: normalize(noted, name) for key, name in names.items()}
    (tmp_path / normalize(on_disk, names["file_name"])).touch()
    assert prior.is_done(record, tmp_path, with_mask=False)
    assert not prior.is_done(record, tmp_path, with_mask=True)
    (tmp_path / normalize(on_disk, names["mask_path"])).touch()
    assert prior.is_done(record, tmp_path, with_mask=True)


def test_the_published_command_makes_a_complete_folder(models, tmp_path, monkeypatch):
    """`--gen_class "corgi" --gen_mask`: names of files and folder as in the original."""
    monkeypatch.chdir(tmp_path)
    given = words(models, "x", "--gen_class", "action figure", "--gen_mask")[2:]
    sam = ["--segmenter", "sam", "--sam_checkpoint", str(models / "sam.pth"), "--sam_type", "tiny"]
    reset_accelerate()
    generate_prior.main(generate_prior.parse_args([*given, *sam]))
    made = load_subjects("dataset/prior/action_figure", PRIOR_FILENAME)
    assert made.names == {"a": "action figure"}
    assert [p.image.name for p in made.photos] == [f"img_{i}.png" for i in range(3)]
    assert [p.mask.name for p in made.photos] == [f"mask_{i}.png" for i in range(3)]
    assert made.photos[0].caption == "A photo of a action figure."


def test_steps_and_guidance_are_the_pipelines_own_unless_given(models):
    """50 steps and 5.0; pixel for pixel what diffusers draws from the same noise without them."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(models / "sdxl")
    steps = []
    pipeline.unet.register_forward_hook(lambda *_: steps.append(1))
    job = prior.Job("a", "robot", "robot", 0)
    given = ["--gen_class", "robot", "--resolution", "64"]
    args = generate_prior.parse_args(given)
    [image] = generate_prior.draw(pipeline, [job], args)
    assert len(steps) == 50
    [plain] = pipeline(
        args.prompt.replace("{}", "robot"),
        negative_prompt=args.negative_prompt,
        height=64,
        width=64,
        generator=job.generator(args.seed),
    ).images
    assert np.array_equal(np.asarray(image), np.asarray(plain))
    args = generate_prior.parse_args([*given, "--num_inference_steps", "3"])
    generate_prior.draw(pipeline, [job], args)
    assert len(steps) == 103


def test_the_folder_trains_with_prior_preservation(models, pair, tmp_path):
    """Every draw is a collage, the prior's half too; its sheet shows two of each."""
    more = f"--with_prior_preservation --class_data_dir {pair} --segmix_prob 1 --max_train_steps 2"
    limit = "--num_class_images 6 --train_batch_size 2 --save_steps 1"
    out = sdxl_on(models / "sdxl").train(tmp_path / "out", more, limit)
    assert all(weight.isfinite().all() for weight in lora_of(out).values())
    arguments = json.loads((out / "run_arguments.json").read_text())
    assert arguments["dco_beta"] == 0
    assert (out / "collages-000000-0.png").is_file()


def test_a_second_run_with_another_id_adds_its_class(models, pair, tmp_path):
    run(models, tmp_path, "--gen_class", "robot", "--gen_mask")
    run(models, tmp_path, "--gen_class", "teddy bear", "--gen_mask", "--id", "b")
    assert same(pixels(tmp_path), pixels(pair))
    both = load_subjects(tmp_path, PRIOR_FILENAME)
    assert both.names == {"a": "robot", "b": "teddy bear"}
    assert [photo.subject for photo in both.photos] == list("aaabbb")
    with pytest.raises(SystemExit, match=r'"b" is a teddy bear, not a cat; take another'):
        run(models, tmp_path, "--gen_class", "cat", "--gen_mask", "--id", "b")


def test_a_stopped_run_goes_on_and_gives_the_same_pictures(models, pair, tmp_path, monkeypatch):
    plain = generate_prior.write_picture
    budget = iter(range(4))

    def stop_after_four(*args):
        if next(budget, None) is None:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(generate_prior, "write_picture", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path, *PAIR)
    monkeypatch.undo()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("img_*.png")}
    assert len(kept) == 3 and not (tmp_path / PRIOR_FILENAME).exists()
    run(models, tmp_path, *PAIR)
    assert same(pixels(tmp_path), pixels(pair))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("img_*.png")} == kept
    assert (tmp_path / PRIOR_FILENAME).read_text() == (pair / PRIOR_FILENAME).read_text()


def test_two_processes_share_the_work(models, pair, tmp_path):
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    command = [*launch, str(ROOT / "generate_prior.py"), *words(models, tmp_path, *PAIR)]
    environment = offline()
    told = subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE).stderr
    assert b"| 3/3" in told and b"| 6/6" not in told  # the first one's share of six
    assert same(pixels(tmp_path), pixels(pair))
    assert (tmp_path / PRIOR_FILENAME).read_text() == (pair / PRIOR_FILENAME).read_text()


def test_a_picture_is_drawn_anew_until_one_object_is_found(models, pair, tmp_path):
    """The threshold is put between the scores of first tries, so that some must be repeated."""
    detect = segment.Detector(str(models / "one"))
    firsts = [Image.open(pair / f"img_{i}.png") for i in range(3)]
    scores = [found[0].score for found in detect(firsts, [["robot"]] * 3, 0.0)]
    threshold = (sorted(scores)[0] + sorted(scores)[1]) / 2
    more = ("--gen_class", "robot", "--gen_mask", "--tries", "200")
    run(models, tmp_path, *more, threshold=threshold)
    log = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    tries = [len(record["objects"]) for record in log]
    assert [n == 1 for n in tries] == [score > threshold for score in scores]
    assert all(
        record["objects"] == [0] * (n - 1) + [1] for record, n in zip(log, tries, strict=True)
    )
    assert len(load_subjects(tmp_path, PRIOR_FILENAME).photos) == 3


def test_edited_captions_stay_and_a_deleted_picture_is_replaced(models, pair, tmp_path):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    path = tmp_path / PRIOR_FILENAME
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["text"] = "A photo of a robot, my words."
    write_records(path, lines)
    (tmp_path / "img_1.png").unlink()
    run(models, tmp_path, *PAIR)
    assert load_subjects(tmp_path, PRIOR_FILENAME).photos[0].caption == lines[1]["text"]
    before, now = pixels(pair), pixels(tmp_path)
    changed = [name for name in now if abs(now[name] - before[name]).max() > 1]
    assert "img_1.png" in changed and not set(changed) - {"img_1.png", "mask_1.png"}


def test_two_classes_of_one_noun_get_pictures_of_their_own(models, tmp_path):
    """And fewer pictures than an earlier run made are no failures."""
    both = ["--gen_class", "a=teddy bear", "b=teddy bear"]
    run(models, tmp_path, *both)
    run(models, tmp_path, *both, "--gen_mask", "--num_images", "1", "--prompt", "{} {x} {}")
    one, other = (pixels(tmp_path)[name] for name in ("img_0.png", "b_img_0.png"))
    assert abs(one - other).max() > 1
    assert len(load_subjects(tmp_path, PRIOR_FILENAME).photos) == 2


def test_a_class_without_success_is_told_after_the_others_are_finished(models, tmp_path, capsys):
    """Nothing scores 1 or more, and a second detector sees two objects in every picture."""
    run(models, tmp_path, "--gen_class", "robot", "--gen_mask")
    failing = ("--gen_class", "bear", "--id", "b", "--gen_mask", "--tries", "2")
    with pytest.raises(SystemExit, match="no picture of bear succeeded"):
        run(models, tmp_path, *failing, detector="many")
    assert (
        "3 pictures were given up after 2 tries each (no object was found 0 times, several 6"
        in (capsys.readouterr().out)
    )
    assert load_subjects(tmp_path, PRIOR_FILENAME).names == {"a": "robot"}
    run(models, tmp_path, *failing)  # and can be tried again
    assert load_subjects(tmp_path, PRIOR_FILENAME).names == {"a": "robot", "b": "bear"}


def test_masks_can_come_later(models, pair, tmp_path, capsys):
    run(models, tmp_path, "--gen_class", "robot")
    assert "--gen_mask adds them" in capsys.readouterr().out
    assert not (tmp_path / PRIOR_FILENAME).exists()
    run(models, tmp_path, "--gen_class", "robot", "--gen_mask", "--mask_dir", f"{tmp_path}/masks")
    assert load_subjects(tmp_path, PRIOR_FILENAME).photos[2].mask == tmp_path / "masks/mask_2.png"
    assert same(pixels(tmp_path), {k: v for k, v in pixels(pair).items() if k.startswith("img")})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--gen_class", "a=", "b=cat"], '--gen_class a=: write it as ID="text"'),
        (["--gen_class", "a=dog", "a=cat"], "--gen_class: a is given twice"),
        (["--gen_class", "a=dog", "--id", "a"], "--id goes with one class"),
        (["--gen_class", "dog", "--mask_dir", "/elsewhere"], "--mask_dir /elsewhere: must lie in"),
        (["--gen_class", "dog", "--owl_query", "b=x"], "--owl_query: no class with id b"),
        (["--gen_class", " "], '--gen_class a= : write it as ID="text"'),
        (["--gen_class", "dog", "--id", "../b"], 'id "../b": up to 99 letters'),
        (["--gen_class", "dog", "--resolution", "100"], "must be a multiple of 8"),
        (["--gen_class", "dog", "--tries", "0"], "--tries 0: must be 1 or more"),
        (["--gen_class", "dog", "--prompt", "a dog"], "write {} where the class goes"),
        (["--gen_class", "dog", "--cpu_offload"], "--cpu_offload needs a CUDA GPU"),
        (
            ["--gen_class", "dog", "--pretrained_model_name_or_path", "/nowhere"],
            "/nowhere: no such folder",
        ),
    ],
)
def test_bad_flags_are_told_before_anything_is_loaded(models, tmp_path, more, told):
    with pytest.raises(SystemExit) as stopped:
        run(models, tmp_path, *more)
    assert told in str(stopped.value)
    assert not list(tmp_path.iterdir())
