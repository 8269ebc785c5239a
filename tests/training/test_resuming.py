"""Checkpoints of both training scripts: continued, refused, told apart; in this process."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from training import lora_of, reset_accelerate

from mudi import denoising, lora
from mudi.ground.errors import SetupError
from mudi.training import saving, stats
from mudi.training.checkpoints import (
    DIGESTS_NAME,
    STATE_NAME,
    beyond_limit,
    read_state,
    resolve_resume,
    write_digests,
)
from mudi.training.optimizers import make_lr_scheduler, make_optimizer, trainable

BITWISE = {"rtol": 0, "atol": 0}


def optimizer_of(checkpoint: Path) -> dict:
    return torch.load(checkpoint / saving.OPTIMIZER_NAME, weights_only=True)


RESUMABLE = [
    "--dataloader_num_workers 2 --segmix_start_step 2 --gradient_accumulation_steps 2",
    "--with_prior_preservation --class_data_dir {prior} --dco_beta 10 --train_text_encoder",
    "--use_dora --lr_scheduler cosine --random_flip --cache_latents --dco_beta 1000",
    "--optimizer prodigy --learning_rate 1 --mixed_precision bf16 --gradient_checkpointing",
    "--segmix_pool 3 --segmix_pool_refresh 1 --cache_latents --train_batch_size 3 --random_flip",
]


@pytest.mark.parametrize("more", RESUMABLE)
def test_two_and_two_resumed_steps_equal_four_straight_ones(
    backbone, tmp_path, prior_folder, monkeypatch, more
):
    """Weights, optimizer, draws and prompts, bit for bit."""
    more = more.format(prior=prior_folder)
    told: list = []
    errors = denoising.denoising_errors

    def note(denoiser, task):
        told.append((task.prompts, task.corrupted.network_input.sum()))
        return errors(denoiser, task)

    monkeypatch.setattr(denoising, "denoising_errors", note)

    def run(name, *more_flags):
        told.clear()
        backbone.train(tmp_path / name, more, "--max_train_steps 4", *more_flags)
        return list(told)

    straight = run("straight", "--checkpointing_steps 2")
    (tmp_path / "resumed").mkdir()
    (tmp_path / "straight/checkpoint-2").rename(tmp_path / "resumed/checkpoint-2")
    resumed = run("resumed", "--checkpointing_steps 2 --resume_from_checkpoint latest")

    assert resumed == straight[len(straight) // 2 :]
    ends = [tmp_path / name / "checkpoint-4" for name in ("straight", "resumed")]
    torch.testing.assert_close(*map(lora_of, ends), **BITWISE)
    optimizers = [optimizer_of(end) for end in ends]
    torch.testing.assert_close(*(o["state"] for o in optimizers), **BITWISE)
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]


def test_new_rates_hold_from_the_first_resumed_step_and_are_what_is_recorded(
    backbone, run_once, tmp_path, monkeypatch, caplog
):
    """A rate that moves nothing leaves the checkpoint's weights; the schedule goes on in it."""
    shutil.copytree(run_once / "checkpoint-2", tmp_path / "checkpoint-2")
    told = {}
    report = stats.report

    def note(accelerator, progress, step, **scalars):
        told[step] = scalars["lr"]
        report(accelerator, progress, step, **scalars)

    monkeypatch.setattr(stats, "report", note)
    rates = "--learning_rate 1e-30 --lr_scheduler linear --adam_beta1 0.5 --adam_weight_decay 0"
    backbone.train(
        tmp_path, "--max_train_steps 4 --checkpointing_steps 2 --dco_beta 1000", rates,
        "--gradient_accumulation_steps 2 --resume_from_checkpoint latest",
    )  # fmt: skip
    end = tmp_path / "checkpoint-4"
    torch.testing.assert_close(lora_of(end), lora_of(tmp_path / "checkpoint-2"), **BITWISE)
    assert told == {3: pytest.approx(0.5e-30), 4: pytest.approx(0.25e-30)}
    [group] = optimizer_of(end)["param_groups"]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.0, (0.5, 0.999), 0.0)
    old, new = (optimizer_of(tmp_path / f"checkpoint-{n}")["state"][0] for n in (2, 4))
    assert (old["step"].item(), new["step"].item()) == (2, 4)  # the moments went on
    settings = read_state(end)["settings"]
    assert (settings["learning_rate"], settings["lr_scheduler"]) == (1e-30, "linear")
    assert "learning_rate was 0.001 and is 1e-30 from step 3 on" in caplog.text


@pytest.mark.parametrize("name", ["AdamW", "prodigy"])
def test_a_fused_optimizer_s_checkpoint_leaves_another_as_it_is(sdxl_backbone, tmp_path, name):
    """On a GPU a fused step would hide from accelerate that float16 overflowed."""
    args, models = sdxl_backbone.loaded(tmp_path, f"--optimizer {name}")
    parameters = trainable(models.denoiser)
    optimizer = make_optimizer(args, parameters, [], 1)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group |= {"fused": True, "lr": 3.0, "d": 0.25}
    for group in optimizer.param_groups:
        group["fused"] = None
    saving._load_optimizer(optimizer, state)
    [group] = optimizer.param_groups
    assert (group["fused"], group["lr"]) == (None, 1e-3)
    assert group["d"] == 0.25


def test_a_run_that_is_done_already_only_writes_its_results(backbone, run_once, tmp_path):
    checkpoint = run_once / "checkpoint-4"
    more = (
        f"--max_train_steps 3 --gradient_accumulation_steps 2 --resume_from_checkpoint {checkpoint}"
    )
    backbone.train(tmp_path, more)
    torch.testing.assert_close(lora_of(tmp_path), lora_of(checkpoint), **BITWISE)


def test_a_checkpoint_of_another_base_is_refused(sdxl_backbone, flux_backbone, tmp_path):
    sdxl_backbone.train(tmp_path, "--max_train_steps 1 --checkpointing_steps 1")
    with pytest.raises(SystemExit, match=r"checkpoint-1 cannot be continued: .* do not fit"):
        flux_backbone.train(tmp_path, "--max_train_steps 2 --resume_from_checkpoint latest")


def test_only_the_newest_checkpoints_are_kept(backbone, tmp_path):
    backbone.train(tmp_path,
          "--max_train_steps 3 --checkpointing_steps 1 --checkpoints_total_limit 2")  # fmt: skip
    assert sorted(p.name for p in tmp_path.glob("*check*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_of_another_rank_is_refused_before_models_load(backbone, run_once):
    more = "--rank 4 --max_train_steps 5 --resume_from_checkpoint latest"
    with pytest.raises(SystemExit, match="rank was 2 and is 4"):
        backbone.train(run_once, more)


def test_resuming_takes_the_checkpoints_seed_and_warns_of_other_settings(
    backbone, run_once, tmp_path, caplog
):
    words = backbone.flags(tmp_path, "--max_train_steps 5 --learning_rate 1e-5")
    at = words.index("--seed")
    words[at : at + 2] = ["--resume_from_checkpoint", str(run_once / "checkpoint-4")]
    words += ["--gradient_accumulation_steps", "2"]
    args = backbone.run(words)
    assert args.seed == 7
    assert "learning_rate was 0.001 and is 1e-05" in caplog.text
    assert (tmp_path / lora.WEIGHTS_NAME).is_file()


# Another run's folder


@pytest.fixture
def used(run_once, tmp_path) -> Path:
    """A folder with the checkpoints and saves of a run of four steps, and a file of its user."""
    folder = tmp_path / "used"
    for name in ("checkpoint-2", "checkpoint-4", "save-2", "save-4"):
        shutil.copytree(run_once / name, folder / name)
    (folder / "notes.txt").write_text("mine")
    return folder


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_fresh_run_refuses_another_run_s_folder_before_a_model_is_loaded(
    backbone, used, monkeypatch
):
    before = entries(used)
    monkeypatch.setattr(
        backbone.script, "load_models", lambda *_, **__: pytest.fail("a model was loaded")
    )
    with pytest.raises(SystemExit) as stopped:
        backbone.train(used, "--max_train_steps 1 --checkpoints_total_limit 1")
    for text in (
        f"--output_dir {used}: holds checkpoint-2, checkpoint-4, of another run",
        "--resume_from_checkpoint latest", "another folder", "--overwrite_output_dir",
    ):  # fmt: skip
        assert text in str(stopped.value)
    with pytest.raises(SystemExit, match=r"holds checkpoint-4, not of the run up to checkpoint-2"):
        backbone.train(used, "--resume_from_checkpoint checkpoint-2")
    assert entries(used) == before


def test_an_old_run_is_removed_only_once_the_new_one_can_begin(backbone, used, monkeypatch):
    before = entries(used)
    more = "--overwrite_output_dir --max_train_steps 1 --checkpointing_steps 1"
    with monkeypatch.context() as patched:
        patched.setattr(backbone.script, "load_models", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backbone.train(used, more)
    assert before <= entries(used)
    run = read_state(used / "checkpoint-4")["run"]
    backbone.train(used, more)
    kept = {name for name in entries(used) if name.startswith(("checkpoint-", "save-"))}
    assert kept == {"checkpoint-1"}
    assert read_state(used / "checkpoint-1")["run"] != run
    assert (used / "notes.txt").read_text() == "mine"


def test_a_continued_run_keeps_its_id(backbone, run_once, tmp_path):
    shutil.copytree(run_once / "checkpoint-4", tmp_path / "checkpoint-4")
    more = "--gradient_accumulation_steps 2 --resume_from_checkpoint latest"
    backbone.train(tmp_path, more, "--max_train_steps 5 --checkpointing_steps 1")
    runs = [read_state(tmp_path / f"checkpoint-{step}")["run"] for step in (4, 5)]
    assert runs[0] == runs[1] and len(runs[0]) == 16


def test_what_was_just_written_is_never_pruned_nor_is_another_run_s(tmp_path):
    def made(step: int, run: str | None) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = {"settings": {}} | ({"run": run} if run else {})
        (folder / STATE_NAME).write_text(json.dumps(state))
        return folder

    ours = [made(step, "ours") for step in (1, 2, 4)]
    made(3, "theirs"), made(500, "theirs"), made(600, None)
    assert beyond_limit(tmp_path, ours[-1], None) == []
    assert beyond_limit(tmp_path, ours[-1], 3) == []
    assert beyond_limit(tmp_path, ours[-1], 2) == ours[:1]
    assert beyond_limit(tmp_path, ours[-1], 1) == ours[:2]


# Damage and malice


def cut_to(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, cut_to(0), cut_to(0.5), flip_a_bit])
def test_latest_passes_over_a_damaged_checkpoint_and_says_what_is_wrong(used, damage):
    newest = used / "checkpoint-4"
    assert len(entries(newest)) == 6
    for name in entries(newest):
        whole = (newest / name).read_bytes()
        damage(newest / name)
        warnings: list[str] = []
        assert resolve_resume(used, "latest", warnings) == used / "checkpoint-2"
        told = "" if name == DIGESTS_NAME else f"{name} is"  # a changed digest blames its file
        assert len(warnings) == 1 and f"{newest} is damaged, {told}" in warnings[0]
        with pytest.raises(ValueError, match=rf"checkpoint-4: damaged, {told}"):
            resolve_resume(used, "checkpoint-4")
        (newest / name).write_bytes(whole)
    warnings = []
    assert resolve_resume(used, "latest", warnings) == newest and warnings == []


def test_a_folder_of_damaged_checkpoints_is_refused(used):
    for name in ("checkpoint-2", "checkpoint-4"):
        flip_a_bit(used / name / lora.WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"no checkpoint is intact: .*checkpoint-4 .*checkpoint-2"):
        resolve_resume(used, "latest")


def test_a_run_goes_on_from_the_last_intact_checkpoint_and_tells_it(
    sdxl_backbone, tmp_path, caplog
):
    more = "--max_train_steps 2 --checkpointing_steps 1"
    straight = sdxl_backbone.train(tmp_path / "straight", more)
    flipped = shutil.copytree(straight, tmp_path / "flipped")
    flip_a_bit(flipped / "checkpoint-2" / lora.WEIGHTS_NAME)
    sdxl_backbone.train(flipped, more, "--resume_from_checkpoint latest")
    torch.testing.assert_close(lora_of(flipped), lora_of(straight), **BITWISE)
    assert f"checkpoint-2 is damaged, {lora.WEIGHTS_NAME} is not what was written" in caplog.text
    assert "going on from checkpoint-1" in caplog.text


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_warning(backbone, used, caplog):
    """It has neither an id nor digests, and its rates stand in a pickle, which is not read."""
    end = used / "checkpoint-4"
    for name in (DIGESTS_NAME, saving.SCHEDULE_NAME):
        (end / name).unlink()
    state = read_state(end)
    del state["run"]
    (end / STATE_NAME).write_text(json.dumps(state))
    more = "--gradient_accumulation_steps 2 --resume_from_checkpoint latest --dco_beta 1000"
    backbone.train(used, more, "--max_train_steps 5 --checkpointing_steps 5")
    assert "without digests; damage would not be noticed" in caplog.text
    assert json.loads((used / "checkpoint-5" / saving.SCHEDULE_NAME).read_text()) == {"steps": 5}


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


PICKLES = (saving.OPTIMIZER_NAME, saving.SCALER_NAME, saving.RANDOM_NAME.format(0))
SLOTS = (*PICKLES, lora.WEIGHTS_NAME, saving.SCHEDULE_NAME)


def plain_pickle(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def torch_pickle(path: Path, value: object) -> None:
    torch.save(value, path)


@pytest.mark.parametrize("write", [plain_pickle, torch_pickle])
def test_no_slot_of_a_checkpoint_runs_code_or_ends_in_a_traceback(backbone, used, tmp_path, write):
    """Right digests prove nothing: who plants a file can write them too."""
    args, models = backbone.loaded(tmp_path / "none")
    optimizer = make_optimizer(args, trainable(models.denoiser), [], 1)
    schedule = make_lr_scheduler(args, optimizer, 4)
    reset_accelerate()
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    proof = tmp_path / "proof"
    theirs = used / "checkpoint-2"
    torch.save(accelerator.scaler.state_dict(), theirs / saving.SCALER_NAME)

    def restored() -> int:
        write_digests(theirs)
        assert resolve_resume(used, "checkpoint-2") == theirs
        parts = (models.adapted, optimizer, schedule)
        return saving.restore(accelerator, theirs, read_state(theirs)["settings"], *parts)

    assert restored() == 2
    for name in SLOTS:
        whole = (theirs / name).read_bytes()
        for value in (Malice(proof), [1], None, {}, {"param_groups": [1]}, {"random_state": 1}):
            write(theirs / name, value)
            with pytest.raises(SetupError, match=f"cannot be continued: {name}") as stopped:
                restored()
            assert len(str(stopped.value).splitlines()) == 1
        (theirs / name).write_bytes(whole)
    for name in ("custom_checkpoint_0.pkl", "anything.pkl"):
        write(theirs / name, Malice(proof))  # an earlier version's slot; nothing reads it
    assert restored() == 2
    assert not proof.exists()
