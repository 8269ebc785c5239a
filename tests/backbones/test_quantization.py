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
