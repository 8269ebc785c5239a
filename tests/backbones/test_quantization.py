"""A base in few bits: products in autocast's precision, whatever the layers before answer in."""

import pytest
import torch
from torch import nn
from training import lora_of

from mudi.backbones import quantization

pytest.importorskip("torchao")


def test_products_in_few_bits_are_rounded_as_autocast_rounds_those_in_full(
    backbone, tmp_path, monkeypatch
):
    """Autocast alone leaves a float32 input as it is, and SDXL's group norms refuse the answer."""
    answered = set()
    follow = quantization.follow_autocast

    def watched(model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda _layer, _given, out: answered.add(out.dtype))
        return follow(model)

    monkeypatch.setattr(quantization, "follow_autocast", watched)
    more = "--quantize_base int8 --mixed_precision bf16 --max_train_steps 2 --dco_beta 100"
    out = backbone.train(tmp_path, more)
    assert answered == {torch.bfloat16}
    assert all(value.isfinite().all() for value in lora_of(out).values())


@pytest.mark.parametrize("backbone", ["flux", "klein", "zimage"], indirect=True)
def test_an_eight_bit_base_trains_saves_and_resumes_as_a_full_one(backbone, tmp_path):
    """torchao's int8 weights; the LoRA on top stays in float32."""
    more = "--quantize_base int8 --dco_beta 10 --gradient_checkpointing --checkpointing_steps 1"
    more += " --mixed_precision bf16"
    _, models = backbone.loaded(tmp_path, more)
    modules = models.adapted["transformer"].named_modules()
    weights = [module.weight for name, module in modules if name.endswith(".to_q")]
    assert all(type(weight).__module__.startswith("torchao") for weight in weights) and weights
    straight = backbone.train(tmp_path / "straight", more, "--max_train_steps 2")
    (tmp_path / "resumed").mkdir()
    (straight / "checkpoint-1").rename(tmp_path / "resumed/checkpoint-1")
    resumed = backbone.train(
        tmp_path / "resumed", more, "--max_train_steps 2 --resume_from_checkpoint latest"
    )
    ends = [lora_of(folder / "checkpoint-2") for folder in (straight, resumed)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert {value.dtype for value in ends[0].values()} == {torch.float32}
    pipeline = backbone.pipeline_class.from_pretrained(backbone.base)
    pipeline.load_lora_weights(resumed)
