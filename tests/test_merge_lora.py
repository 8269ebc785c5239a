"""Several LoRAs: merged into one, and a training that starts from one."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import lora_of, move_weights

from mudi import lora, merge_lora
from mudi.lora_files import PARTS, WEIGHTS_NAME, LoraFileError, outline, split_key
from mudi.sampling import load_loras

KEY = "unet.block.to_q"
NEXT = "--max_train_steps 1 --learning_rate 1e-30"  # too small to move a float32 weight


def write(path, tensors, **settings):
    """A file whose header says settings of the unet, where there are any."""
    header = {f"unet.{key}": value for key, value in settings.items()}
    metadata = {"lora_adapter_metadata": json.dumps(header)} if settings else None
    save_file({key: torch.tensor(value) for key, value in tensors.items()}, path, metadata)
    return path


import json  # noqa: E402


def merged(tmp_path, *words):
    """The file that the command writes."""
    output = tmp_path / "merged/both.safetensors"
    merge_lora.main(merge_lora.parse_args([*map(str, words), "--output", str(output)]))
    return output


def trained(backbone, folder, *more):
    """A LoRA as a training leaves it, whose effect is far from none; its folder."""
    _, models = backbone.loaded(folder, *more)
    move_weights(models)
    lora.save_lora(folder, backbone.pipeline_class, models.adapted)
    return folder


@pytest.fixture(scope="module")
def pair(backbone, tmp_path_factory):
    """Two LoRAs: of rank 2 with text encoders, and of rank 3 without."""
    folder = tmp_path_factory.mktemp("pair")
    one = trained(backbone, folder / "one", "--rank 2 --train_text_encoder")
    other = trained(backbone, folder / "other", "--rank 3")
    return one, other


def picture(backbone, paths, scales=(1.0,)):
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    pipeline.set_progress_bar_config(disable=True)
    load_loras(pipeline, [str(path) for path in paths], scales)
    return pipeline(
        "a olis robot", height=64, width=64, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


# Merging


def test_the_weighted_sum_by_hand(tmp_path):
    """2 * [1, 3]ᵀ [1, 2], alpha 4 of rank 1 in the header; 0.5 * [2, 0]ᵀ [4, 6] without a header."""
    one = write(
        tmp_path / "one.safetensors",
        {f"{KEY}.lora_A.weight": [[1.0, 2.0]], f"{KEY}.lora_B.weight": [[1.0], [3.0]]},
        r=1, lora_alpha=4,
    )  # fmt: skip
    other = write(
        tmp_path / "other.safetensors",
        {f"{KEY}.lora.down.weight": [[4.0, 6.0]], f"{KEY}.lora.up.weight": [[2.0], [0.0]]},
    )
    file = merged(tmp_path, one, other, "--weights", "0.5", "0.5")
    state = load_file(file)
    assert state["unet.block.to_q.lora.down.weight"].tolist() == [[1, 2], [4, 6]]
    # 0.5 * 4 / 1 * [1, 3] and 0.5 * [2, 0]
    assert state["unet.block.to_q.lora.up.weight"].tolist() == [[2, 1], [6, 0]]
    header = lora.read_header(file)
    assert (header["unet.r"], header["unet.lora_alpha"]) == (2, 2)


@pytest.mark.parametrize(
    "settings, alpha, scale",
    [
        ({}, None, 1),
        ({"lora_alpha": 8}, None, 2),
        ({"lora_alpha": 8, "use_rslora": True}, None, 4),
        ({"lora_alpha": 8, "alpha_pattern": {"block.to_q": 2}}, None, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, None, 2),
        ({}, 12.0, 3),
    ],
)
def test_every_way_to_say_alpha_scales_b(tmp_path, settings, alpha, scale):
    tensors = {f"{KEY}.lora_A.weight": [[1.0]] * 4, f"{KEY}.lora_B.weight": [[1.0] * 4]}
    if alpha is not None:
        tensors[f"{KEY}.alpha"] = alpha
    state = lora.read_lora(write(tmp_path / "a.safetensors", tensors, **settings))["unet"]
    assert state["block.to_q.lora_B.weight"].tolist() == [[scale] * 4]
    assert state.keys() == {"block.to_q.lora_A.weight", "block.to_q.lora_B.weight"}


def test_a_merged_lora_makes_the_picture_of_both_at_their_weights(backbone, pair, tmp_path):
    file = merged(tmp_path, *pair, "--weights", "1", "0.8")
    plain = picture(backbone, [])
    both = picture(backbone, pair, (1.0, 0.8))
    assert abs(both - plain).max() > 0.01
    assert abs(picture(backbone, [file]) - both).max() < 1e-5
    assert abs(picture(backbone, [pair[0]]) - both).max() > 1e-3


def test_all_layers_of_a_merged_lora_have_the_sum_of_the_ranks(backbone, pair, tmp_path, capsys):
    """The text encoders, which only one has, are filled up: B by zeros, A by noise."""
    file = merged(tmp_path, *pair)
    assert f"rank 5; refit it with --resume_lora {file} --rank 5" in capsys.readouterr().out
    told = outline(file)
    parts = next(parts for parts in PARTS.values() if backbone.denoiser in parts)
    assert (told.parts, told.ranks, told.is_dora) == (parts, (5,), False)
    for part in parts:
        header = lora.read_header(file)
        assert (header[f"{part}.r"], header[f"{part}.lora_alpha"]) == (5, 5)
    one, state = lora.read_lora(pair[0] / WEIGHTS_NAME), lora.read_lora(file)
    for key, value in state["text_encoder"].items():
        given = one["text_encoder"][key]
        if "lora_A" in key:
            assert torch.equal(value[:2], given) and (value[2:] != 0).all()
        else:
            assert torch.equal(value[:, :2], given) and (value[:, 2:] == 0).all()


def test_one_lora_alone_is_merged_to_one_rank_and_weight(backbone, pair, tmp_path):
    file = merged(tmp_path, pair[1], "--weights", "-0.5")
    difference = picture(backbone, [file]) - picture(backbone, [pair[1]], (-0.5,))
    assert abs(difference).max() < 1e-5


def test_what_cannot_be_merged_is_told_in_a_line_each(
    sdxl_backbone, flux_backbone, tmp_path, capsys
):
    sdxl = trained(sdxl_backbone, tmp_path / "sdxl")
    dora = trained(sdxl_backbone, tmp_path / "dora", "--use_dora")
    flux = trained(flux_backbone, tmp_path / "flux")
    kohya = write(tmp_path / "k.safetensors", {"lora_unet_x.lora_down.weight": [[1.0]]})
    text = tmp_path / "text.safetensors"
    text.write_text("no")
    with pytest.raises(SystemExit) as stopped:
        merge_lora.main(
            merge_lora.parse_args(
                [*map(str, (sdxl, dora, flux, kohya, text, tmp_path)), "--weights", "1", "nan",
                 "--output", "merged"]
            )
        )  # fmt: skip
    first, *told = str(stopped.value).splitlines()
    assert first.startswith("9 problems")
    patterns = [
        "--weights: 2 numbers for 6 LoRAs",
        "--weights: all must be finite",
        "--output merged: must end in .safetensors",
        f"{kohya}: 'lora_unet_x.lora_down.weight' is not one of diffusers' key names",
        f"{text}: not a safetensors file",
        f"{tmp_path / WEIGHTS_NAME}: no such file",
        f"{dora / WEIGHTS_NAME}: a DoRA",
        "different base models",
    ]
    assert all(any(line.startswith(p) or p in line for line in told) for p in patterns)


def test_layers_of_other_sizes_are_refused_by_name(tmp_path):
    files = [
        write(
            tmp_path / f"{width}.safetensors",
            {f"{KEY}.lora_A.weight": [[1.0] * width], f"{KEY}.lora_B.weight": [[1.0]]},
        )
        for width in (2, 3)
    ]
    with pytest.raises(SystemExit, match=r"block\.to_q\.lora_A\.weight has other sizes"):
        merged(tmp_path, *files)
