"""row_weight and z_loss of cross_entropy, alone and with the other options."""

from __future__ import annotations

import math

import pytest
import torch
from cases import check, make_problem
from row_options import SHAPES, make_rows

import powergrad_ext as pg

REDUCTIONS = ("none", "mean", "sum")
ROW_OPTIONS = {
    "row weights": {"weighted_rows": True},
    "z-loss": {"z_loss": 0.05},
    "both": {"weighted_rows": True, "z_loss": 0.05},
    "both, smoothed": {"weighted_rows": True, "z_loss": 1.5, "label_smoothing": 0.2},
}
row_options = pytest.mark.parametrize("options", ROW_OPTIONS.values(), ids=ROW_OPTIONS.keys())
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@shapes
@row_options
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "class weights"])
@pytest.mark.parametrize("targets", ["int64", "probabilities"])
def test_every_option(targets, weighted, reduction, options, shape, dtype, device, isa):
    problem = make_problem(
        shape, dtype, device, targets=targets, weighted=weighted, reduction=reduction, **options
    )
    check(problem)
    if targets == "int64" and not options.get("label_smoothing"):  # else the loss is infinite
        problem.logits.select(problem.class_dim, 0).fill_(-math.inf)
        problem.target[problem.target == 0] = 1
        check(problem)


@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.5, 1.43])
@pytest.mark.parametrize("kind", ["rows", "strided"])
def test_alpha(kind, alpha, dtype, device, isa):
    options = {"alpha": alpha, "weighted_rows": True, "z_loss": 0.05}
    check(make_problem(SHAPES[kind], dtype, device, **options))


@pytest.mark.parametrize("dtype_of_weight", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_of_row_weights(dtype_of_weight, device):
    problem = make_problem((9, 13), torch.float32, device, weighted_rows=True)
    problem.options["row_weight"] = problem.options["row_weight"].to(dtype_of_weight)
    check(problem)


@pytest.mark.parametrize("shape", [(9, 13), (3, 4100), (2, 7, 3, 5)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_of_weight_zero_are_skipped(reduction, bad, shape, device, isa):
    """Whatever their logits and targets are."""
    logits, target, row_weight = make_rows(shape, torch.float32, device)
    skipped = row_weight == 0
    odd = logits.masked_fill(skipped.unsqueeze(1), bad)
    odd_target = torch.where(skipped, 10**9, target)
    options = {"row_weight": row_weight, "z_loss": 0.1, "reduction": reduction}
    results = []
    for z, y in ((odd, odd_target), (logits, target)):
        leaf = z.clone().requires_grad_()
        loss, metrics = pg.cross_entropy(leaf, y, **options, return_metrics=True)
        loss.backward(torch.full_like(loss, 1.7))
        results.append((loss, leaf.grad, *metrics))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert not results[0][1][skipped.unsqueeze(1).expand_as(logits)].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_row_that_counts(reduction, device):
    """A mean is NaN, as torch's, and gradients are 0."""
    logits, target, row_weight = make_rows((5, 7), torch.float32, device)
    leaf = logits.requires_grad_()
    loss = pg.cross_entropy(
        leaf, target, row_weight=torch.zeros_like(row_weight), z_loss=0.1, reduction=reduction
    )
    loss.backward(torch.ones_like(loss))
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert not leaf.grad.any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_whole_numbers_are_repeated_rows(reduction):
    """Without a formula: a row of weight 3 is there three times, one of weight 0 is not."""
    logits, target, _ = make_rows((9, 13), torch.float64)
    times = torch.tensor([3, 0, 1, 2, 0, 1, 1, 4, 2])
    repeated = torch.repeat_interleave(logits, times, 0).requires_grad_()
    leaf = logits.requires_grad_()
    options = {"label_smoothing": 0.0, "alpha": 0.4, "weight": torch.linspace(0.5, 2.0, 13)}
    loss = pg.cross_entropy(leaf, target, row_weight=times.double(), reduction=reduction, **options)
    expected = pg.cross_entropy(
        repeated,
        torch.repeat_interleave(target, times, 0),
        reduction="sum" if reduction == "none" else reduction,
        **options,
    )
    torch.testing.assert_close(loss.sum(), expected)
    loss.sum().backward()
    expected.backward()
    index = torch.repeat_interleave(torch.arange(9), times)
    together = torch.zeros_like(logits).index_add(0, index, repeated.grad)
    torch.testing.assert_close(leaf.grad, together)


def test_z_loss_by_autograd():
    """At alpha = 1 the gradient is the value's derivative."""
    logits, target, row_weight = make_rows((9, 13), torch.float64)
    logits[:, 0] = 0.5
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: pg.cross_entropy(
            z, target, alpha=1.0, row_weight=row_weight, z_loss=0.3, label_smoothing=0.1
        ),
        leaf,
    )


def test_weights_that_float32_rounds_to_0():
    """Are 0 for all who ask: the loss, its mean and its derivatives, also under vmap."""
    logits, target = torch.linspace(-1.0, 2.0, 12).view(3, 4), torch.tensor([0, 3, 1])
    tiny = torch.tensor([1.0, 1e-60, 1.0], dtype=torch.float64)
    options = {"row_weight": tiny, "z_loss": 0.1}
    expected = pg.cross_entropy(logits, target, row_weight=(tiny > 0.5).double(), z_loss=0.1)
    torch.testing.assert_close(pg.cross_entropy(logits, target, **options), expected)
    stacked = torch.func.vmap(lambda z: pg.cross_entropy(z, target, **options))(logits[None])
    torch.testing.assert_close(stacked[0], expected)
