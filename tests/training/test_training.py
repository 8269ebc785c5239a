"""Both training scripts as a whole: resuming, results, trackers, refusals; in this process."""

import itertools
import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import NAMES, DataFolder
from test_metadata import FAULTS
from training import EXAMPLE, lora_of

from mudi import denoising, lora
from mudi.backbones.table import backbone_of
from mudi.training import checks, publish, runtime

BITWISE = {"rtol": 0, "atol": 0}


def picture(backbone, prepare=lambda pipeline: None):
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    prepare(pipeline)
    return pipeline(
        prompt="a olis robot", height=64, width=64, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def test_a_run_leaves_everything_that_it_promises(run_once):
    names = {path.name for path in run_once.iterdir()}
    assert names == {
        "pytorch_lora_weights.safetensors", "pytorch_lora_weights_kohya.safetensors",
        "run_arguments.json", "README.md", "collages-000000-0.png", "validation", "logs",
        "stats.jsonl",
        "save-2", "save-4", "checkpoint-2", "checkpoint-4",
    }  # fmt: skip
    assert {p.name for p in (run_once / "save-2").iterdir()} == {
        "pytorch_lora_weights.safetensors", "pytorch_lora_weights_kohya.safetensors",
        "run_arguments.json",
    }  # fmt: skip
    assert [p.name for p in (run_once / "validation").iterdir()] == ["validation-000004-0.png"]
    arguments = json.loads((run_once / "run_arguments.json").read_text())
    assert (arguments["rank"], arguments["seed"], arguments["dco_beta"]) == (2, 7, 1000.0)
    early = json.loads((run_once / "save-2/run_arguments.json").read_text())
    assert (early["step"], arguments["step"]) == (2, 4)
    assert arguments["hub_token"] is None
    card = (run_once / "README.md").read_text()
    assert "olis robot" in card and "load_lora_weights" in card
    assert list((run_once / "logs").rglob("events.out.tfevents.*"))


def test_the_file_carries_rank_and_alpha_and_diffusers_names(backbone, run_once):
    header = lora.read_header(run_once / lora.WEIGHTS_NAME)
    part = backbone.denoiser
    assert (header[f"{part}.r"], header[f"{part}.lora_alpha"]) == (2, 2)
    state = lora_of(run_once)
    adapter = {"unet": r"\.lora\.(down|up)", "transformer": r"\.lora_[AB]"}[part]
    own = {"to_q", "to_k", "to_v", "to_out.0"}  # FLUX: neither add_*_proj nor feed-forward
    if "klein" in backbone.script.__name__:
        own |= {"to_out", "to_qkv_mlp_proj"}
    name = rf"{part}\..*(?:attn\d?|attention)\.({'|'.join(own)}){adapter}\.weight"
    found = [re.fullmatch(name, key) for key in state]
    assert all(found)
    assert {match[1] for match in found} == own
    assert all(value.dtype == torch.float32 for value in state.values())


def test_the_lora_changes_a_stock_pipelines_picture_until_it_is_off(backbone, run_once):
    plain = picture(backbone)
    adapted = picture(backbone, prepare=lambda p: p.load_lora_weights(run_once))

    def load_and_disable(pipeline):
        pipeline.load_lora_weights(run_once)
        pipeline.disable_lora()

    assert abs(adapted - plain).max() > 1e-5
    assert abs(picture(backbone, prepare=load_and_disable) - plain).max() == 0


def test_prior_preservation_alone_trains_without_dco(backbone, tmp_path, prior_folder, monkeypatch):
    seen = []
    errors = denoising.denoising_errors
    monkeypatch.setattr(
        denoising, "denoising_errors", lambda d, task: seen.append(task.prompts) or errors(d, task)
    )
    prior = f"--with_prior_preservation --class_data_dir {prior_folder} --segmix_prob 1"
    args = backbone.script.parse_args(backbone.flags(tmp_path, prior))
    assert args.dco_beta == 0
    backbone.train(tmp_path / "out", prior, "--max_train_steps 2 --train_batch_size 2")
    assert len(seen) == 2  # no reference passes
    for prompts in seen:
        assert all("olis robot and a hta" in p or "teddy bear and a olis" in p for p in prompts[:2])
        assert all("olis" not in p and "hta" not in p and " and " in p for p in prompts[2:])


@pytest.mark.parametrize("more", ["--mixed_precision bf16", "--mixed_precision bf16 --use_dora"])
def test_half_precision_keeps_the_adapters_in_float32(backbone, tmp_path, more):
    backbone.train(tmp_path, more, "--max_train_steps 2 --train_text_encoder --validation_prompt x",
        "--num_validation_images 1 --num_validation_inference_steps 1 --checkpointing_steps 2",
    )  # fmt: skip
    state = lora_of(tmp_path / "checkpoint-2")
    assert {value.dtype for value in state.values()} == {torch.float32}
    parts = {backbone.denoiser, *backbone.text_encoders}
    assert {key.split(".")[0] for key in state} == parts
    assert (tmp_path / "validation/validation-000002-0.png").is_file()


def test_a_run_stops_on_a_loss_that_is_not_finite_and_keeps_the_last_checkpoint(backbone, tmp_path):
    with pytest.raises(SystemExit, match=r"step 2 is (nan|inf).*checkpoint-1"):
        backbone.train(tmp_path, "--learning_rate 1e36 --max_train_steps 5",
              "--checkpointing_steps 1 --save_steps 1")  # fmt: skip
    assert not (tmp_path / lora.WEIGHTS_NAME).exists()
    assert not (tmp_path / "checkpoint-2").exists()
    assert all(v.isfinite().all() for v in lora_of(tmp_path / "checkpoint-1").values())


def test_half_precision_weight_files_are_loaded_where_asked_for(backbone, tmp_path):
    half = replace(backbone, base=tmp_path / "base")
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base, dtype=torch.float16)
    pipeline.save_pretrained(half.base, variant="fp16")
    half.train(tmp_path / "out", "--variant fp16 --max_train_steps 1")
    assert (tmp_path / "out" / lora.WEIGHTS_NAME).is_file()


def test_the_number_of_epochs_counts_where_no_steps_are_given(backbone, tmp_path):
    more = "--num_train_epochs 2 --repeats 3 --train_batch_size 8 --checkpointing_steps 1"
    backbone.train(tmp_path, more)
    steps = sorted(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*"))
    assert steps == list(range(1, 2 * math.ceil(10 * 3 / 8) + 1))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_malformed_data_stops_the_script_before_any_model_is_loaded(
    sdxl_backbone, folder, fault, monkeypatch
):
    script = sdxl_backbone.script
    monkeypatch.setattr(script, "load_models", lambda *_: pytest.fail("a model was loaded"))
    fault.damage(folder)
    with pytest.raises(SystemExit) as stopped:
        sdxl_backbone.train(folder.path / "out", data=folder.path)
    for place, what, remedy in fault.problems:
        assert all(text in str(stopped.value) for text in (place, what, remedy))
    assert not (folder.path / "out").exists()


def test_wrong_flags_and_wrong_data_are_told_together(backbone, folder):
    folder.lines[2]["id"] = "z"
    folder.save()
    nowhere = replace(backbone, base=folder.path)
    with pytest.raises(SystemExit) as stopped:
        nowhere.train(
            folder.path / "out", "--rank 0 --dco_beta -1 --resolution 63 --class_prompt corgi",
            "--report_to nosuch --subject_scales a=2 --with_prior_preservation",
            data=folder.path,
        )  # fmt: skip
    told = str(stopped.value)
    for text in (
        "--rank 0", "--dco_beta -1", "--resolution 63", "generate_prior", "--class_prompt: ",
        "nosuch", "no model_index.json", "metadata.jsonl:3: unknown",
    ):  # fmt: skip
        assert text in told
    assert told.startswith("8 problems; nothing was loaded")


def test_a_base_of_another_family_is_refused(
    sdxl_backbone, flux_backbone, klein_backbone, zimage_backbone, tmp_path
):
    every = (sdxl_backbone, flux_backbone, klein_backbone, zimage_backbone)
    for backbone, other in itertools.permutations(every, 2):
        with pytest.raises(SystemExit, match=f"a {other.pipeline_class.__name__}; this script"):
            replace(backbone, base=other.base).train(tmp_path)


def test_other_layers_are_trained_where_targets_name_them(backbone, tmp_path):
    name = backbone.named_layer  # of one layer alone, by its whole name
    out = backbone.train(
        tmp_path, f"--lora_targets to_q {name} --max_train_steps 2 --checkpointing_steps 1"
    )
    layers = {key.split(".lora")[0] for key in lora_of(out)}
    assert f"{backbone.denoiser}.{name}" in layers
    assert all(layer.endswith(("to_q", name)) for layer in layers) and len(layers) > 2
    picture(backbone, prepare=lambda p: p.load_lora_weights(out))
    with pytest.raises(SystemExit, match="lora_targets was"):
        backbone.train(tmp_path, "--resume_from_checkpoint latest --max_train_steps 3")


def test_a_target_that_is_no_layer_is_told_with_near_ones(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(
        backbone.script, "load_models", lambda *_, **__: pytest.fail("a model was loaded")
    )
    with pytest.raises(SystemExit, match=r"--lora_targets: to_qq: no linear layer.*to_q\b"):
        backbone.train(tmp_path, "--lora_targets to_k to_qq")


def test_validation_images_are_drawn_with_another_model_that_wears_the_lora(
    backbone, run_once, tmp_path
):
    """A run that trains nothing from `run_once`'s end, so that its LoRA is the file's."""
    other = replace(backbone, base=tmp_path / "other")
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    network = getattr(pipeline, backbone.denoiser)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
    pipeline.save_pretrained(other.base)
    more = "--max_train_steps 1 --learning_rate 1e-30 --validation_prompt x --dco_beta 0"
    more += " --num_validation_images 1 --num_validation_inference_steps 1 --validation_epochs 9"
    more += f" --resume_lora {run_once} --validation_guidance_scale 2"
    shown = []
    for name, run, extra in (
        ("base", backbone, ""), ("drawn", backbone, f"--validation_model {other.base}"),
        ("trained", other, ""),
    ):  # fmt: skip
        folder = run.train(tmp_path / name, more, extra)
        shown.append((folder / "validation/validation-000001-0.png").read_bytes())
    assert shown[1] == shown[2] != shown[0]


def test_a_validation_model_without_a_prompt_or_of_another_kind_is_told(backbone, tmp_path):
    with pytest.raises(SystemExit, match="draws --validation_prompt, and there is none"):
        backbone.train(tmp_path, f"--validation_model {backbone.base}")
    (tmp_path / "model_index.json").write_text('{"_class_name": "LumaPipeline"}')
    with pytest.raises(SystemExit, match=r"validation_model .*: a LumaPipeline; this script"):
        backbone.train(tmp_path / "x", f"--validation_model {tmp_path} --validation_prompt x")


def test_a_prior_set_that_lacks_a_class_is_told(backbone, tmp_path):
    prior = DataFolder(tmp_path / "prior", {"a": "robot"}, filename="class_metadata.jsonl")
    more = f"--with_prior_preservation --class_data_dir {prior.path} --num_class_images 1"
    with pytest.raises(SystemExit, match=r"no class for subject b; .*generate_prior.py"):
        backbone.train(tmp_path / "out", more)


def test_segmix_flags_are_checked_against_the_subjects(backbone, tmp_path):
    three = DataFolder(tmp_path / "three", NAMES)
    for more, told in (
        ("--relative_scale 0.5", "--subject_scales"),
        ("--segmix_num_subjects 4", "has 3 subjects"),
        ("--subject_scales a=1 b=0.5", "each of a, b, c"),
    ):
        with pytest.raises(SystemExit, match=told):
            backbone.train(tmp_path / "out", more, data=three.path)
    scales = "--segmix_num_subjects 3 --subject_scales a=1 b=0.5 c=0.25 --max_train_steps 1"
    backbone.train(tmp_path / "out", scales, data=three.path)


def test_a_base_that_is_not_there_is_one_line(backbone, tmp_path):
    with pytest.raises(SystemExit, match="path /nowhere: no such folder"):
        replace(backbone, base="/nowhere").train(tmp_path)


def test_a_hub_model_that_cannot_be_reached_is_one_line(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match="path nobody/nothing: ") as stopped:
        replace(backbone, base="nobody/nothing").train(tmp_path)
    assert len(str(stopped.value).splitlines()) == 1


def test_tensorboard_gets_scalars_and_pictures(backbone, run_once):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((run_once / "logs").glob("mudi-*"))))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "grad_norm", "seconds"}
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Scalars("loss")[0].value == pytest.approx(math.log(2), abs=1e-3)
    assert set(events.Tags()["images"]) == {"collages", "validation"}


def test_wandb_without_a_login_says_how_to_go_offline(backbone, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        backbone.script, "load_models", lambda *_: pytest.fail("a model was loaded")
    )
    with pytest.raises(SystemExit, match="WANDB_MODE=offline"):
        backbone.train(tmp_path / "out", "--report_to wandb")


def test_a_missing_tracker_is_an_error_at_start(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--report_to wandb: not installed; pip install wandb"):
        backbone.train(tmp_path, "--report_to wandb")


class HubStandIn:
    """What `publish` uses of huggingface_hub.HfApi; remembers what was asked."""

    calls: list = []  # noqa: RUF012

    def whoami(self):
        return {"name": "somebody"}

    def create_repo(self, repository, exist_ok):
        self.calls.append(("create", repository, exist_ok))
        return type("Repo", (), {"repo_id": f"somebody/{repository}"})

    def upload_folder(self, **what):
        self.calls.append(("upload", what))
        return type("Commit", (), {"commit_url": "https://hub/commit"})


def test_the_result_is_uploaded_without_states_and_logs(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "HfApi", HubStandIn)
    more = "--push_to_hub --logging_dir mylogs --max_train_steps 1"
    out = backbone.train(tmp_path / "my-pair", more)
    create, upload = HubStandIn.calls[-2:]
    assert create == ("create", "my-pair", True)
    assert (upload[1]["repo_id"], upload[1]["folder_path"]) == ("somebody/my-pair", out)
    assert {"checkpoint-*/**", "mylogs/**"} <= set(upload[1]["ignore_patterns"])


def test_an_upload_that_cannot_work_is_told_at_the_start(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="--push_to_hub: "):
        backbone.train(tmp_path / "out", "--push_to_hub")


def test_the_preview_and_training_collages_are_drawn_from_the_example(tmp_path):
    from mudi import preview

    sheet = tmp_path / "sheet.png"
    words = f"--instance_data_dir {EXAMPLE} --output {sheet} --num_collages 3 --resolution 128"
    preview.main(preview.parse_args(words.split()))
    assert sheet.stat().st_size > 10_000
    sheet.unlink()
    for more, told in (
        ("--segmix_num_subjects 3", "--segmix_num_subjects 3: the metadata has 2 subjects"),
        ("--segmix_num_subjects 1", "--segmix_num_subjects 1: must be 2 or more"),
        ("--mix cutmix --segmix_num_subjects 3", "leave --segmix_num_subjects out"),
        ("--resolution 100", "--resolution 100: must be a multiple of 8"),
        (f"--output {EXAMPLE}/metadata.jsonl/x.png", "metadata.jsonl is a file"),
    ):
        with pytest.raises(SystemExit, match=told):
            preview.main(preview.parse_args(f"{words} {more}".split()))
    assert not sheet.exists()


def test_a_caption_that_is_cut_is_told_with_its_line_and_what_is_read_of_it(
    backbone, tmp_path, caplog
):
    data = tmp_path / "data"
    shutil.copytree(EXAMPLE, data)
    path = data / "metadata.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[3])
    record["text"] += " and so on" * 400
    lines[3] = json.dumps(record)
    path.write_text("\n".join(lines), encoding="utf-8")
    kind = backbone_of(backbone.pipeline_class.__name__)
    args = backbone.script.parse_args(backbone.flags(tmp_path / "out", data=data))
    data_read = checks.load_data(args, kind.style, [])
    [told] = runtime.cut_captions(args, kind, data_read)
    template = {"klein": 30, "zimage": 15}  # tokens of an empty chat, by the tiny tokenizer
    place, _, rest = told.partition(": ")
    assert place == f"{path}:4"
    count, seen = map(int, re.findall(r"\d+", rest))
    assert count > 1000
    limits = {"sdxl": 75, "flux": 511, **{key: 128 - count for key, count in template.items()}}
    assert seen == limits[kind.name]
