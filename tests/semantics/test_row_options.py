"""row_weight and z_loss of cross_entropy, against their definition in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from row_options import SHAPES, assert_near, loss_and_gradient, make_rows

import powergrad_ext as pg

# Of the largest number; half precision rounds the gradient.
LOSS = {torch.float64: 1e-13, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}
GRADIENT = LOSS | {torch.bfloat16: 2**-8, torch.float16: 2**-11 + 4e-6}
REDUCTIONS = ("none", "mean", "sum")
ROW_OPTIONS = {
    "row weights": {"weighted_rows": True},
    "z-loss": {"z_loss": 0.05},
    "both": {"weighted_rows": True, "z_loss": 0.05},
    "both, smoothed": {"weighted_rows": True, "z_loss": 1.5, "label_smoothing": 0.2},
}
row_options = pytest.mark.parametrize("options", ROW_OPTIONS.values(), ids=ROW_OPTIONS.keys())
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def check(logits, target, row_weight, alpha=0.3, weight=None, **options):
    if not options.pop("weighted_rows", False):
        row_weight = None
    leaf = logits.clone().requires_grad_()
    options = {"alpha": alpha, "weight": weight, "row_weight": row_weight, **options}
    loss = pg.cross_entropy(leaf, target, **options)
    grad_output = torch.randn(loss.shape, generator=torch.Generator().manual_seed(5)).to(loss)
    loss.backward(grad_output)
    right = loss_and_gradient(logits, target, grad_output, **options)
    assert_near(loss.detach(), right[0], LOSS[logits.dtype])
    assert_near(leaf.grad, right[1], GRADIENT[logits.dtype])


@shapes
@row_options
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "class weights"])
def test_class_indices(shape, options, weighted, reduction, dtype, device, isa):
    logits, target, row_weight = make_rows(shape, dtype, device)
    if options.get("label_smoothing"):  # of a class of probability 0 the loss is infinite
        logits.select(min(1, logits.dim() - 1), 0).fill_(0.25)
    classes = logits.shape[min(1, logits.dim() - 1)]
    weight = torch.linspace(0.5, 2.0, classes, device=device) if weighted else None
    check(logits, target, row_weight, weight=weight, reduction=reduction, **options)


@shapes
@row_options
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_probabilities(shape, options, reduction, dtype, device, isa):
    logits, _, row_weight = make_rows(shape, dtype, device)
    class_dim = min(1, logits.dim() - 1)
    logits.select(class_dim, 0).fill_(0.25)
    q = logits.float().flip(class_dim).softmax(class_dim).to(dtype)
    check(logits, q, row_weight, reduction=reduction, **options)


@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.5, 1.43])
@pytest.mark.parametrize("kind", ["rows", "strided"])
def test_alpha(kind, alpha, dtype, device, isa):
    rows = make_rows(SHAPES[kind], dtype, device)
    check(*rows, alpha=alpha, weighted_rows=True, z_loss=0.05)


@pytest.mark.parametrize("kind", ["int32", "uint8"])
@pytest.mark.parametrize("type_of_weight", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_of_targets_and_row_weights(kind, type_of_weight):
    logits, target, row_weight = make_rows((9, 13), torch.float32)
    target = target.clamp_min(0) if kind == "uint8" else target
    row_weight = row_weight.to(type_of_weight)
    check(logits, target.to(getattr(torch, kind)), row_weight, weighted_rows=True)


def strided(tensor):
    """The same numbers, two places apart and backwards in memory."""
    room = torch.empty((*tensor.shape, 2), dtype=tensor.dtype)[..., 0]
    return room.copy_(tensor)


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("change", [strided, channels_last])
def test_layouts(change, reduction):
    logits, target, row_weight = make_rows((2, 7, 3, 5), torch.float32)
    row_weight = strided(row_weight.mT.contiguous().mT)
    options = {"weighted_rows": True, "z_loss": 0.05, "reduction": reduction}
    check(change(logits), strided(target), row_weight, **options)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_gives_the_same_bits(reduction, dtype):
    logits, target, row_weight = make_rows((9, 13), dtype)
    leaf = logits.requires_grad_()
    loss = pg.cross_entropy(
        leaf, target, row_weight=row_weight, z_loss=0.1, reduction=reduction
    ).sum()
    once, again = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)


def test_options_of_the_reference():
    """The specification says the same."""
    logits, target, row_weight = make_rows((9, 13), torch.float64)
    cases = itertools.product(REDUCTIONS, (None, row_weight), (0.0, 0.05), (0.0, 0.1), (1.0, 0.3))
    for reduction, rows, z_loss, smoothing, alpha in cases:
        if smoothing:
            logits[:, 0] = 0.25
        options = {
            "row_weight": rows,
            "z_loss": z_loss,
            "label_smoothing": smoothing,
            "reduction": reduction,
            "alpha": alpha,
        }
        leaf = logits.clone().requires_grad_()
        loss = pg.reference.cross_entropy(leaf, target, **options)
        grad_output = torch.linspace(-1.0, 2.0, loss.numel()).double().reshape(loss.shape)
        (gradient,) = torch.autograd.grad(loss, leaf, grad_output)
        right = loss_and_gradient(logits, target, grad_output, **options)
        assert_near(loss.detach(), right[0], 1e-13)
        assert_near(gradient, right[1], 1e-13)
