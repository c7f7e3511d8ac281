"""Rows whose target is nearly certain: p' - 1 keeps its digits, and so does the loss.

1 - p' is as small as 1e-9 at alpha = 0.3, and 1e-32 at alpha = 1. Rounded before the target is
subtracted, p' would be 1 in bfloat16 from 1 - p' = 2e-3 on, in float32 from 6e-8 on, and the
gradient 0. So the bound is that of every other row: relative to the row's own, small, gradients.
"""

import pytest
import torch
from cases import LAYOUTS, solve_rows
from oracle import accumulation_type, assert_gradient, assert_loss, definition

CLASSES = 40
CERTAIN = 7
# How far the certain class is above the rest; 1 - p' is about 40 exp(-alpha margin).
MARGINS = torch.tensor([20.0, 33.0, 50.0, 60.0, 78.0])


def assert_accurate(layout, dtype, device, target=CERTAIN, alpha=0.3, weight=None, smoothing=0.0):
    rows = torch.linspace(-1.0, 0.0, CLASSES).repeat(len(MARGINS), 1)
    rows[:, CERTAIN] = MARGINS
    rows = rows.to(device, dtype)
    targets = torch.full(MARGINS.shape, target, device=device)
    losses, gradients = solve_rows(
        rows, targets, layout, weight, label_smoothing=smoothing, alpha=alpha
    )

    expected = definition(
        rows,
        targets,
        torch.ones(len(rows)),
        alpha=alpha,
        weight=weight,
        reduction="none",
        label_smoothing=smoothing,
    )
    assert_loss(losses, expected.loss)
    assert_gradient(gradients, expected.gradient, 1)


@pytest.mark.parametrize("alpha", [0.3, 0.25, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_certain_and_right(layout, alpha, dtype, device, isa):
    assert_accurate(layout, dtype, device, alpha=alpha)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_certain_and_wrong(layout, dtype, device, isa):
    """The other end: p' of the target vanishes, and p' of the maximum is nearly 1."""
    assert_accurate(layout, dtype, device, target=3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_smoothing(layout, dtype, device, isa):
    assert_accurate(layout, dtype, device, smoothing=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_weights(layout, dtype, device, isa):
    weight = torch.linspace(0.5, 2.0, CLASSES, dtype=accumulation_type(dtype), device=device)
    assert_accurate(layout, dtype, device, weight=weight)
