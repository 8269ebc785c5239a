"""The names that LoRA files use, on the full-size networks; and what is written, read back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.published import FLUX, KLEIN, SDXL, ZIMAGE
from mudi.ground import lora_families
from mudi.ground.lora_names import (
    ALPHA,
    CLIP,
    CLIP_2,
    DOWN,
    MAGNITUDE,
    TRANSFORMER,
    UNET,
    UP,
    Place,
    diffusers_key,
    kohya_layers,
    place,
)
from mudi.ground.lora_outline import file_header
from mudi.lora import ATTENTION_TARGETS, TEXT_ENCODER_TARGETS
from mudi.lora_files import About, fuse, read_lora, unfuse, write_diffusers, write_kohya

NETWORKS = {
    UNET: SDXL["unet"],
    CLIP: SDXL["text_encoder"],
    CLIP_2: SDXL["text_encoder_2"],
    TRANSFORMER: FLUX["transformer"],
}
FAMILIES = {"sdxl": (UNET, CLIP, CLIP_2), "flux": (TRANSFORMER, CLIP)}
COUNTS = {UNET: 560, CLIP: 48, CLIP_2: 128, TRANSFORMER: 190}  # of the layers that are trained
# No program trains these, or their halves are swapped in FLUX's original code
UNNAMED = {
    UNET: (),
    CLIP: ("embeddings.", "final_layer_norm"),
    CLIP_2: ("embeddings.", "final_layer_norm"),
    TRANSFORMER: ("norm_out.linear",),
}


@pytest.fixture(scope="module")
def layers():
    """Every linear and convolution layer of each part at full size: {part: {layer: (out, in)}}."""
    found = {}
    for part, network in NETWORKS.items():
        with torch.device("meta"):
            is_config = not isinstance(network.config, dict)
            made = network.kind(network.config) if is_config else network.kind(**network.config)
        found[part] = {
            name: tuple(module.weight.shape[:2])
            for name, module in made.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            and not name.startswith(UNNAMED[part] or ("-",))
        }
    return found


def trained(layers, part):
    """The layers that training adapts."""
    targets = ATTENTION_TARGETS if part in (UNET, TRANSFORMER) else TEXT_ENCODER_TARGETS
    return {name: size for name, size in layers[part].items() if name.endswith(tuple(targets))}


def small(layers, parts, rank=2, seed=0):
    """A LoRA of the full-size networks' layers with outputs and inputs of a few numbers."""
    generator = torch.Generator().manual_seed(seed)

    def values(*size):
        return torch.randn(size, generator=generator)

    return {
        part: {
            f"{name}.{tensor}": values(*size)
            for name in trained(layers, part)
            for tensor, size in ((DOWN, (rank, 4)), (UP, (4, rank)))
        }
        for part in parts
    }


# The table and its inverse


@pytest.mark.parametrize("part", NETWORKS)
def test_each_layers_names_come_back_at_full_size(layers, part):
    assert len(trained(layers, part)) == COUNTS[part]
    for layer in layers[part]:
        for tensor in (DOWN, UP, MAGNITUDE):
            assert place(diffusers_key(part, layer, tensor)) == Place(part, (layer,), tensor)
    for original in (True, False):
        names = kohya_layers(part, layers[part], original)
        assert {layer for group in names.values() for layer in group} == set(layers[part])
        for name, group in names.items():
            for theirs, ours in ("lora_down.weight", DOWN), ("lora_up.weight", UP), (ALPHA, ALPHA):
                assert place(f"{name}.{theirs}") == Place(part, group, ours)


@pytest.mark.parametrize(
    ("pipeline", "networks"), [("Flux2KleinPipeline", KLEIN), ("ZImagePipeline", ZIMAGE)]
)
def test_later_backbones_names_come_back_at_full_size(pipeline, networks):
    """klein's under names that are FLUX.1's as well."""
    family = lora_families.family_of(pipeline=pipeline)
    with torch.device("meta"):
        made = networks["transformer"].kind(**networks["transformer"].config)
    linear = {name for name, module in made.named_modules() if isinstance(module, nn.Linear)}
    linear -= {"norm_out.linear"}  # its halves are swapped in the original code
    for original in (True, False):
        names = kohya_layers(TRANSFORMER, linear, original, family)
        assert {layer for group in names.values() for layer in group} == linear
        for name, group in names.items():
            assert place(f"{name}.lora_up.weight", family) == Place(TRANSFORMER, group, UP)


@pytest.mark.parametrize("part", [UNET, TRANSFORMER])
def test_a_name_without_its_part_is_known(layers, part):
    """PEFT's, and the original names with dots as Black Forest Labs writes them."""
    for layer in layers[part]:
        key = f"base_model.model.{layer}.lora_A.weight"
        assert place(key) == Place(part, (layer,), DOWN)
    assert place("diffusion_model.double_blocks.3.img_attn.qkv.lora_B.weight") == Place(
        TRANSFORMER, tuple(f"transformer_blocks.3.attn.to_{x}" for x in "qkv"), UP
    )


def test_no_two_layers_share_a_name():
    for rows in (
        [old for _, old in lora_families.unet_names()],
        [new for new, _ in lora_families.unet_names()],
        [old for old, _ in lora_families.flux_names()],
        [new for _, news in lora_families.flux_names() for new in news],
    ):
        flat = [name.replace(".", "_") for name in rows]
        assert len(set(flat)) == len(flat)


@pytest.mark.parametrize(
    "key, part, layers",
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k.lora_up.weight", UNET,
         "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"),
        ("lora_unet_input_blocks_8_1_proj_in.lora_up.weight", UNET,
         "down_blocks.2.attentions.1.proj_in"),
        ("lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj.lora_up.weight", UNET,
         "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj"),
        ("lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_out_0.lora_up.weight", UNET,
         "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0"),
        ("lora_unet_input_blocks_6_0_op.lora_up.weight", UNET,
         "down_blocks.1.downsamplers.0.conv"),
        ("lora_unet_single_blocks_37_linear1.lora_up.weight", TRANSFORMER,
         "single_transformer_blocks.37.attn.to_q single_transformer_blocks.37.attn.to_k "
         "single_transformer_blocks.37.attn.to_v single_transformer_blocks.37.proj_mlp"),
        ("lora_unet_double_blocks_18_txt_attn_proj.lora_up.weight", TRANSFORMER,
         "transformer_blocks.18.attn.to_add_out"),
        ("lora_transformer_single_transformer_blocks_1_attn_to_q.lora_up.weight", TRANSFORMER,
         "single_transformer_blocks.1.attn.to_q"),
        ("lora_te1_text_model_encoder_layers_11_self_attn_q_proj.lora_up.weight", CLIP,
         "encoder.layers.11.self_attn.q_proj"),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc2.lora_up.weight", CLIP_2,
         "text_model.encoder.layers.31.mlp.fc2"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.v_proj.lora_linear_layer.up.weight",
         CLIP, "encoder.layers.0.self_attn.v_proj"),
        ("text_encoder.encoder.layers.0.self_attn.v_proj.lora_B.weight",
         CLIP, "encoder.layers.0.self_attn.v_proj"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", TRANSFORMER,
         "transformer_blocks.0.attn.to_q"),
        ("transformer.base_model.model.proj_out.lora_B.weight", TRANSFORMER, "proj_out"),
    ],
)  # fmt: skip
def test_names_that_other_trainers_write(key, part, layers):
    assert place(key) == Place(part, tuple(layers.split()), UP)


# Files: what is written, read back


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text_encoders", [False, True])
def test_both_files_say_exactly_what_was_written(layers, tmp_path, family, text_encoders):
    """With the full key sets; FLUX's q, k and v go through a fused layer and come back."""
    parts = FAMILIES[family] if text_encoders else FAMILIES[family][:1]
    states = small(layers, parts)
    ours = write_diffusers(tmp_path / "diffusers.safetensors", states, {})
    kohyas = write_kohya(tmp_path / "kohya.safetensors", states)
    for file in (ours, kohyas):
        torch.testing.assert_close(read_lora(file), states, rtol=0, atol=0)


def test_kohyas_file_has_the_names_and_shapes_that_the_readers_know(layers, tmp_path):
    """Frozen: what ComfyUI, Forge, InvokeAI and sd-scripts were seen to load, by tests/by_hand."""
    file = write_kohya(tmp_path / "flux.safetensors", small(layers, FAMILIES["flux"], rank=2))
    state = load_file(file)
    # 19 double blocks: qkv and proj of the picture; 38 single ones: linear1; 48 of the encoder
    assert len(state) == 3 * (19 * 2 + 38 + 48)
    for name, height, rank in (
        ("lora_unet_double_blocks_0_img_attn_qkv", 12, 6),
        ("lora_unet_double_blocks_18_img_attn_proj", 4, 2),
        ("lora_unet_single_blocks_37_linear1", 12 + 16, 6),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, 2),
    ):
        assert state[f"{name}.lora_down.weight"].shape == (rank, 4)
        assert state[f"{name}.lora_up.weight"].shape == (height, rank)
        assert state[f"{name}.alpha"].item() == rank
    state = load_file(write_kohya(tmp_path / "a.safetensors", small(layers, FAMILIES["sdxl"])))
    assert len(state) == 3 * (560 + 48 + 128)
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_v",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    ):
        assert f"{name}.lora_up.weight" in state


def test_the_diffusers_file_has_text_model_and_each_parts_suffixes(layers, tmp_path):
    state = small(layers, (UNET, CLIP, CLIP_2))
    for part, values in state.items():
        values |= {k.replace(DOWN, MAGNITUDE): v[0] for k, v in values.items() if DOWN in k}
        assert part and len(values) == 3 * COUNTS[part]
    file = write_diffusers(tmp_path / "sdxl.safetensors", state, {}, dtype=torch.float16)
    written = load_file(file)
    text = "text_model.encoder.layers.0.self_attn.q_proj"
    unet = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for key, dtype in (
        (f"text_encoder.{text}.lora_linear_layer.down.weight", torch.float16),
        (f"text_encoder_2.{text}.lora_linear_layer.up.weight", torch.float16),
        (f"text_encoder.{text}.lora_magnitude_vector.weight", torch.float32),
        (f"{unet}.lora.down.weight", torch.float16),
        (f"{unet}.lora_magnitude_vector", torch.float32),
    ):
        assert written[key].dtype == dtype, key
    with pytest.raises(ValueError, match="read otherwise than it was trained"):
        write_kohya(tmp_path / "kohya.safetensors", state)
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        write_diffusers(
            file, {UNET: {f"conv_in.{DOWN}": torch.tensor([[1e5]])}}, {}, None, torch.float16
        )


def test_headers_tell_the_readers_what_it_is(layers, tmp_path):
    about = About("robot_and_dog", ("olis robot", "hta dog"), 512)
    for family, version, architecture, module in (
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "networks.lora"),
        ("flux", "flux1", "flux-1-dev/lora", "networks.lora_flux"),
    ):
        states = small(layers, FAMILIES[family][:1])
        for write in (write_kohya, lambda path, s, a: write_diffusers(path, s, {}, a)):
            header = file_header(write(tmp_path / "a.safetensors", states, about))
            assert header["ss_base_model_version"] == version
            assert header["modelspec.architecture"] == architecture
            assert header["ss_network_module"] == module
            assert header["ss_network_dim"] == header["ss_network_alpha"] == "2"
            assert header["modelspec.title"] == header["ss_output_name"] == "robot_and_dog"
            assert header["modelspec.trigger_phrase"] == "olis robot, hta dog"
            assert header["modelspec.resolution"] == "512x512"
            assert json.loads(header["ss_tag_frequency"]) == {
                "mudi": {"olis robot": 1, "hta dog": 1}
            }


# Fused layers


def test_fused_layers_by_hand():
    """q and v of rank 1 on two inputs, no k, and linear1's MLP below them."""
    q = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    v = torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0], [8.0]])
    down, up = fuse([q, None, v, None])
    assert down.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert up.shape == (2 * 3 + 4 * 2, 3)
    assert up[:6].tolist() == [[3, 0, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 7], [0, 0, 8]]
    assert not up[6:].any()
    back = unfuse(down, up, 4)
    assert back[1] is None and back[3] is None
    for piece, wanted in ((back[0], q), (back[2], v)):
        assert [t.tolist() for t in piece] == [t.tolist() for t in wanted]


def test_a_foreign_fused_layer_gives_each_layer_its_rows():
    """One A for all, as kohya trains it; an MLP that has no rows is left out."""
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(size, generator=generator) for size in ((3, 2), (14, 3)))
    for height, count in ((6, 3), (14, 4)):
        pieces = unfuse(down, up[:height], count)
        product = torch.cat([b @ a for a, b in pieces])
        assert torch.equal(product, up[:height] @ down)
    up[6:] = 0
    assert unfuse(down, up, 4)[3] is None


def test_a_fresh_fused_layer_keeps_its_ranks(tmp_path):
    """B is zero, so that any division fits; ours is by q, k and v."""
    a, b = torch.ones(4, 2), torch.zeros(2, 4)
    pieces = unfuse(*fuse([(a, b)] * 3 + [None]), 4)
    assert [p and len(p[0]) for p in pieces] == [4, 4, 4, None]


# What others bring


def test_kohyas_alpha_and_none_scale_alike(tmp_path):
    name = "lora_unet_input_blocks_4_1_proj_in"
    given = {f"{name}.lora_down.weight": torch.ones(4, 2, 1, 1),
             f"{name}.lora_up.weight": torch.ones(3, 4, 1, 1)}  # fmt: skip
    for alpha, scale in ((None, 1), (2.0, 0.5)):
        more = {f"{name}.alpha": torch.tensor(alpha)} if alpha else {}
        save_file(given | more, tmp_path / "a.safetensors")
        state = read_lora(tmp_path / "a.safetensors")[UNET]
        assert state[f"down_blocks.1.attentions.0.proj_in.{UP}"].tolist() == [[scale] * 4] * 3
