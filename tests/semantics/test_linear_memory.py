"""What linear_cross_entropy allocates on its way, and what a loss that is kept holds on to."""

import math

import pytest
import torch
from allocations import allocations_of

import powergrad_ext as pg

H, C = 64, 2048


def make_layer(rows, dtype=torch.float32):
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=random).to(dtype).requires_grad_()
        for shape in ((rows, H), (C, H))
    ]


@pytest.mark.parametrize("rows", [128, 500, 1024, 1536, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_peak_of_a_step(dtype, rows):
    """As documented: an eighth of the logits, or 128 rows of them where that is more."""
    layer, target = make_layer(rows, dtype), torch.arange(rows) % C

    def step():
        pg.linear_cross_entropy(*layer, target).backward()

    step()  # what is allocated once in a process
    for each in layer:
        each.grad = None
    peak = allocations_of(step).peak - sum(each.nbytes for each in layer)
    chunk = max(128, rows / 8)
    allowed = chunk * C * dtype.itemsize
    if dtype != torch.float32:
        allowed += C * H * 4 + chunk * (512 + H) * 4 + 512 * H * 4
    if dtype == torch.float16:  # torch's product makes a float32 copy of its factors
        allowed += chunk * C * 4 + C * H * 4
    allowed += 128 * rows  # losses, statistics
    assert peak <= allowed
    if rows == 5000:
        assert allowed < rows * C * dtype.itemsize * 0.6


def linear(rows, ignored=False):
    layer = make_layer(rows)
    target = torch.full((rows,), -100) if ignored else torch.arange(rows) % C
    return lambda: pg.linear_cross_entropy(*layer, target), layer


def of_logits(rows):
    (_, logits), target = make_layer(rows), torch.arange(C) % H
    return lambda: pg.cross_entropy(logits, target), [logits]


def of_probabilities(rows):
    target = torch.rand(rows, C, requires_grad=True)
    logits = torch.randn(rows, C, requires_grad=True)
    return lambda: pg.cross_entropy(logits, target), [target]


KEPT = {
    "linear": (linear, 1.0),
    "linear, infinite": (linear, math.inf),
    "linear, nan": (linear, math.nan),
    "linear, all ignored": (lambda rows: linear(rows, True), 1.0),
    "logits": (of_logits, 1.0),
    "logits, infinite": (of_logits, math.inf),
    "logits, nan": (of_logits, math.nan),
    "the target's gradient alone": (of_probabilities, 1.0),
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["", "create_graph"])
@pytest.mark.parametrize(("make", "value"), KEPT.values(), ids=KEPT.keys())
def test_a_kept_loss_keeps_no_gradient(make, value, create_graph):
    """As torch's, of whose graph backward leaves nothing; here a bit for each row."""
    loss_of, tensors = make(256)

    def step():
        loss = loss_of()
        grad_output = torch.tensor(value)
        torch.autograd.grad(
            loss, tensors, grad_output, create_graph=create_graph, retain_graph=False
        )
        return loss

    step()
    assert allocations_of(step).left < 4096


def test_kept_gradients_are_seen():
    """Before backward they are there: the test above can fail."""
    loss_of, tensors = linear(256)
    assert allocations_of(loss_of).left >= sum(tensor.nbytes for tensor in tensors)
