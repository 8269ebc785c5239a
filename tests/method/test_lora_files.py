"""What users bring: every naming loads to the same effect, and each wrong file gets its line."""

import itertools
import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file
from test_training import picture
from training import move_weights

from mudi import lora, merge_lora
from mudi.backbones.table import BACKBONES
from mudi.ground.lora_names import DOWN, UP, diffusers_key
from mudi.ground.lora_outline import LoraFileError, outline
from mudi.lora_files import layers_of, split, write_diffusers, write_kohya
from mudi.pictures.loras import find_lora, load_loras, lora_outlines


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory):
    """A LoRA of all parts, far from its start: its weights, and a folder with both files."""
    folder = tmp_path_factory.mktemp("trained")
    _, models = backbone.loaded(folder, "--train_text_encoder")
    move_weights(models)
    lora.save_lora(folder, backbone.pipeline_class, models.adapted)
    lora.save_kohya(folder, models.adapted)
    return lora.adapter_weights(models.adapted), folder


def peft_folder(folder, state, settings):
    """What `model.save_pretrained` of PEFT leaves."""
    folder.mkdir()
    tensors = {f"base_model.model.{key}": value.clone() for key, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def spellings(backbone, weights, folder, into):
    """The same LoRA as others would bring it, with how far it may be off: {name: (path, far)}."""
    denoiser = {backbone.denoiser: weights[backbone.denoiser]}
    original = write_kohya(into / "original.safetensors", weights)
    with_alpha = {
        diffusers_key(part, *split(key)): value * (4 if UP in key else 1)
        for part, state in weights.items()
        for key, value in state.items()
    }
    for part, state in weights.items():
        for layer in layers_of(state):
            with_alpha[f"{part}.{layer}.alpha"] = torch.tensor(0.5)
    save_file(with_alpha, into / "alpha.safetensors")
    fp8 = {
        diffusers_key(part, *split(key)): value.to(torch.float8_e4m3fn)
        for part, state in weights.items()
        for key, value in state.items()
    }
    save_file(fp8, into / "fp8.safetensors")
    half = write_diffusers(into / "half.safetensors", weights, {}, None, torch.bfloat16)
    toolkit = {f"{p}.{k}": v.clone() for p, state in denoiser.items() for k, v in state.items()}
    save_file(toolkit, into / "toolkit.safetensors")
    scaled = {k: v * (4 if UP in k else 1) for k, v in denoiser[backbone.denoiser].items()}
    peft = peft_folder(into / "peft", scaled, {"r": 2, "lora_alpha": 0.5, "peft_type": "LORA"})
    return {
        "kohya": (folder / lora.KOHYA_WEIGHTS_NAME, 1e-5),
        "original": (original, 1e-5),
        "alpha": (into / "alpha.safetensors", 1e-5),
        "fp8": (into / "fp8.safetensors", 0.2),
        "bf16": (half, 0.02),
    }, {"toolkit": (into / "toolkit.safetensors", 1e-5), "peft": (peft, 1e-5)}


def test_every_naming_makes_the_same_picture(backbone, trained, tmp_path):
    weights, folder = trained

    def made(path):
        return picture(backbone, lambda pipeline: load_loras(pipeline, [str(path)], [1.0]))

    whole, denoiser = spellings(backbone, weights, folder, tmp_path)
    alone = write_diffusers(
        tmp_path / "alone.safetensors", {backbone.denoiser: weights[backbone.denoiser]}, {}
    )
    plain = picture(backbone)
    for group, first in ((whole, folder), (denoiser, alone)):
        wanted = made(first)
        assert abs(wanted - plain).max() > 0.05
        for name, (path, far) in group.items():
            assert abs(made(path) - wanted).max() < far, name


def test_a_lora_of_the_network_alone_is_loaded_without_a_warning(sdxl_backbone, tmp_path, caplog):
    """Diffusers warns of each text encoder that has none, and asks to open an issue."""
    backbone = sdxl_backbone
    _, models = backbone.loaded(tmp_path)
    lora.save_lora(tmp_path, backbone.pipeline_class, models.adapted)
    diffusers = logging.getLogger("diffusers")
    diffusers.addHandler(caplog.handler)
    try:
        picture(backbone, lambda pipeline: load_loras(pipeline, [str(tmp_path)], [1.0]))
        assert not caplog.records
        picture(backbone, lambda pipeline: pipeline.load_lora_weights(tmp_path))
        assert len(caplog.records) == 2  # elsewhere as before
    finally:
        diffusers.removeHandler(caplog.handler)


def test_kohyas_file_starts_a_training_and_is_merged(backbone, trained, tmp_path):
    _, folder = trained
    file = folder / lora.KOHYA_WEIGHTS_NAME
    assert outline(file).ranks == (2,)
    more = f"--resume_lora {file} --train_text_encoder --max_train_steps 1 --learning_rate 1e-30"
    out = backbone.train(tmp_path / "out", more, "--text_encoder_lr 1e-30")
    merged = tmp_path / "merged.safetensors"
    merge_lora.main(merge_lora.parse_args([str(file), "--output", str(merged)]))
    twin = merged.with_stem("merged_kohya")
    for found in (out / lora.WEIGHTS_NAME, merged, twin):
        torch.testing.assert_close(
            lora.read_lora(found), lora.read_lora(folder / lora.WEIGHTS_NAME), rtol=0, atol=1e-29
        )


def test_a_start_from_rounded_weights_is_told(sdxl_backbone, tmp_path, caplog):
    run = sdxl_backbone.train(tmp_path / "run", "--max_train_steps 1 --save_precision fp16")
    assert outline(run).precisions == ("F16",)
    sdxl_backbone.train(tmp_path / "next", f"--resume_lora {run} --max_train_steps 1")
    assert "its weights were rounded to F16" in caplog.text


ONE = torch.ones(1, 1)
SDXL_KEY = "lora_unet_input_blocks_4_1_proj_in"
WRONG = {
    "lokr": ({"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": ONE}, "LyCORIS adapter"),
    "loha": ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": ONE}, "LyCORIS adapter"),
    "oft": ({"lora_unet_mid_block_attentions_0_proj_in.oft_blocks": ONE}, "an OFT adapter"),
    "tucker": ({f"{SDXL_KEY}.lora_mid.weight": ONE}, "Tucker cores"),
    "dora": ({f"{SDXL_KEY}.dora_scale": ONE}, "a DoRA in kohya's form"),
    "sd15": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": ONE},
             "Stable Diffusion 1.5 or 2; those known here"),
    "sd15-unet": ({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
                   ".lora.down.weight": torch.ones(2, 768)}, "Diffusion 1.5, whose text is 768"),
    "sd2-unet": ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
                  ".lora_down.weight": torch.ones(2, 1024)}, "Diffusion 2, whose text is 1024"),
    "t5": ({"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": ONE},
           "adapts the T5 text encoder"),
    "control": ({"img_in.lora_B.bias": ONE}, "a control LoRA of Black Forest Labs"),
    "old": ({"unet.mid_block.attentions.0.processor.to_q_lora.up.weight": ONE},
            "diffusers' form of before 2023-09"),
    "other": ({"some.layer.weight": ONE}, "'some.layer.weight' is of no LoRA naming"),
    "text": ({f"text_encoder.encoder.layers.0.mlp.fc1.{DOWN}": ONE}, "adapts text_encoder, as"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_gets_its_line(tmp_path, name):
    tensors, told = WRONG[name]
    file = tmp_path / f"{name}.safetensors"
    save_file(tensors, file)
    with pytest.raises(LoraFileError) as raised:
        outline(file)
    line = str(raised.value)
    assert line.startswith(f"{file}: ") and told in line and "\n" not in line


def test_pickles_are_refused_unopened(tmp_path):
    """By their names, in a PEFT folder too; one under a false name is no safetensors file."""

    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harmed").touch, ())

    (tmp_path / "peft").mkdir()
    (tmp_path / "peft/adapter_config.json").write_text("{}")
    for name in ("a.pt", "b.ckpt", "c.bin", "peft/adapter_model.bin", "d.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    for name in ("a.pt", "b.ckpt", "c.bin", "peft"):
        with pytest.raises(LoraFileError, match="a pickle, which can run code when it is opened"):
            outline(tmp_path / name)
    with pytest.raises(LoraFileError, match="not a safetensors file"):
        outline(tmp_path / "d.safetensors")
    assert not (tmp_path / "harmed").exists()


def test_a_lora_for_the_other_base_is_told_before_a_model_is_loaded(
    sdxl_backbone, flux_backbone, klein_backbone, tmp_path
):
    every = {"sdxl": sdxl_backbone, "flux": flux_backbone, "klein": klein_backbone}
    for own, name in itertools.permutations(every, 2):
        backbone, titles = every[own], [BACKBONES[key].title for key in (own, name)]
        title = "a LoRA of {}, and the base model is {}".format(*titles)
        _, models = backbone.loaded(tmp_path)
        for file in (
            lora.save_lora(tmp_path / name, backbone.pipeline_class, models.adapted),
            lora.save_kohya(tmp_path / name, models.adapted),
        ):
            problems: list[str] = []
            lora_outlines([str(file)], BACKBONES[name], problems)
            assert len(problems) == 1
            with pytest.raises(LoraFileError, match=title):
                load_loras(_pipeline(every[name]), [str(file)], [1])
            with pytest.raises(SystemExit, match=f"--resume_lora .*: {title}"):
                every[name].train(tmp_path / "out", f"--resume_lora {file}")


def _pipeline(backbone):
    return backbone.pipeline_class.from_pretrained(backbone.base)


def test_a_lora_of_another_size_or_layer_is_told(sdxl_backbone, tmp_path):
    pipeline = _pipeline(sdxl_backbone)
    file = tmp_path / "other.safetensors"
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for name, told in ((layer, rf"unet\.{layer} is 3x5, the base model's"),
                       (f"{layer}.more", "which the base model has not")):  # fmt: skip
        pair = {f"{name}.{DOWN}": torch.ones(2, 5), f"{name}.{UP}": torch.ones(3, 2)}
        write_diffusers(file, {"unet": pair}, {})
        with pytest.raises(LoraFileError, match=told):
            load_loras(pipeline, [str(file)], [1.0])


def test_what_is_not_there_is_told_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, told in (
        ("nobody/nothing", "nor a LoRA of that hub id in the cache, and the hub can't be reached"),
        ("loras/mine.safetensors", "no such file or folder"),
        ("mine.safetensors", "no such file or folder"),
    ):
        with pytest.raises(LoraFileError, match=f"^{name}: .*{told}"):
            find_lora(name, str(tmp_path))


def test_a_peft_file_without_its_settings_says_what_is_assumed(tmp_path):
    layer = "transformer_blocks.0.attn.to_q"
    pair = {f"{layer}.{DOWN}": ONE, f"{layer}.{UP}": ONE}
    folder = peft_folder(tmp_path / "peft", pair, {"lora_alpha": 3})
    assert outline(folder).notes == ()
    assert lora.read_lora(outline(folder).file)["transformer"][f"{layer}.{UP}"].item() == 3
    (folder / "adapter_config.json").unlink()
    alone = folder / "adapter_model.safetensors"
    assert "no adapter_config.json beside it" in outline(alone).notes[0]
    assert lora.read_lora(alone)["transformer"][f"{layer}.{UP}"].item() == 1
