"""What FlopCounterMode counts, against its count of F.linear and F.cross_entropy."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import powergrad_ext as pg

ROWS, FEATURES, CLASSES = 5, 4, 7
PRODUCT = 2 * ROWS * FEATURES * CLASSES


def unfused(input, linear_weight, target, *, linear_bias, **options):
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def count(function, backward, needs, **options):
    input, linear_weight, bias = (
        torch.randn(shape).requires_grad_(of_this)
        for shape, of_this in zip(
            [(ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,)], needs, strict=True
        )
    )
    target = torch.arange(ROWS)
    with FlopCounterMode(display=False) as counter:
        loss = function(input, linear_weight, target, linear_bias=bias, **options)
        loss = loss[0] if isinstance(loss, tuple) else loss
        if backward:
            loss.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, True), (True, False, False)])
@pytest.mark.parametrize("options", [{}, {"return_metrics": True}], ids=str)
def test_a_step_of_the_last_layer(options, needs, reduction):
    """The gradients' products are done in forward."""
    found = count(pg.linear_cross_entropy, True, needs, reduction=reduction, **options)
    assert found == count(unfused, True, needs, reduction=reduction) > PRODUCT


def test_without_gradients():
    with torch.no_grad():
        assert count(pg.linear_cross_entropy, False, (True, True, True)) == PRODUCT


def test_without_reduction_backward_makes_the_logits_again():
    needs = (True, True, False)
    found = count(pg.linear_cross_entropy, True, needs, reduction="none")
    assert found == count(unfused, True, needs, reduction="none") + PRODUCT
    assert count(pg.linear_cross_entropy, False, needs, reduction="none") == PRODUCT


def test_one_row():
    input, linear_weight = torch.randn(FEATURES), torch.randn(CLASSES, FEATURES)
    with FlopCounterMode(display=False) as counter:
        pg.linear_cross_entropy(input, linear_weight, torch.tensor(2))
    assert counter.get_total_flops() == PRODUCT // ROWS
