"""DoRA: what diffusers loads is what was trained; other programs get a plain LoRA that is near."""

import pytest
import torch
from safetensors.torch import load_file
from test_training import picture
from training import lora_of, move_weights

from mudi import dora, lora, merge_lora
from mudi.ground.lora_names import DOWN, MAGNITUDE, UP
from mudi.ground.lora_outline import file_header
from mudi.lora_files import layers_of, pair, write_kohya
from mudi.pictures.loras import load_loras


@pytest.fixture
def trained(backbone, tmp_path):
    """Models with a DoRA on all parts, far from its start, and the folder with its file."""
    _, models = backbone.loaded(tmp_path, "--use_dora --train_text_encoder")
    move_weights(models)
    lora.save_lora(tmp_path, backbone.pipeline_class, models.adapted)
    return models.adapted, tmp_path


def outputs(model, part, layer):
    """What one adapted layer makes of a fixed input."""
    module = model.get_submodule(layer)
    width = module.get_base_layer().in_features
    given = torch.randn(5, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return module(given)


def test_diffusers_loads_what_was_trained_text_encoders_too(backbone, trained):
    """Layer by layer; without .weight a text encoder's magnitudes would be the base's norms."""
    adapted, folder = trained
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    pipeline.load_lora_weights(folder)
    for part, model in adapted.items():
        loaded = getattr(pipeline, part)
        layers = [
            k.removesuffix(f".{DOWN}") for k in lora.adapter_weights(adapted)[part] if DOWN in k
        ]
        for layer in layers[:3]:
            wanted = outputs(model, part, layer)
            assert abs(outputs(loaded, part, layer) - wanted).max() < 1e-5, (part, layer)
            plain = loaded.get_submodule(layer).get_base_layer()
            assert abs(outputs(model, part, layer)).max() > 0 and plain is not None


def test_the_change_by_hand():
    """One row: (3, 4) and B A = (0, 8) give (3, 12), brought to length 5 and compared with W."""
    weight, down, up = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0]])
    delta = dora.change(weight, down, up, torch.tensor([5.0]))
    scale = 5 / (9 + 144) ** 0.5
    torch.testing.assert_close(delta, torch.tensor([[3 * scale - 3, 12 * scale - 4]]))


def test_nearest_is_the_best_of_its_rank():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 50, generator=generator)
    values = torch.linalg.svdvals(matrix)
    for rank in (5, 20, 50, 80):
        down, up = dora.nearest(matrix, rank, generator)
        assert down.shape == (min(rank, 50), 50) and up.shape == (60, min(rank, 50))
        lost = torch.linalg.norm(matrix - up @ down)
        assert lost <= values[rank:].norm() * 1.02 + 1e-4


def test_a_plain_lora_of_full_rank_makes_the_doras_picture(backbone, trained):
    adapted, folder = trained
    base = dora.BaseWeights(str(backbone.base))
    states = lora.adapter_weights(adapted)
    errors = [dora.as_plain(states, base, rank).error for rank in (2, 8, 256)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5
    plain = dora.as_plain(states, base, 256)
    assert not dora.is_dora(plain.states) and dora.is_dora(states)
    file = write_kohya(folder / "plain.safetensors", plain.states)

    def loaded(path):
        return picture(backbone, lambda pipeline: load_loras(pipeline, [str(path)], [1.0]))

    wanted = loaded(folder)
    assert abs(wanted - picture(backbone)).max() > 0.01
    assert abs(loaded(file) - wanted).max() < 2e-3


def test_a_run_ends_with_the_plain_lora_and_its_error_or_with_the_reason(
    backbone, tmp_path, caplog
):
    more = "--use_dora --max_train_steps 2 --save_steps 1"
    out = backbone.train(tmp_path / "near", more, "--dora_as_lora_rank 256")
    told = file_header(out / lora.KOHYA_WEIGHTS_NAME)["mudi_dora"]
    assert told.startswith("a plain LoRA of rank 256 in place of the DoRA, 0.0")
    assert told in caplog.text
    state = load_file(out / lora.KOHYA_WEIGHTS_NAME)
    assert not any("dora" in key for key in state)
    assert not (out / "save-1" / lora.KOHYA_WEIGHTS_NAME).exists()
    assert any(MAGNITUDE in key for key in lora_of(out / "save-1"))
    far = backbone.train(tmp_path / "near", more, "--dora_as_lora_rank 1 --dora_as_lora_error 0.01")
    assert not (far / lora.KOHYA_WEIGHTS_NAME).exists()
    assert "more than --dora_as_lora_error 0.01" in caplog.text


def test_what_cannot_be_had_of_the_base_is_told(backbone, trained, tmp_path):
    adapted, _ = trained
    states = lora.adapter_weights(adapted)
    part = backbone.denoiser
    with pytest.raises(dora.DoraError, match=f"no safetensors files of its {part}"):
        dora.as_plain(states, dora.BaseWeights(str(tmp_path)))
    base = dora.BaseWeights(str(backbone.base))
    layer = next(iter(states[part])).removesuffix(f".{DOWN}")
    wrong = {part: {f"{layer}.{DOWN}": torch.ones(1, 3), f"{layer}.{UP}": torch.ones(5, 1),
                    f"{layer}.{MAGNITUDE}": torch.ones(5)}}  # fmt: skip
    with pytest.raises(dora.DoraError, match=r"the DoRA's \(5, 3\); another base model"):
        dora.as_plain(wrong, base)
    with pytest.raises(dora.DoraError, match="has no layer nowhere"):
        base.weight(part, "nowhere")


def test_merging_brings_a_dora_into_a_plain_lora_or_says_how_much_would_be_lost(
    backbone, trained, tmp_path, capsys
):
    adapted, folder = trained
    merged = tmp_path / "plain.safetensors"
    words = [str(folder), "--output", str(merged), "--pretrained_model_name_or_path"]
    words.append(str(backbone.base))
    merge_lora.main(merge_lora.parse_args([*words, "--dora_rank", "256"]))
    assert "a plain LoRA of rank 256 in place of the DoRA, 0.0" in capsys.readouterr().out
    states = lora.adapter_weights(adapted)
    wanted = dora.as_plain(states, dora.BaseWeights(str(backbone.base)), 256).states
    for file in (merged, tmp_path / "plain_kohya.safetensors"):
        for part, state in lora.read_lora(file).items():
            for layer in layers_of(state):
                made, own = ((p[1] @ p[0]) for p in (pair(state, layer), pair(wanted[part], layer)))
                assert abs(made - own).max() < 1e-5
    with pytest.raises(SystemExit, match=r"of the DoRA would be lost, more than --dora_error 0\.1"):
        merge_lora.main(merge_lora.parse_args([*words, "--dora_rank", "1"]))
