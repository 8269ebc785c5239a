import importlib.util

import pytest
from helpers import NAMES

from mudi.backbones.table import FLUX, SDXL
from mudi.ground import flags
from mudi.training.args import TrainingArgs, resolve_mixed_precision, subject_scales, trackers
from mudi.training.checks import check_args

# What a run needs at least; the base model is a hub id, so nothing has to be there
LEAST = "--pretrained_model_name_or_path owner/name --instance_data_dir data --report_to none"
TWO = {subject: NAMES[subject] for subject in "ab"}


def parse(line: str = "") -> TrainingArgs:
    return flags.parse(TrainingArgs, None, [*LEAST.split(), *line.split()], output_dir="x")


def complaints(line: str) -> list[str]:
    return check_args(parse(line), SDXL)


def test_the_least_command_has_nothing_wrong():
    assert complaints("") == []


def test_the_published_flags_have_nothing_wrong():
    line = (
        "--output_dir=output/pair_p0.3_s0 --validation_prompt=prompt --report_to=wandb "
        "--resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=2 "
        "--checkpointing_steps=20000 --max_train_steps=2010 --validation_epochs=3 --save_steps=200 "
        "--lr_warmup_steps=0 --seed=42 --rank=32 --learning_rate=1e-4 --segmix_prob=0.3 "
        "--segmix_start_step=0 --relative_scale=0.0 --soft_alpha 1.0 --caption_column text"
    )
    assert complaints(line) == []


def test_the_help_shows_every_default_and_can_be_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = capsys.readouterr().out
    assert "(default: 0.3)" in text and "(default: 1024)" in text


# Forms of flags


@pytest.mark.parametrize("name", ["decouple", "use_bias_correction", "safeguard_warmup"])
@pytest.mark.parametrize(
    "form, value",
    [
        ("", True),
        ("--prodigy_{}", True),
        ("--prodigy_{} True", True),
        ("--prodigy_{}=True", True),
        ("--prodigy_{} true", True),
        ("--prodigy_{} 1", True),
        ("--prodigy_{} False", False),
        ("--prodigy_{}=False", False),
        ("--prodigy_{} 0", False),
        ("--no-prodigy_{}", False),
    ],
)
def test_the_forms_of_a_boolean_flag(name, form, value):
    args = parse(form.format(name) + " --rank 8")
    assert getattr(args, f"prodigy_{name}") is value
    assert args.rank == 8


def test_a_boolean_flag_refuses_other_words(capsys):
    with pytest.raises(SystemExit):
        parse("--prodigy_decouple maybe")
    assert "--prodigy_decouple takes True or False, got 'maybe'" in capsys.readouterr().err


def test_the_published_prefix_of_gradient_checkpointing_stays_valid():
    assert parse("--gradient_checkpoint").gradient_checkpointing is True
    assert parse().gradient_checkpointing is False


# Refused flags


@pytest.mark.parametrize(
    "flag, value, pointer",
    [
        ("--dataset_name", "x", "--instance_data_dir"),
        ("--dataset_config_name", "x", "--instance_data_dir"),
        ("--prior_generation_precision", "fp16", "generate_prior.py"),
        ("--hub_token", "hf_secret", "set HF_TOKEN or run `hf auth login`"),
        ("--sample_batch_size", "8", "generate_prior.py"),
        ("--sample_batch_size", "4", "generate_prior.py"),  # its default in the original
    ],
)
def test_a_refused_flag_says_why_and_what_to_use(flag, value, pointer):
    [complaint] = complaints(f"{flag} {value}")
    assert complaint.startswith(f"{flag}: ") and "hf_secret" not in complaint
    assert pointer in complaint


def test_the_image_column_may_be_given_as_its_default_only():
    assert complaints("--image_column image") == []
    [complaint] = complaints("--image_column photo")
    assert complaint.startswith("--image_column photo: data sets from the hub carry no masks")


def test_refusals_of_one_command_do_not_reach_the_next():
    assert parse("--dataset_name x").refused != []
    assert parse().refused == []


# Numbers


FROM_1 = (
    "rank repeats train_batch_size gradient_accumulation_steps num_train_epochs max_train_steps "
    "save_steps checkpointing_steps checkpoints_total_limit num_validation_images "
    "validation_epochs num_validation_inference_steps num_class_images lr_num_cycles"
).split()
FROM_0 = (
    "segmix_start_step dataloader_num_workers lr_warmup_steps prior_loss_weight "
    "adam_weight_decay adam_weight_decay_text_encoder"
).split()
ABOVE_0 = "learning_rate text_encoder_lr adam_epsilon max_grad_norm lr_power".split()
BETAS = "adam_beta1 adam_beta2 prodigy_beta3".split()


@pytest.mark.parametrize(
    "flag, value, range_",
    [
        *[(flag, "0", "must be 1 or more") for flag in FROM_1],
        *[(flag, "-1", "must be 0 or more") for flag in FROM_0],
        *[(flag, value, "must be above 0") for flag in ABOVE_0 for value in ("0", "-1", "nan")],
        *[
            (flag, value, "must be 0 or more and below 1")
            for flag in BETAS
            for value in ("1", "-1")
        ],
        ("segmix_prob", "1.1", "must be between 0 and 1"),
        ("segmix_prob", "-0.1", "must be between 0 and 1"),
        ("segmix_prob", "nan", "must be between 0 and 1"),
        ("soft_alpha", "2.0", "must be between 0 and 1"),
        ("relative_scale", "1.5", "must be between -1 and 1"),
        ("relative_scale", "-1.5", "must be between -1 and 1"),
        ("segmix_num_subjects", "1", "must be 2 or more"),
        ("seed", "4294967296", "must be between 0 and 4294967295"),
        ("seed", "-1", "must be between 0 and 4294967295"),
        ("resolution", "100", "must be a multiple of 8"),
        ("resolution", "0", "must be a multiple of 8"),
    ],
)
def test_a_number_out_of_range_is_told(flag, value, range_):
    [complaint] = complaints(f"--{flag} {value}")
    assert complaint.startswith(f"--{flag} {value}")
    assert complaint.endswith(f": {range_}")


@pytest.mark.parametrize(
    "line",
    [
        "--segmix_prob 0",
        "--segmix_prob 1",
        "--soft_alpha 0",
        "--relative_scale -1",
        "--relative_scale 1",
        "--rank 1",
        "--lr_warmup_steps 0",
        "--seed 4294967295",
        "--resolution 8",
        "--segmix_num_subjects 3",
    ],
)
def test_the_ends_of_the_ranges_are_allowed(line):
    assert complaints(line) == []


def test_the_resolution_s_divisor_is_the_backbone_s():
    assert check_args(parse("--resolution 520"), SDXL) == []
    assert check_args(parse("--resolution 520"), FLUX) == [
        "--resolution 520: must be a multiple of 16"
    ]


def test_all_complaints_come_in_one_go():
    line = "--rank 0 --segmix_prob 2 --resolution 9 --lr_scheduler steep --dataset_name x"
    assert len(complaints(line)) == 5


# Other values


@pytest.mark.parametrize(
    "line, what",
    [
        ("--relative_scale 0.5 --subject_scales a=1 b=0.5", "say the same thing"),
        ("--with_prior_preservation", "needs --class_data_dir: training does not sample"),
        ("--optimizer SGD", "adamw, adafactor, prodigy are known"),
        ("--optimizer prodigy --use_8bit_adam", "goes with --optimizer AdamW only"),
        ("--lr_scheduler steep", "known are linear, cosine"),
        ("--report_to comet", "--report_to comet: unknown; there are tensorboard, wandb"),
        ("--report_to wandb,comet", "--report_to comet: unknown"),
    ],
)
def test_a_combination_or_word_that_does_not_work_is_told(line, what):
    assert any(what in complaint for complaint in complaints(line))


@pytest.mark.parametrize(
    "package, line, remedy",
    [
        ("prodigyopt", "--optimizer prodigy", 'pip install -e ".[prodigy]"'),
        ("bitsandbytes", "--use_8bit_adam", 'pip install -e ".[8bit]"'),
        ("xformers", "--enable_xformers_memory_efficient_attention", "the default, is as lean"),
        ("wandb", "--report_to wandb", "pip install wandb"),
        ("tensorboard", "--report_to all", "pip install tensorboard"),
    ],
)
def test_a_package_that_is_asked_for_but_missing_is_told(monkeypatch, package, line, remedy):
    found = importlib.util.find_spec
    missing = lambda name: None if name == package else found(name)  # noqa: E731
    monkeypatch.setattr("mudi.training.checks.find_spec", missing)
    assert any("not installed" in told and remedy in told for told in complaints(line))


def test_optimizer_names_may_be_written_in_any_case():
    assert complaints("--optimizer adamw") == []


def test_missing_places_are_told():
    args = flags.parse(TrainingArgs, None, ["--report_to", "none"])
    assert check_args(args, SDXL) == [
        "--pretrained_model_name_or_path is missing: a base model's folder or hub id",
        "--instance_data_dir is missing: a folder with metadata.jsonl",
        "--output_dir is missing",
    ]


def test_trackers_are_split():
    assert trackers("none") == []
    assert trackers("all") == ["tensorboard", "wandb"]
    assert trackers("wandb,tensorboard") == ["wandb", "tensorboard"]
    assert trackers(" tensorboard , wandb") == ["tensorboard", "wandb"]
    assert trackers(" all ") == ["tensorboard", "wandb"] and trackers("none ") == []


def test_a_tilde_after_an_equals_sign_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = parse("--output_dir=~/out --cache_dir ~ --validation_prompt=~x --revision=a/~/b")
    assert (args.output_dir, args.cache_dir) == ("/home/me/out", "/home/me")
    assert (args.validation_prompt, args.revision) == ("~x", "a/~/b")


def test_half_an_emoji_and_bytes_that_are_no_text_are_told():
    args = parse()
    args.validation_prompt, args.output_dir = "a \ud83d dog", "out\udcff"
    told = check_args(args, SDXL)
    for what in (r"--output_dir out\udcff", r"--validation_prompt a \ud83d dog"):
        assert f"{what}: not Unicode text; is the command's encoding UTF-8?" in told


@pytest.mark.parametrize("name", ["/nowhere/sdxl", "./sdxl", "sdxl", "a/b/c"])
def test_a_base_model_that_is_neither_there_nor_a_hub_id_is_told(name):
    [complaint] = complaints(f"--pretrained_model_name_or_path {name}")
    assert complaint.startswith(f"--pretrained_model_name_or_path {name}: no such folder")


def test_a_base_model_folder_without_a_model_is_told(tmp_path):
    flag = "--pretrained_model_name_or_path"
    [complaint] = complaints(f"{flag} {tmp_path}")
    assert "the folder has no model_index.json" in complaint
    index = tmp_path / "model_index.json"
    index.touch()
    assert "its model_index.json is broken" in complaints(f"{flag} {tmp_path}")[0]
    index.write_text('{"_class_name": "FluxPipeline"}')
    [complaint] = check_args(parse(f"{flag} {tmp_path}"), SDXL)
    assert "a FluxPipeline; this script trains StableDiffusionXLPipelines" in complaint
    index.write_text('{"_class_name": "Flux2KleinPipeline"}')  # another backbone, not FLUX.1
    assert "a Flux2KleinPipeline; this" in check_args(parse(f"{flag} {tmp_path}"), FLUX)[0]
    index.write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert complaints(f"{flag} {tmp_path}") == []


def test_an_output_dir_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    assert complaints(f"--output_dir {tmp_path / 'file'}") == [
        f"--output_dir {tmp_path / 'file'}: {tmp_path / 'file'} is a file"
    ]
    [complaint] = complaints(f"--output_dir {tmp_path / 'file' / 'below'}")
    assert complaint.endswith("/file is a file")


def test_a_checkpoint_that_is_not_there_is_told_but_latest_may_be_none(tmp_path):
    assert complaints(f"--output_dir {tmp_path} --resume_from_checkpoint latest") == []
    assert complaints(f"--output_dir {tmp_path} --resume_from_checkpoint checkpoint-3") == [
        f"--resume_from_checkpoint: checkpoint-3: no such checkpoint; {tmp_path} has none"
    ]


# Scales


@pytest.mark.parametrize(
    "line, expected",
    [
        ("", None),
        ("--relative_scale 0", None),
        ("--relative_scale 0.6", {"a": 1.0, "b": 0.6}),
        ("--relative_scale -0.6", {"a": 0.6, "b": 1.0}),
        ("--relative_scale -1", {"a": 1.0, "b": 1.0}),
        ("--subject_scales b=0.5 a=1", {"a": 1.0, "b": 0.5}),
    ],
)
def test_scales_of_two_subjects(line, expected):
    assert subject_scales(parse(line), TWO) == expected


def test_relative_scale_goes_by_the_metadata_s_order_whatever_the_ids():
    names = {"z": "olis robot", "a": "hta teddy bear"}
    assert subject_scales(parse("--relative_scale 0.5"), names) == {"z": 1.0, "a": 0.5}


def test_relative_scale_is_for_two_subjects_only():
    with pytest.raises(ValueError, match="the metadata has 3; use --subject_scales"):
        subject_scales(parse("--relative_scale 0.5"), NAMES)
    scales = subject_scales(parse("--subject_scales a=1 b=0.5 c=0.25"), NAMES)
    assert scales == {"a": 1.0, "b": 0.5, "c": 0.25}


@pytest.mark.parametrize(
    "table", ["a=1", "a=1 b=1 c=1", "a=1 x=1", "a=0 b=1", "a=1.1 b=1", "a=nan b=1", "a=-1 b=1"]
)
def test_a_table_of_scales_that_does_not_fit_is_an_error(table):
    message = r"must give one number in \(0, 1\] for each of a, b"
    with pytest.raises(ValueError, match=message):
        subject_scales(parse(f"--subject_scales {table}"), TWO)


@pytest.mark.parametrize("table", ["a=1 b=", "a=1 b", "a=1 b=half"])
def test_a_scale_that_is_no_number_is_an_error(table):
    with pytest.raises(ValueError, match="takes ID=NUMBER"):
        subject_scales(parse(f"--subject_scales {table}"), TWO)


# Mixed precision


@pytest.mark.parametrize(
    "flag, told, configured, has_gpu, expected",
    [
        # Nothing said: the script's own on a GPU, none on a CPU
        (None, None, False, True, "fp16"),
        (None, None, False, False, "no"),
        # accelerate launch says "no" by itself, so that alone says nothing
        (None, "no", False, True, "fp16"),
        (None, "no", False, False, "no"),
        # It was told something: leave it to accelerate
        (None, "bf16", False, True, None),
        (None, "fp16", False, True, None),
        (None, "BF16", False, False, None),
        # A saved configuration: its "no" is meant
        (None, "no", True, True, None),
        (None, None, True, True, None),
        (None, "bf16", True, True, None),
        # The flag goes before everything
        ("no", "bf16", True, True, "no"),
        ("no", None, False, True, "no"),
        ("bf16", "fp16", False, True, "bf16"),
        ("fp16", None, True, False, "fp16"),
    ],
)
def test_mixed_precision(tmp_path, monkeypatch, flag, told, configured, has_gpu, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if told is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    config = tmp_path / "default_config.yaml"
    if configured:
        config.touch()
    assert resolve_mixed_precision(flag, "fp16", has_gpu, config) == expected


def test_mixed_precision_without_a_place_for_a_configuration(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert resolve_mixed_precision(None, "bf16", True, accelerate_config=None) == "bf16"
