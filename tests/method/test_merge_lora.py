"""Several LoRAs: merged into one, and a training that starts from one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import lora_of, move_weights

from mudi import denoising, lora, merge_lora
from mudi.ground.lora_families import family_of
from mudi.ground.lora_outline import WEIGHTS_NAME, outline
from mudi.pictures.loras import load_loras

KEY = "unet.block.to_q"
STILL = "--max_train_steps 1 --learning_rate 1e-30 --text_encoder_lr 1e-30"  # moves no float32


def write(path, tensors, **settings):
    """A file whose header says settings of the unet, where there are any."""
    header = {f"unet.{key}": value for key, value in settings.items()}
    metadata = {"lora_adapter_metadata": json.dumps(header)} if settings else None
    save_file({key: torch.tensor(value) for key, value in tensors.items()}, path, metadata)
    return path


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


def picture(backbone, paths, scales=None):
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    pipeline.set_progress_bar_config(disable=True)
    load_loras(pipeline, [str(path) for path in paths], scales or [1.0] * len(paths))
    return pipeline(
        prompt="a olis robot", height=64, width=64, num_inference_steps=2, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


# Merging


def test_the_weighted_sum_by_hand(tmp_path):
    """0.5 of alpha 4 at rank 1, so twice the first; 0.5 of no header, so half the second."""
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
    parts = family_of(pipeline=backbone.pipeline_class.__name__).parts
    assert (told.parts, told.ranks, told.is_dora) == (parts, (5,), False)
    for part in parts:
        header = lora.read_header(file)
        assert (header[f"{part}.r"], header[f"{part}.lora_alpha"]) == (5, 5)
    one, state = lora.read_lora(pair[0] / WEIGHTS_NAME), lora.read_lora(file)
    for key, value in state.get("text_encoder", {}).items():
        given = one["text_encoder"][key]
        if "lora_A" in key:
            assert torch.equal(value[:2], given) and (value[2:] != 0).all()
        else:
            assert torch.equal(value[:, :2], given) and (value[:, 2:] == 0).all()


def test_one_lora_alone_is_merged_to_one_rank_and_weight(backbone, pair, tmp_path):
    file = merged(tmp_path, pair[1], "--weights", "-0.5")
    difference = picture(backbone, [file]) - picture(backbone, [pair[1]], (-0.5,))
    assert abs(difference).max() < 1e-5


def test_what_cannot_be_merged_is_told_in_a_line_each(sdxl_backbone, flux_backbone, tmp_path):
    sdxl = trained(sdxl_backbone, tmp_path / "sdxl")
    dora = trained(sdxl_backbone, tmp_path / "dora", "--use_dora")
    flux = trained(flux_backbone, tmp_path / "flux")
    kohya = write(tmp_path / "kohya.safetensors", {"lora_unet_x.lora_down.weight": [[1.0]]})
    other = write(tmp_path / "other.safetensors", {"text_encoder.to_q.lora_A.weight": [[1.0]]})
    text = tmp_path / "text.safetensors"
    text.write_text("no")
    words = [*map(str, (sdxl, dora, flux, kohya, other, text, tmp_path))]
    words += ["--weights", "1", "nan", "--output", "merged"]
    with pytest.raises(SystemExit) as stopped:
        merge_lora.main(merge_lora.parse_args(words))
    told = str(stopped.value).splitlines()[1:]
    for line, part in zip(told, [
        "--weights: 2 numbers for 7 LoRAs",
        "--weights: all must be finite",
        "--output merged: must end in .safetensors",
        f"{kohya}: 'lora_unet_x.lora_down.weight' is of no LoRA naming that is known here",
        f"{other}: adapts text_encoder, ",
        f"{text}: not a safetensors file",
        f"{tmp_path / WEIGHTS_NAME}: no such file",
        f"{dora / WEIGHTS_NAME}: a DoRA",
        f"different base models cannot be merged: {sdxl / WEIGHTS_NAME} is SDXL, ",
    ], strict=True):  # fmt: skip
        assert part in line


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


# Training from one


def test_a_run_starts_from_the_given_lora(backbone, pair, tmp_path):
    """Its first step has moved the picture a little, and not at all at a rate of next to 0."""
    file = merged(tmp_path, *pair, "--weights", "1", "0.8")
    more = f"--resume_lora {file} --rank 5 --train_text_encoder"
    still = backbone.train(tmp_path / "still", more, STILL)
    torch.testing.assert_close(lora_of(still), load_file(file), rtol=0, atol=1e-29)
    moved = backbone.train(tmp_path / "moved", more, "--max_train_steps 1")
    begin, end, plain = (picture(backbone, paths) for paths in ([file], [moved], []))
    assert 0 < abs(end - begin).max() < abs(end - plain).max()
    for name in backbone.text_encoders[:1]:
        filled_up = lora.read_lora(moved / WEIGHTS_NAME)[name]
        assert (filled_up["encoder.layers.0.self_attn.v_proj.lora_B.weight"][:, 2:] != 0).any()
    arguments = json.loads((moved / "run_arguments.json").read_text())
    assert arguments["resume_lora"] == str(file)


def test_another_alpha_starts_with_the_same_effect(backbone, pair, tmp_path):
    part = backbone.denoiser
    file = tmp_path / "alpha.safetensors"
    header = {**lora.read_header(pair[1] / WEIGHTS_NAME), f"{part}.lora_alpha": 6}
    save_file(lora_of(pair[1]), file, {"lora_adapter_metadata": json.dumps(header)})
    still = backbone.train(tmp_path / "out", f"--resume_lora {file} --rank 3", STILL)
    assert lora.read_header(still / WEIGHTS_NAME)[f"{part}.lora_alpha"] == 3
    assert abs(picture(backbone, [still]) - picture(backbone, [file])).max() < 1e-5
    assert abs(picture(backbone, [still]) - picture(backbone, [pair[1]])).max() > 1e-3


def test_dco_compares_with_the_base_not_with_the_lora_started_from(
    backbone, pair, tmp_path, monkeypatch
):
    seen: list[torch.Tensor] = []
    errors = denoising.denoising_errors
    monkeypatch.setattr(
        denoising, "denoising_errors",
        lambda d, task: seen.append(errors(d, task)) or seen[-1],
    )  # fmt: skip
    for more in ("", f"--resume_lora {pair[1]}"):
        backbone.train(tmp_path, more, "--rank 3 --dco_beta 1000 --max_train_steps 1")
    base, fresh, base_again, started = (value.item() for value in seen)
    assert fresh == base == base_again != started


@pytest.mark.parametrize("backbone", ["sdxl", "flux"], indirect=True)  # which wins is shared
@pytest.mark.parametrize("kind", ["", "--use_dora"])
def test_a_checkpoint_wins_over_the_lora_started_from(backbone, tmp_path, caplog, kind):
    start = trained(backbone, tmp_path / "start", kind)
    more = f"{kind} --resume_lora {start} --max_train_steps 2 --checkpointing_steps 1"
    straight = backbone.train(tmp_path / "straight", more)
    resume = f"--resume_from_checkpoint {straight / 'checkpoint-1'}"
    resumed = backbone.train(tmp_path / "resumed", more, resume)
    torch.testing.assert_close(lora_of(resumed), lora_of(straight), rtol=0, atol=0)
    assert "resume_lora was" not in caplog.text
    again = f"--resume_lora {start / WEIGHTS_NAME}"
    backbone.train(tmp_path / "again", more, resume, again)
    assert f"resume_lora was '{start}' and is '{start / WEIGHTS_NAME}'" in caplog.text


def test_a_lora_that_does_not_fit_the_flags_is_told_before_a_model_is_loaded(
    sdxl_backbone, flux_backbone, tmp_path, monkeypatch
):
    for backbone, other in (sdxl_backbone, flux_backbone), (flux_backbone, sdxl_backbone):
        folder = tmp_path / backbone.denoiser
        plain = trained(backbone, folder / "plain")
        full = trained(backbone, folder / "full", "--use_dora --train_text_encoder --rank 4")
        uneven = folder / "uneven.safetensors"
        both = {**lora_of(plain), **{f"more.{k}": v for k, v in lora_of(full).items()}}
        save_file({k.replace(f"more.{backbone.denoiser}", f"{backbone.denoiser}.more"): v
                   for k, v in both.items() if "text_encoder" not in k and "magn" not in k},
                  uneven)  # fmt: skip
        monkeypatch.setattr(backbone.script, "load_models", lambda *_: pytest.fail("loaded"))
        for start, flags, told in (
            (full, "", ["its rank is 4; pass --rank 4", "has DoRA magnitudes; pass --use_dora",
                        "has text encoder weights; pass --train_text_encoder"]),
            (plain, "--use_dora --train_text_encoder",
             ["has no DoRA magnitudes; leave --use_dora out",
              "has no text encoder weights; leave --train_text_encoder out"]),
            (uneven, "", ["its layers have ranks 2, 4; python -m mudi.merge_lora makes one"]),
            (folder / "nowhere", "", [f"{folder / 'nowhere'}: no such file"]),
        ):  # fmt: skip
            with pytest.raises(SystemExit) as stopped:
                backbone.train(folder / "out", f"--resume_lora {start}", flags)
            lines = str(stopped.value).splitlines()[1:]
            for line, part in zip(lines, told, strict=True):
                assert line.startswith(f"--resume_lora {start}") and part in line
        monkeypatch.undo()
        theirs = trained(other, folder / "theirs")
        with pytest.raises(SystemExit, match=r": a LoRA of \w+, and the base model is (SDXL|FLUX)"):
            backbone.train(folder / "out", f"--resume_lora {theirs}")


def test_a_lora_of_another_base_is_one_line(sdxl_backbone, tmp_path):
    tensors = {f"{KEY}.lora_A.weight": [[1.0]] * 2, f"{KEY}.lora_B.weight": [[1.0, 1.0]]}
    start = write(tmp_path / "other.safetensors", tensors)
    with pytest.raises(SystemExit, match=r"^--resume_lora .*unet weights do not fit"):
        sdxl_backbone.train(tmp_path / "out", f"--resume_lora {start}")
