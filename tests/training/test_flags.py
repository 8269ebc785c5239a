"""The original scripts' flags: all there, with their defaults, and each read by some code."""

import argparse
import ast
from pathlib import Path

import pytest
from helpers import ROOT

import train_segmix_lora_flux
import train_segmix_lora_klein
import train_segmix_lora_sdxl
import train_segmix_lora_zimage
from mudi.ground.flags import BooleanFlag, RefusedFlag

SDXL, FLUX, KLEIN = train_segmix_lora_sdxl, train_segmix_lora_flux, train_segmix_lora_klein
ZIMAGE = train_segmix_lora_zimage
SCRIPTS = [SDXL, FLUX, KLEIN, ZIMAGE]

BOTH: dict[str, object] = {
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "adam_weight_decay": 1e-4,
    "adam_weight_decay_text_encoder": 1e-3, "dataloader_num_workers": 0,
    "gradient_accumulation_steps": 1, "learning_rate": 1e-4, "local_rank": -1, "lr_num_cycles": 1,
    "lr_power": 1.0, "lr_warmup_steps": 500, "max_grad_norm": 1.0, "num_train_epochs": 1,
    "num_validation_images": 4, "prior_loss_weight": 1.0, "rank": 4, "relative_scale": 0.0,
    "repeats": 1, "sample_batch_size": 4, "save_steps": 500, "segmix_start_step": 0,
    "segmix_prob": 0.3,  # the SDXL original's 0.6 is no published run's
    "soft_alpha": 1.0, "text_encoder_lr": 5e-6, "train_batch_size": 4, "validation_epochs": 50,
    "image_column": "image", "logging_dir": "logs", "lr_scheduler": "constant",
    "optimizer": "AdamW", "report_to": "tensorboard",
    **dict.fromkeys(
        """cache_dir checkpoints_total_limit class_data_dir dataset_config_name dataset_name
        hub_model_id hub_token instance_data_dir max_train_steps mixed_precision
        pretrained_model_name_or_path prior_generation_precision prodigy_beta3
        resume_from_checkpoint revision seed validation_prompt variant""".split()
    ),
    **dict.fromkeys(
        ["prodigy_decouple", "prodigy_safeguard_warmup", "prodigy_use_bias_correction"], True
    ),
}  # fmt: skip
BOTH_SWITCHES = """allow_tf32 center_crop gradient_checkpointing push_to_hub random_flip scale_lr
    train_text_encoder use_8bit_adam with_prior_preservation""".split()
OWN: dict = {
    SDXL: {
        "caption_column": "text", "checkpointing_steps": 500, "resolution": 1024,
        "output_dir": "lora-dreambooth-model", "num_class_images": 100, "dco_beta": 1000.0,
        "class_prompt": None, "pretrained_vae_model_name_or_path": None, "snr_gamma": None,
    },
    FLUX: {
        "caption_column": None, "checkpointing_steps": 20000, "resolution": 512,
        "output_dir": "flux-dreambooth-lora", "guidance_scale": 3.5, "logit_mean": 0.0,
        "logit_std": 1.0, "max_sequence_length": 512, "mode_scale": 1.29, "wandb_name": None,
        "weighting_scheme": "none", "dco_beta": 0.0, "quantize_base": "none",
    },
    KLEIN: {  # those of diffusers' own script
        "checkpointing_steps": 500, "resolution": 512, "logit_mean": 0.0, "logit_std": 1.0,
        "max_sequence_length": 512, "mode_scale": 1.29, "weighting_scheme": "none",
        "dco_beta": 0.0, "quantize_base": "none",
    },
}  # fmt: skip
OWN[ZIMAGE] = OWN[KLEIN]
OWN_SWITCHES = {
    SDXL: """do_edm_style_training enable_xformers_memory_efficient_attention use_dora""".split(),
    FLUX: ["cache_latents", "upcast_before_saving"],
    KLEIN: ["cache_latents", "use_dora"],
    ZIMAGE: ["cache_latents", "use_dora"],
}


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.__name__)
def script(request):
    return request.param


@pytest.fixture
def parser(script, monkeypatch) -> argparse.ArgumentParser:
    """The parser that the script builds."""
    caught: list[argparse.ArgumentParser] = []
    parse = argparse.ArgumentParser.parse_args
    with monkeypatch.context() as patch:
        patch.setattr(
            argparse.ArgumentParser, "parse_args",
            lambda self, argv=None: caught.append(self) or parse(self, argv),
        )  # fmt: skip
        script.parse_args([])
    return caught[0]


def test_the_originals_flags_keep_their_defaults(script):
    args = vars(script.parse_args([]))
    wanted = {**BOTH, **OWN[script]}
    wanted |= dict.fromkeys([*BOTH_SWITCHES, *OWN_SWITCHES[script]], False)
    assert {name: args[name] for name in wanted} == wanted


def test_switches_switch(script):
    switches = [*BOTH_SWITCHES, *OWN_SWITCHES[script]]
    given = script.parse_args([f"--{name}" for name in switches])
    assert all(getattr(given, name) is True for name in switches)


def test_prior_preservation_switches_dco_off_unless_a_beta_is_given():
    assert SDXL.parse_args(["--with_prior_preservation"]).dco_beta == 0.0
    assert SDXL.parse_args(["--with_prior_preservation", "--dco_beta=7"]).dco_beta == 7.0


def test_no_other_flag_begins_like_the_published_abbreviation(script, parser):
    options = parser._option_string_actions
    assert [o for o in options if o.startswith("--gradient_checkpoint")] == [
        "--gradient_checkpointing"
    ]
    assert script.parse_args(["--gradient_checkpoint"]).gradient_checkpointing


def test_every_flag_has_help_and_no_boolean_is_parsed_from_text(parser):
    for action in parser._actions:
        assert action.help
        assert action.type is not bool
        if isinstance(action.default, bool):
            assert isinstance(action, BooleanFlag | argparse._StoreTrueAction)


def names_read(tree: ast.AST) -> set[str]:
    """Names that code takes from the arguments: args.x, and the words of getattr's lists."""
    found: set[str] = set()
    for node in ast.walk(tree):
        is_load = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if is_load and isinstance(node.value, ast.Name) and node.value.id == "args":
            found.add(node.attr)
    return found


# read by name: the loop over hub keys in load_models, and the settings of a checkpoint
HUB_KEYS = {"revision", "variant", "cache_dir"}


def test_every_flag_is_read_by_some_code(script, parser):
    wings = (ROOT / "mudi", ROOT / "mudi/training", ROOT / "mudi/backbones")
    library = [path for wing in wings for path in wing.glob("*.py")]
    sources = [Path(script.__file__), *library]
    read = set().union(*(names_read(ast.parse(path.read_text())) for path in sources))
    refused = {a.dest for a in parser._actions if isinstance(a, RefusedFlag)}
    flags = {a.dest for a in parser._actions} - {"help"}
    assert flags - read - HUB_KEYS - refused == set()


@pytest.mark.parametrize("name", ["dataset_name", "dataset_config_name", "class_prompt",
                                  "hub_token", "prior_generation_precision",
                                  "sample_batch_size"])  # fmt: skip
def test_what_cannot_be_had_is_refused_with_a_pointer(script, name):
    [told] = [
        c for c in script.check_args(script.parse_args([f"--{name}=4"])) if f"--{name}: " in c
    ]
    assert any(way in told for way in ("--class_data_dir", "--instance_data_dir", "HF_TOKEN"))
