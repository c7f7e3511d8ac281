"""return_metrics: log-probabilities, entropies and hits, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from row_options import IGNORED, SHAPES, assert_near, make_rows, metrics_of

import powergrad_ext as pg

TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}


def check(metrics, logits, target, row_weight=None):
    right = metrics_of(logits, target, row_weight)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    for metric, expected in zip(metrics[:2], right[:2], strict=True):
        assert metric.shape == target.shape
        assert metric.dtype == wide
        assert_near(metric, expected, TOLERANCE[logits.dtype])
    assert metrics.correct.dtype == torch.bool
    assert torch.equal(metrics.correct, right[2])
    assert not any(metric.requires_grad for metric in metrics)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("requires_grad", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("weighted_rows", [True, False], ids=["row weights", ""])
def test_metrics(weighted_rows, reduction, requires_grad, shape, dtype, device, isa):
    logits, target, row_weight = make_rows(shape, dtype, device)
    if logits.dim() > 1:  # a hit or two
        logits.select(1, 3)[:] = 20.0
        target.view(-1)[0] = 3
    row_weight = row_weight if weighted_rows else None
    leaf = logits.clone().requires_grad_(requires_grad)
    options = {"row_weight": row_weight, "reduction": reduction, "alpha": 0.4}
    loss, metrics = pg.cross_entropy(leaf, target, **options, return_metrics=True)
    assert isinstance(metrics, pg.RowMetrics)
    check(metrics, logits, target, row_weight)
    alone = pg.cross_entropy(leaf, target, **options)
    assert torch.equal(loss, alone)
    if requires_grad:
        grad_output = torch.randn_like(loss)
        with_metrics = torch.autograd.grad(loss, leaf, grad_output)
        assert torch.equal(with_metrics[0], torch.autograd.grad(alone, leaf, grad_output)[0])


@pytest.mark.parametrize("options", [{"z_loss": 0.3}, {"label_smoothing": 0.2}], ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.3, 1.43])
def test_they_are_those_of_softmax(alpha, options):
    """Whatever alpha and the loss are."""
    logits, target, _ = make_rows((9, 13), torch.float32)
    _, metrics = pg.cross_entropy(logits, target, alpha=alpha, **options, return_metrics=True)
    check(metrics, logits, target)


def test_confident_rows():
    """Neither is a difference of numbers near 1."""
    gaps = torch.tensor([5.0, 20.0, 40.0, 80.0])
    logits = torch.stack([gaps, torch.zeros(4), torch.full((4,), -math.inf)], 1)
    _, metrics = pg.cross_entropy(logits, torch.zeros(4).long(), return_metrics=True)
    e = torch.exp(-gaps.double())
    entropy = torch.log1p(e) + e * gaps.double() / (1 + e)
    torch.testing.assert_close(metrics.entropy.double(), entropy, rtol=4e-6, atol=0)
    torch.testing.assert_close(metrics.log_prob.double(), -torch.log1p(e), rtol=4e-6, atol=0)
    assert metrics.correct.all()


@pytest.mark.parametrize("kept", [slice(0, 5), slice(3000, 3007), slice(5990, 6000)], ids=str)
@pytest.mark.parametrize("shape", [(2, 6000), (2, 6000, 3)], ids=["rows", "strided"])
def test_classes_masked_by_the_least_number(shape, kept, dtype, device, isa):
    """Whose difference to the maximum overflows: a column block of them, and a tile."""
    logits = torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    logits[:, kept] = torch.randn_like(logits[:, kept])
    target = torch.full((2, *shape[2:]), kept.start, device=device)
    check(pg.cross_entropy(logits, target, return_metrics=True)[1], logits, target)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_few_classes_masked_by_the_least_number(classes, dtype, device, isa):
    logits = torch.full((37, classes), torch.finfo(dtype).min, dtype=dtype, device=device)
    logits[:, 1] = 0.5
    target = torch.ones(37, dtype=torch.int64, device=device)
    check(pg.cross_entropy(logits, target, return_metrics=True)[1], logits, target)


@pytest.mark.parametrize("row", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_rows_that_are_nan(row):
    logits = torch.tensor([row, [0.0, 1.0]])
    loss, metrics = pg.cross_entropy(
        logits, torch.tensor([0, 1]), reduction="none", return_metrics=True
    )
    assert loss.isnan().tolist() == [True, False]
    assert metrics.log_prob.isnan().tolist() == [True, False]
    assert metrics.entropy.isnan().tolist() == [True, False]
    assert metrics.correct.tolist() == [False, True]


def test_ties_and_masked_targets():
    """Any class that has the maximum is a hit; a target at -infinity has log-probability so."""
    logits = torch.tensor([[2.0, 2.0, -math.inf]] * 3)
    _, metrics = pg.cross_entropy(logits, torch.tensor([0, 1, 2]), return_metrics=True)
    assert metrics.correct.tolist() == [True, True, False]
    assert metrics.log_prob[2] == -math.inf
    torch.testing.assert_close(metrics.entropy, torch.full((3,), math.log(2.0)))


def test_ignored_rows_may_hold_nan(device, isa):
    logits, target, _ = make_rows((9, 13), torch.float32, device)
    target[3] = IGNORED
    logits[3] = math.nan
    _, metrics = pg.cross_entropy(logits, target, return_metrics=True)
    assert [metric[3].item() for metric in metrics] == [0.0, 0.0, False]


def test_they_are_the_callers():
    """Writing into them does not disturb backward."""
    logits, target, row_weight = make_rows((9, 13), torch.float32)
    leaf = logits.requires_grad_()
    options = {"row_weight": row_weight, "reduction": "none", "z_loss": 0.1}
    loss, metrics = pg.cross_entropy(leaf, target, **options, return_metrics=True)
    for metric in metrics:
        metric.zero_()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    alone = pg.cross_entropy(leaf, target, **options).sum()
    assert torch.equal(gradient, torch.autograd.grad(alone, leaf)[0])


def test_no_rows():
    loss, metrics = pg.cross_entropy(
        torch.empty(0, 5), torch.empty(0).long(), reduction="sum", return_metrics=True
    )
    assert loss == 0
    assert [metric.shape for metric in metrics] == [(0,)] * 3


@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("function", [{}, {"logit_scale": 0.7, "softcap": 3.0}], ids=str)
def test_of_the_last_layer(function, reduction, chunk_rows):
    """Those of each row chunk in their place."""
    random = torch.Generator().manual_seed(1)
    input, weight = (
        torch.randn(shape, dtype=torch.float64, generator=random, requires_grad=True)
        for shape in ((9, 4), (7, 4))
    )
    target = torch.randint(7, (9,), generator=random)
    target[4] = IGNORED
    logits = F.linear(input, weight) * function.get("logit_scale", 1.0)
    if function:
        logits = 3.0 * torch.tanh(logits / 3.0)
    target[0] = logits[0].argmax()
    loss, metrics = pg.linear_cross_entropy(
        input,
        weight,
        target,
        reduction=reduction,
        chunk_rows=chunk_rows,
        **function,
        return_metrics=True,
    )
    check(metrics, logits, target)
    assert metrics.correct.any()
    alone = pg.linear_cross_entropy(
        input, weight, target, reduction=reduction, chunk_rows=chunk_rows, **function
    )
    assert torch.equal(loss, alone)
    for one, other in zip(
        torch.autograd.grad(loss.sum(), (input, weight)),
        torch.autograd.grad(alone.sum(), (input, weight)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_of_the_reference():
    for shape in SHAPES.values():
        logits, target, row_weight = make_rows(shape, torch.float64)
        for weights in (None, row_weight):
            _, metrics = pg.reference.cross_entropy(
                logits, target, row_weight=weights, return_metrics=True
            )
            check(metrics, logits, target, weights)
