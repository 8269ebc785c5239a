"""`python -m detect_and_compare.checkpoints`: which save to take, where that is known."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training import EXAMPLE, reset_accelerate

from detect_and_compare import checkpoints
from detect_and_compare.curve import Point, choose, reasons
from mudi.ground.work import CHECKSUM
from mudi.lora import WEIGHTS_NAME
from mudi.metadata import load_subjects
from mudi.pictures import jobs
from mudi.pictures.sampling import Picture, Sampler, Shot, Start, _cutout
from mudi.segmix import Cutout
from mudi.training.checkpoints import saves

torch.set_num_threads(1)
PLAIN = ["--detector", "foreground", "--embedder", "colours", "--crop_references"]
SMALL = ["--steps", "2", "--num_images", "2", *PLAIN]
SUBJECTS = load_subjects(EXAMPLE)
SIDE = 96  # px, of the constructed pictures


def run(folder, *words):
    reset_accelerate()
    checkpoints.main(checkpoints.parse_args([str(folder), *SMALL, *map(str, words)]))
    return folder / "checkpoints"


def lines(output):
    records = [json.loads(line) for line in (output / "pictures.jsonl").read_text().splitlines()]
    assert all(record.pop(CHECKSUM) for record in records)
    return {record["image"]: record for record in records}


def table(output):
    with (output / "checkpoints.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def test_the_pictures_of_every_save_are_drawn_by_its_lora(backbone, run_once, tmp_path):
    """Two saves of a real run; its last step is the second's. Killed after 5 of 12 pictures."""
    folder = shutil.copytree(run_once, tmp_path / "run")
    assert list(saves(folder)) == [2, 4]
    gamma = ("--gamma", "0.5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_picture", interrupted(5))
        with pytest.raises(KeyboardInterrupt):
            run(folder, *gamma)
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr(checkpoints, "write_picture", noting(written))
        output = run(folder, *gamma)
    assert len(written) == 12 - 5
    found = lines(output)
    assert list(found) == [
        f"save-{step:06}/{who}_00_00{k}.png"
        for step in (2, 4)
        for who in ("together", "alone_0", "alone_1")
        for k in range(2)
    ]
    first, second = (found[f"save-00000{step}/together_00_001.png"] for step in (2, 4))
    assert first["start"] == second["start"] and first["seed"] == second["seed"] == 1
    assert first["prompt"] == "a photo of a olis robot and a hta teddy bear"
    assert found["save-000002/alone_1_00_000.png"]["prompt"] == "a photo of a hta teddy bear"
    assert first["lora_files"] != second["lora_files"]

    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(folder / "save-4", weight_name=WEIGHTS_NAME)
    sampling = checkpoints.Sampling((64, 64), 2)
    shot = Shot(second["prompt"], seed=1, gamma=0.5)
    [alone] = Sampler(pipeline, sampling, SUBJECTS).draw([shot])
    drawn = np.asarray(Image.open(output / second["image"])).astype(int)
    assert abs(drawn - np.asarray(alone.image)).max() <= 1

    assert set(table(output)) == {2, 4}
    assert (output / "choice.txt").read_text().count("step") >= 1
    assert Image.open(output / "sheet.png").width == 4 * checkpoints.SHEET_TILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "load_pipeline", lambda *_: pytest.fail("was loaded"))
        run(folder, *gamma)
        with pytest.raises(SystemExit, match=r"made otherwise \(gamma was 0.5 and is 0.6\): use"):
            run(folder, "--gamma", "0.6")


def interrupted(after: int):
    """Return a write_picture that is interrupted when it is called once more than that."""
    count = 0

    def write(*args):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return jobs.write_picture(*args)

    return write


def noting(names: list[str]):
    def write(job, *args):
        names.append(job.name)
        return jobs.write_picture(job, *args)

    return write


@pytest.fixture(scope="module")
def constructed(sdxl_backbone, tmp_path_factory) -> Path:
    """A run with saves at 100, 200 and 300, whose LoRAs have nothing but their step in them."""
    out = tmp_path_factory.mktemp("constructed") / "run"
    sdxl_backbone.train(out, "--max_train_steps 1 --save_steps 1")
    for step in (100, 200, 300):
        save = shutil.copytree(out / "save-1", out / f"save-{step}")
        file = save / WEIGHTS_NAME
        state = load_file(file)
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
        filled = {k: torch.full_like(v, step) if ".up." in k else v for k, v in state.items()}
        save_file(filled, file, told)
    shutil.rmtree(out / "save-1")
    (out / WEIGHTS_NAME).unlink()
    return out


def constructed_draw(self, shots, batch_size=1) -> Iterator[Picture]:
    """Draw what a save of that step is to draw: merged at 100, right at 200, swapped at 300."""
    step = round(
        next(p.mean().item() for n, p in self._denoiser.named_parameters() if "lora_B" in n)
    )
    for shot in shots:
        start = self.stage.start(shot)
        yield Picture(shot, constructed_picture(step, start), start)


def constructed_picture(step: int, start: Start) -> Image.Image:
    """Lay a square for each place of the layout, from left to right."""
    first = {id: _cutout(SUBJECTS.photos_of(id)[0]) for id in SUBJECTS.names}
    ids = [photo.subject for photo in start.photos]
    order = sorted(range(len(ids)), key=lambda i: sum(start.layout.boxes[i][:3:2]))
    image = Image.new("RGB", (2 * SIDE, SIDE), "white")
    for column, i in enumerate(order):
        other = next(id for id in first if id != ids[i])
        shown = first[other if step == 300 else ids[i]]
        tile = fitted(shown)
        if step == 100 and len(ids) > 1:
            half = SIDE // 2
            tile.paste(fitted(first[other]).crop((0, half, SIDE, SIDE)), (0, half))
        image.paste(tile.resize((SIDE - 16, SIDE - 16)), (column * SIDE + 8, 8))
    return image


def fitted(cutout: Cutout) -> Image.Image:
    alone = Image.new("RGB", cutout.image.size, "white")
    alone.paste(cutout.image, mask=Image.fromarray(cutout.mask))
    return alone.resize((SIDE, SIDE))


def test_the_save_to_take_where_it_is_known(constructed, monkeypatch, capsys):
    monkeypatch.setattr(Sampler, "draw", constructed_draw)
    output = run(constructed)
    rows = table(output)
    shares = ("success", "swap", "merge", "drop", "duplicate", "solo_success", "solo_bleed")
    found = {step: [float(row[name]) for name in shares] for step, row in rows.items()}
    assert found == {
        100: [0, 0, 1, 0, 0, 1, 0],
        200: [1, 0, 0, 0, 0, 1, 0],
        300: [1, 1, 0, 0, 0, 0, 1],  # D&C sees no swap: each is there, in the other's place
    }
    told = (output / "choice.txt").read_text().splitlines()
    assert told == capsys.readouterr().out.splitlines()[:-1]
    assert told[0].startswith("take step 200: success 100%, swap 0%, merge 0% of 2 pictures")
    assert told[1:] == [
        "before it, swap 0%, merge 100%, solo bleed 0%: mostly merge, as of training too short",
        "after it, swap 100%, merge 0%, solo bleed 100%: mostly swap, as of training too long",
    ]
    assert Image.open(output / "checkpoints.png").width > 500


def point(step, success, swap=0.0, merge=0.0, solo_bleed=0.0, score=0.5):
    return Point(step, 16, success, score, swap, merge, 0, 0, 8, 1, solo_bleed, 0)


def test_saves_are_ranked_by_success_less_swap_less_solo_bleed():
    early, late = point(1, 0.5), point(2, 0.75, swap=0.25, solo_bleed=0.125)
    assert (early.worth, late.worth) == (0.5, 0.375) and choose([early, late]) is early
    assert choose([point(1, 0.5), point(2, 0.5, score=0.6)]).step == 2
    assert choose([point(1, 0.5), point(2, 0.5)]).step == 1


def test_what_is_told_of_a_choice():
    """The standard error of 0.5 over 16 pictures and two more is 0.5 / sqrt(18) = 0.118."""
    told = reasons([point(1, 0.25, merge=0.5), point(2, 0.4), point(3, 0.5, merge=0.25)])
    assert told[0] == (
        "take step 3: success 50%, swap 0%, merge 25% of 16 pictures together; "
        "solo bleed 0% of 8 alone"
    )
    assert told[1] == (
        "within one standard error of it (12% of 16 pictures): 2; more --num_images would tell"
    )
    assert told[-1] == "it is the last and still merges: train longer"
    none = reasons([point(1, 0, merge=1, score=0.2), point(2, 0, merge=1, score=0.3)])
    assert none[0].startswith("no save succeeds; the least bad is step 2")
    first = reasons([point(1, 0.5), point(2, 0.2, merge=0.2)])
    assert first[1] == (
        "after it, swap 0%, merge 20%, solo bleed 0%: mostly merge, which training too long does "
        "not explain"
    )
    assert first[-1] == "it is the first: a smaller --save_steps may find a better one"


def test_the_final_lora_of_a_training_by_epochs_counts(tmp_path):
    for folder, step in ((tmp_path, 6), (tmp_path / "save-2", 2)):
        folder.mkdir(exist_ok=True)
        (folder / WEIGHTS_NAME).touch()
        told = {"step": step, "max_train_steps": None, "num_train_epochs": 3}
        (folder / "run_arguments.json").write_text(json.dumps(told))
    assert checkpoints.find_loras(tmp_path, []) == {2: tmp_path / "save-2", 6: tmp_path}


def test_what_is_wrong_is_told_before_anything_is_loaded(constructed, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_pipeline", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(SystemExit, match="no save-<step> folder with a LoRA; train with --save_s"):
        run(tmp_path)
    bare = tmp_path / "bare" / "save-3"
    bare.mkdir(parents=True)
    shutil.copyfile(constructed / "save-100" / WEIGHTS_NAME, bare / WEIGHTS_NAME)
    with pytest.raises(
        SystemExit, match=r"--instance_data_dir: give it, .*run_arguments.json does"
    ):
        run(bare.parent)
    for more, told in [
        (["--prompts", "a dog"], '--prompts "a dog": no {subjects}'),
        (["--num_images", "0"], "--num_images 0: must be 1 or more"),
        (["--nms", "0.5"], "--detector foreground looks for no texts: drop --queries and --nms"),
        (["--embedder", "./no"], "--embedder ./no: no such folder"),
        (["--output_dir", "/dev/null/x"], "--output_dir /dev/null/x: /dev/null is a file"),
        (["--instance_data_dir", "/nowhere"], "/nowhere: no such folder"),
        (["--pretrained_model_name_or_path", "/nowhere"], "/nowhere: no such folder"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run(constructed, *more)
        assert told in str(stopped.value)
