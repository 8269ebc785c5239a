"""Steps, epochs, validation and rates, planned before a model is loaded."""

import pytest
from helpers import NAMES, DataFolder

from mudi.training import stats
from mudi.training.optimizers import make_optimizer, trainable

PAIR = {"a": NAMES["a"], "b": NAMES["b"]}


@pytest.fixture
def told(monkeypatch) -> dict[int, float]:
    """The rates that a run reports, by step."""
    rates: dict[int, float] = {}
    report = stats.report

    def note(accelerator, progress, step, **scalars):
        rates[step] = scalars["lr"]
        report(accelerator, progress, step, **scalars)

    monkeypatch.setattr(stats, "report", note)
    return rates


@pytest.mark.parametrize("num_class_images, steps", [(16, 8), (12, 6), (2, 5)])
def test_an_epoch_with_a_prior_has_as_many_draws_as_the_larger_set(
    sdxl_backbone, tmp_path, told, num_class_images, steps
):
    """Ten photos; the original counts max(min(class pictures, their number), photos)."""
    prior = DataFolder(tmp_path / "prior", PAIR, photos_each=8, filename="class_metadata.jsonl")
    more = f"--with_prior_preservation --class_data_dir {prior.path} --train_batch_size 2"
    sdxl_backbone.train(tmp_path / "out", more, f"--num_class_images {num_class_images}")
    assert list(told) == list(range(1, steps + 1))


def test_validation_comes_after_the_first_epoch_then_every_so_many_and_at_the_end(
    backbone, tmp_path
):
    backbone.train(
        tmp_path, "--max_train_steps 7 --train_batch_size 5 --validation_epochs 2",
        "--validation_prompt x --num_validation_images 1 --num_validation_inference_steps 1",
    )  # fmt: skip
    made = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert made == [f"validation-00000{step}-0.png" for step in (2, 6, 7)]


@pytest.mark.parametrize("scheduler", ["linear", "constant_with_warmup"])
def test_a_warm_up_longer_than_the_run_is_told_with_its_rates(
    sdxl_backbone, tmp_path, told, caplog, scheduler
):
    more = f"--max_train_steps 3 --lr_warmup_steps 4 --lr_scheduler {scheduler}"
    sdxl_backbone.train(tmp_path, more)
    assert told == pytest.approx({1: 0.0, 2: 2.5e-4, 3: 5e-4})
    assert (
        "the rate only rises, from 0 to 0.0005, and never is --learning_rate 0.001" in caplog.text
    )


def test_a_warm_up_that_ends_or_is_not_heeded_is_not_told(sdxl_backbone, tmp_path, told, caplog):
    sdxl_backbone.train(tmp_path / "a", "--max_train_steps 2 --lr_warmup_steps 500")  # constant
    more = "--max_train_steps 3 --lr_warmup_steps 2 --lr_scheduler linear"
    sdxl_backbone.train(tmp_path / "b", more)
    assert told[3] == 1e-3 and "--lr_warmup_steps" not in caplog.text


@pytest.mark.parametrize("steps, is_told", [(3, False), (4, True)])
def test_a_run_that_writes_no_checkpoint_says_so(sdxl_backbone, tmp_path, caplog, steps, is_told):
    caplog.set_level("INFO", logger="mudi")
    sdxl_backbone.train(tmp_path, f"--max_train_steps 3 --checkpointing_steps {steps}")
    wanted = "--checkpointing_steps 4: more than the run's 3 steps, so no checkpoint is written"
    assert (wanted in caplog.text) == is_told
    assert bool(list(tmp_path.glob("checkpoint-*"))) != is_told


@pytest.mark.parametrize("optimizer, rates", [("AdamW", [8e-3, 5e-6]), ("prodigy", [8e-3, 8e-3])])
def test_scaling_the_rate_leaves_the_text_encoders_alone(sdxl_backbone, tmp_path, optimizer, rates):
    """But Prodigy's two must be equal."""
    more = f"--scale_lr --optimizer {optimizer} --gradient_accumulation_steps 2"
    args, models = sdxl_backbone.loaded(tmp_path, more, "--train_batch_size 2")
    parameters = trainable(models.denoiser)
    groups = make_optimizer(args, parameters[:1], parameters[1:], num_processes=2).param_groups
    assert [group["lr"] for group in groups] == pytest.approx(rates)
