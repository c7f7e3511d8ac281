"""Backward in the ways that are rare enough to be forgotten."""

import math

import pytest
import torch
import torch.nn.functional as F

import powergrad_ext as pg
from powergrad_ext.options import Options

TARGET = torch.tensor([0, 1, 2, -100])


def make_logits(device):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    return logits.to(device).requires_grad_()


@pytest.mark.parametrize("inplace_backward", [False, True])
def test_batch_of_grad_outputs(inplace_backward, device):
    """is_grads_batched runs backward under vmap."""
    logits, target = make_logits(device), TARGET.to(device)
    grad_outputs = torch.tensor([1.0, 2.0, -1.0], device=device)
    loss = pg.cross_entropy(logits, target, alpha=1.0, inplace_backward=inplace_backward)
    (ours,) = torch.autograd.grad(loss, logits, grad_outputs, is_grads_batched=True)
    expected = F.cross_entropy(logits, target)
    (right,) = torch.autograd.grad(expected, logits, grad_outputs, is_grads_batched=True)
    torch.testing.assert_close(ours, right)


def test_more_classes_than_float_can_number(device):
    """Across rows classes are numbered in float: past 2**24 another layout has to be read."""
    logits = torch.zeros(2**24 + 50, 2, dtype=torch.bfloat16, device=device)
    logits[-1] = 1.0
    value = pg.log_softmax(logits, 0)[-1].float()
    expected = 1.0 - math.log(2**24 + 49 + math.e)
    torch.testing.assert_close(value, torch.full_like(value, expected), rtol=2**-8, atol=0.0)


def test_more_classes_than_float_can_number_are_not_overwritten_in_place(device):
    """They are copied to be read, so their own memory is not in the layout of the gradient."""
    logits = torch.zeros(1, 2**24 + 1, 2, dtype=torch.bfloat16, device=device).requires_grad_()
    target = torch.zeros(1, 2, dtype=torch.int64, device=device)
    loss = pg.cross_entropy(logits * 1.0, target, reduction="sum", inplace_backward=True)
    loss.backward()
    assert torch.equal(logits.grad[0, 0].float(), torch.full((2,), -1.0, device=device))
    assert logits.grad[0, 1:].abs().max() < 1e-6


def test_no_kernels_for_the_device():
    """A device that nothing was built for is named; the key alone brings the call there."""
    if pg._native._C.cuda_architectures():
        pytest.skip("this build has CUDA kernels")
    operator = torch.ops.powergrad.cross_entropy_forward.default
    fake = torch.empty(4, 5, device="meta")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(NotImplementedError, match="no kernels for meta"):
        operator.redispatch(keys, fake, TARGET, *Options(alpha=torch.tensor(0.3)), True)
