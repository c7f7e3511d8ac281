"""Rows of two classes, of which a CPU keeps everything in registers: every pair of values."""

import itertools
import math

import pytest
import torch
from cases import LAYOUTS
from oracle import accumulation_type, assert_gradient, assert_loss, definition

import powergrad_ext as pg

INF, NAN = math.inf, math.nan
VALUES = [0.0, -0.0, 1.0, 1.015625, -2.5, 24.0, 70.0, -INF, INF, NAN]


def every_pair(dtype, device, ignore_index, index_type=torch.int64):
    """(N, 2) logits and (N) targets: each pair of values with either class and with none."""
    largest = torch.finfo(dtype).max / 2  # of which a difference is a loss
    values = [*VALUES, largest, -largest]
    cases = list(itertools.product(values, values, (0, 1, ignore_index)))
    rows = torch.tensor([case[:2] for case in cases], dtype=torch.float64).to(device, dtype)
    target = torch.tensor([case[2] for case in cases], dtype=index_type, device=device)
    return rows, target


def solve(rows, target, layout, reduction, grad_output, **options):
    """The loss, and the gradients as rows."""
    inner = layout == "inner"
    logits = (rows.T[None].contiguous() if inner else rows).detach().requires_grad_()
    loss = pg.cross_entropy(
        logits, target[None] if inner else target, reduction=reduction, **options
    )
    (gradients,) = torch.autograd.grad(loss, logits, torch.full_like(loss, grad_output))
    return loss.detach(), gradients[0].T if inner else gradients


@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.7, 3.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pair(layout, alpha, ignore_index, dtype, device, isa):
    rows, target = every_pair(dtype, device, ignore_index)
    options = {"alpha": alpha, "ignore_index": ignore_index}
    grad_output = torch.full((len(rows),), -1.75)
    expected = definition(rows, target, grad_output, reduction="none", **options)
    for reduction in ("sum", "none"):
        loss, gradients = solve(rows, target, layout, reduction, -1.75, **options)
        assert_gradient(gradients, expected.gradient, 1)
    assert_loss(loss.reshape(-1), expected.loss)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mean_of_finite_rows(layout, index_type, dtype, device, isa):
    """With class weights; of as many rows as make a partial vector, and several blocks of rows."""
    rows, target = every_pair(dtype, device, -100, index_type)
    finite = rows.abs().amax(1) <= 70
    rows, target = (x[finite].repeat(61, *[1] * (x.dim() - 1)) for x in (rows, target))
    weight = torch.tensor([0.25, 1.5], dtype=accumulation_type(dtype), device=device)
    loss, gradients = solve(rows, target, layout, "mean", 3.0, alpha=0.3, weight=weight)
    expected = definition(rows, target, torch.tensor(3.0), alpha=0.3, weight=weight)
    assert_loss(loss, expected.loss)
    assert_gradient(gradients, expected.gradient, 1)
