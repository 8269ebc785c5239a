import math

import pytest
import torch
from torch import Tensor

from mudi.losses import dco_loss, latent_weight, masked_mse, min_snr_weight, soft_mask

MASK = torch.tensor([[1.0, 0.0], [0.5, 1.0]])[None, None]  # (1, 1, 2, 2)


def test_masked_mse_of_2x2_by_hand():
    pred = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    # The weighted squares are 1, 0, 4.5 and 16; their mean is 21.5/4
    assert masked_mse(pred, torch.zeros_like(pred), MASK).tolist() == [5.375]


def test_masked_mse_keeps_samples_apart_and_averages_over_channels():
    pred = torch.zeros(2, 2, 2, 2)
    pred[0, 0], pred[0, 1], pred[1, 1] = 1.0, 3.0, 2.0
    weight = torch.cat([torch.ones(1, 1, 2, 2), MASK])
    # (4 * 1 + 4 * 9) / 8, and (0 + 4 * (1 + 0 + 0.5 + 1)) / 8
    assert masked_mse(pred, torch.zeros_like(pred), weight).tolist() == [5.0, 1.25]


def test_weight_1_is_the_plain_mean_squared_error():
    pred, target = torch.randn(2, 3, 4, 4, 4, generator=torch.manual_seed(0))
    expected = [torch.nn.functional.mse_loss(p, t) for p, t in zip(pred, target, strict=True)]
    torch.testing.assert_close(
        masked_mse(pred, target, torch.ones(3, 1, 4, 4)), torch.stack(expected)
    )


def test_masked_mse_is_float32_where_half_precision_would_overflow():
    pred = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)  # 300^2 > 65504
    loss = masked_mse(pred, torch.zeros_like(pred), torch.ones(1, 1, 2, 2))
    assert loss.dtype == torch.float32
    assert loss.tolist() == [90_000.0]


def test_masked_mse_subtracts_in_float32():
    pred = torch.full((1, 4, 2, 2), 256.0, dtype=torch.bfloat16)
    target = torch.full_like(pred, 0.5)  # bfloat16 rounds 255.5 to 256
    assert masked_mse(pred, target, torch.ones(1, 1, 2, 2)).tolist() == [255.5**2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_inputs_are_float32(dtype):
    half = torch.ones(2, 4, 2, 2, dtype=dtype)
    assert masked_mse(half, half, torch.ones(2, 1, 2, 2, dtype=dtype)).dtype == torch.float32
    assert dco_loss(half[:, 0, 0, 0], half[:, 0, 0, 0], 1000.0).dtype == torch.float32
    assert min_snr_weight(half[:, 0, 0, 0], 5.0, "epsilon").dtype == torch.float32


@pytest.mark.parametrize(
    "soft_alpha, expected",
    [
        (1.0, [[1.0, 1.0], [1.0, 1.0]]),
        (0.0, [[1.0, 0.0], [0.5, 1.0]]),
        (0.2, [[1.0, 0.2], [0.6, 1.0]]),  # 0.5 * 0.8 + 0.2
    ],
)
def test_soft_mask_by_hand(soft_alpha, expected):
    torch.testing.assert_close(soft_mask(MASK, soft_alpha)[0, 0], torch.tensor(expected))


def test_latent_weight_of_4x4_is_the_softened_mean_of_each_quarter():
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    weight = latent_weight(mask[None, None], (2, 2), 0.5)
    # the quarters' means are 0.75, 0, 0, 0.25; half of each, and a half
    torch.testing.assert_close(weight, torch.tensor([[0.875, 0.5], [0.5, 0.625]])[None, None])


def test_a_mask_that_bilinear_sampling_misses_still_weighs():
    """Of 8 columns it reads the middle two: of wires in column 0, 1/8 of the area is left."""
    masks = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    masks[0, ..., 0] = True
    masks[1, ..., [0, 3]] = True  # column 3 is read: as published
    weight = latent_weight(masks, (2, 2), 0.0)
    assert weight[0, 0].tolist() == [[0.125, 0.0]] * 2
    assert weight[1, 0].tolist() == [[0.5, 0.0]] * 2
    assert weight[2, 0].tolist() == [[0.0, 0.0]] * 2


def test_latent_weight_of_an_unmixed_photo_is_1_everywhere():
    for soft_alpha in (0.0, 0.3, 1.0):
        weight = latent_weight(torch.ones(2, 1, 64, 64).bool(), (8, 8), soft_alpha)
        torch.testing.assert_close(weight, torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize("beta", [1.0, 1000.0])
def test_dco_of_equal_errors_is_log_2(beta):
    error = torch.tensor([0.0, 0.1, 7.0])
    assert dco_loss(error, error, beta).tolist() == pytest.approx([math.log(2)] * 3)


def test_dco_by_hand_keeps_samples_apart():
    loss, reference = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])
    # -log sigmoid(-x) = log(1 + e^x) at x = 2 * 0.5 and x = 2 * -0.5
    expected = [math.log(1 + math.e), math.log(1 + 1 / math.e)]
    assert dco_loss(loss, reference, 2.0).tolist() == pytest.approx(expected)


def test_dco_of_a_large_difference_does_not_overflow():
    result = dco_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 1000.0)
    assert result.tolist() == pytest.approx([1000.0, 0.0])


def test_the_gradient_of_dco_is_beta_times_sigma_of_the_difference():
    loss = torch.tensor([0.5, 1.0], requires_grad=True)
    dco_loss(loss, torch.tensor([0.5, 0.5]), 2.0).sum().backward()
    # twice sigma(0) = 1/2, and twice sigma(2 * 0.5)
    assert loss.grad.tolist() == pytest.approx([1.0, 2 / (1 + math.exp(-1))])


def gradient_in(loss_of: str, soft_alpha: float) -> Tensor:
    """Return |d loss / d pred| (8, 8) of a sample whose left half is subject."""
    pred, target, base = torch.randn(3, 1, 4, 8, 8, generator=torch.manual_seed(0))
    pred.requires_grad_()
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., :32] = True
    weight = latent_weight(mask, (8, 8), soft_alpha)
    loss = masked_mse(pred, target, weight)
    if loss_of == "dco":
        loss = dco_loss(loss, masked_mse(base, target, weight), 1.0)
    loss.sum().backward()
    return pred.grad.abs().sum(dim=1)[0]


@pytest.mark.parametrize("loss_of", ["mse", "dco"])
def test_a_masked_out_region_has_zero_gradient_at_soft_alpha_0(loss_of):
    gradient = gradient_in(loss_of, soft_alpha=0.0)
    assert (gradient[:, 4:] == 0).all()
    assert (gradient[:, :4] > 0).all()
    assert (gradient_in(loss_of, soft_alpha=0.1) > 0).all()


SNR = torch.tensor([1.0, 5.0, 20.0, 0.0])


def test_min_snr_weights_by_hand():
    # min(SNR, 5) / SNR; the limit at SNR 0 is 1
    assert min_snr_weight(SNR, 5.0, "epsilon").tolist() == [1.0, 1.0, 0.25, 1.0]


def test_min_snr_weights_of_v_prediction_are_one_more():
    assert min_snr_weight(SNR, 5.0, "v_prediction").tolist() == [2.0, 2.0, 1.25, 2.0]


def test_min_snr_of_another_prediction_is_an_error():
    with pytest.raises(ValueError, match="'sample'"):
        min_snr_weight(SNR, 5.0, "sample")
