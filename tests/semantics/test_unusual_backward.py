"""Backward in the ways that are rare enough to be forgotten."""

import math

import pytest
import torch
import torch.nn.functional as F

import powergrad_ext as pg

TARGET = torch.tensor([0, 1, 2, -100])


def make_logits():
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_batch_of_upstream_gradients(inplace_backward):
    """is_grads_batched runs backward under vmap."""
    logits = make_logits()
    upstreams = torch.tensor([1.0, 2.0, -1.0])
    loss = pg.cross_entropy(logits, TARGET, alpha=1.0, inplace_backward=inplace_backward)
    (ours,) = torch.autograd.grad(loss, logits, upstreams, is_grads_batched=True)
    expected = F.cross_entropy(logits, TARGET)
    (right,) = torch.autograd.grad(expected, logits, upstreams, is_grads_batched=True)
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("upstream", [math.inf, math.nan])
def test_ignored_rows_under_an_upstream_that_is_not_finite(upstream):
    logits = make_logits()
    pg.cross_entropy(logits, TARGET).backward(torch.tensor(upstream))
    assert torch.equal(logits.grad[3], torch.zeros(5))
    assert not logits.grad[:3].isfinite().any()


def test_second_order_with_every_row_ignored():
    """The mean divides by 0, and no row asks for it."""
    logits = make_logits()
    loss = pg.cross_entropy(logits, torch.full((4,), -100))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), logits)
    assert torch.equal(second, torch.zeros(4, 5))


def test_raw_operator_in_place_tells_who_saved_the_logits():
    logits = torch.randn(4, 5, requires_grad=True)
    middle = logits * 1.0
    squares = middle.square().sum()  # saves middle
    alpha = torch.tensor(0.3)
    with torch.no_grad():
        _, statistics, total = torch.ops.powergrad.cross_entropy_forward(
            middle, TARGET, None, -100, "mean", 0.0, alpha, True
        )
        torch.ops.powergrad.cross_entropy_backward_(
            middle, torch.ones(()), TARGET, None, -100, "mean", 0.0, alpha, statistics, total
        )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


def test_more_classes_than_float_can_number():
    """Across rows classes are numbered in float: past 2**24 another layout has to be read."""
    logits = torch.zeros(2**24 + 50, 2, dtype=torch.bfloat16)
    logits[-1] = 1.0
    value = pg.log_softmax(logits, 0)[-1].float()
    expected = 1.0 - math.log(2**24 + 49 + math.e)
    torch.testing.assert_close(value, torch.full((2,), expected), rtol=2**-8, atol=0.0)


def test_no_kernels_for_the_device():
    """What a CUDA tensor meets in a build without CUDA kernels; the key is enough to see it."""
    if pg._native._C.cuda_architectures():
        pytest.skip("this build has CUDA kernels")
    operator = torch.ops.powergrad.cross_entropy_forward.default
    fake = torch.empty(4, 5, device="meta")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(NotImplementedError, match="without kernels"):
        operator.redispatch(keys, fake, TARGET, None, -100, "mean", 0.0, torch.tensor(0.3), True)
