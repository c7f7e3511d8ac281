"""A step of the loss takes no more memory than F.cross_entropy's."""

import pytest
import torch
import torch.nn.functional as F

import powergrad_ext as pg

SHAPES = {"a language model": (2048, 32000), "ImageNet": (8192, 1000), "images": (8, 21, 256, 256)}


def peak(loss_of, shape, dtype):
    """Bytes of a forward and backward, beyond the logits and targets."""
    # Not a leaf, as those of a model: in its place nothing is written.
    logits = torch.randn(shape, device="cuda", dtype=dtype).add_(torch.zeros(()).requires_grad_())
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(loss_of(logits, target), logits)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak(dtype, shape):
    assert peak(pg.cross_entropy, shape, dtype) <= peak(F.cross_entropy, shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_place_only_a_few_numbers_per_row(dtype):
    rows = SHAPES["a language model"][0]
    taken = peak(lambda z, t: pg.cross_entropy(z, t, inplace_backward=True), (rows, 32000), dtype)
    assert taken <= 64 * rows
