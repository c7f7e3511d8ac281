"""More than 2^31 and 2^32 elements: an offset that is cut to 32 bits reads or writes elsewhere.

The first, middle and last rows of each tensor are compared with the definition.
"""

import pytest
import torch
from oracle import (
    assert_gradient,
    assert_log_probabilities,
    assert_loss,
    definition,
    log_softmax_definition,
)

import powergrad_ext as pg

GIB = 2**30
CLASSES = 262144
SIZES = {"2^31": 2**31, "2^32": 2**32}
sizes = pytest.mark.parametrize("elements", SIZES.values(), ids=SIZES.keys())


def need(gib):
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


def make(shape):
    random = torch.Generator("cuda").manual_seed(0)
    logits = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    return logits.normal_(0.0, 3.0, generator=random)


def some_of(count):
    return [0, 1, count // 2, count - 2, count - 1]


@sizes
def test_rows(elements):
    need(7 * elements / 2**30 + 2)
    rows = elements // CLASSES + 3
    logits = make((rows, CLASSES)).requires_grad_()
    target = torch.arange(rows, device="cuda") * 16 % CLASSES
    loss = pg.cross_entropy(logits, target, reduction="none")
    grad_output = torch.linspace(0.5, 1.5, rows, device="cuda")
    loss.backward(grad_output)
    at = some_of(rows)
    expected = definition(logits[at], target[at], grad_output[at], alpha=0.3, reduction="none")
    assert_loss(loss[at], expected.loss)
    assert_gradient(logits.grad[at], expected.gradient, 1)


@sizes
def test_in_place(elements):
    need(4 * elements / 2**30 + 2)
    rows = elements // CLASSES + 3
    logits = make((rows, CLASSES)).add_(torch.zeros(()).requires_grad_())  # not a leaf
    target = torch.arange(rows, device="cuda")
    at = some_of(rows)
    kept = logits[at].detach()
    loss = pg.cross_entropy(logits, target, reduction="sum", inplace_backward=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.data_ptr() == logits.data_ptr()
    grad_output = torch.ones(len(at))
    expected = definition(kept, target[at], grad_output, alpha=0.3, reduction="none")
    assert_gradient(gradient[at], expected.gradient, 1)


@sizes
def test_inner_positions(elements):
    """(1, C, inner): a class is a whole row of positions away from the next."""
    need(7 * elements / 2**30 + 2)
    classes = 4096
    positions = elements // classes + 3
    logits = make((1, classes, positions)).requires_grad_()
    target = torch.arange(positions, device="cuda")[None] % classes
    loss = pg.cross_entropy(logits, target, reduction="none")
    loss.backward(torch.ones_like(loss))
    at = some_of(positions)
    expected = definition(
        logits[..., at], target[..., at], torch.ones(1, len(at)), alpha=0.3, reduction="none"
    )
    assert_loss(loss[..., at], expected.loss)
    assert_gradient(logits.grad[..., at], expected.gradient, 1)


@sizes
@pytest.mark.parametrize("dim", [0, 1], ids=["inner", "rows"])
def test_log_softmax(dim, elements):
    need(9 * elements / 2**30 + 2)
    other = elements // CLASSES + 3
    logits = make((CLASSES, other) if dim == 0 else (other, CLASSES)).requires_grad_()
    output = pg.log_softmax(logits, dim)
    (gradient,) = torch.autograd.grad(output, logits, output.detach())
    at = (slice(None), some_of(other)) if dim == 0 else some_of(other)
    seen = output.detach()[at]
    expected, expected_gradient, terms = log_softmax_definition(logits[at], dim, seen, 0.3)
    assert_log_probabilities(seen, expected)
    assert_gradient(gradient[at], expected_gradient, dim, terms)


def test_more_rows_than_int32_counts():
    need(62)
    rows = 2**31 + 5
    logits = make((rows, 2)).requires_grad_()
    target = torch.ones(rows, dtype=torch.int32, device="cuda")
    loss = pg.cross_entropy(logits, target, reduction="sum")
    loss.backward()
    at = some_of(rows)
    grad_output = torch.ones(len(at))
    expected = definition(logits[at], target[at], grad_output, alpha=0.3, reduction="none")
    assert_gradient(logits.grad[at], expected.gradient, 1)
