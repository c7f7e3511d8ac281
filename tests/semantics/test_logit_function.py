"""logit_scale and softcap of linear_cross_entropy, by the definition in float64.

The logits are softcap tanh(logit_scale (x W^T + b) / softcap).
"""

from __future__ import annotations

import copy
import io
import itertools
import math

import linear
import pytest
import torch
import torch.nn.functional as F
from allocations import allocations_of
from linear import ALPHA, TOLERANCE, expected, make_grad_output
from torch.utils.checkpoint import checkpoint

import powergrad_ext as pg

ROWS, FEATURES, CLASSES = 45, 14, 29
FUNCTIONS = [
    {"softcap": 5.0},
    {"logit_scale": 0.3},
    {"logit_scale": -1.7, "softcap": 3.0},
    {"logit_scale": 0.0, "softcap": 2.0},
]
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=str)


def make_layer(dtype=torch.float64):
    layer = linear.make_layer(ROWS, FEATURES, CLASSES, dtype)
    return [each.requires_grad_() for each in layer]


def make_target():
    target = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(3))
    target[::6] = -100
    return target


def logits_of(input, weight, bias, logit_scale=1.0, softcap=None):
    z = logit_scale * F.linear(input, weight, bias)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def ours(target, **options):
    return linear.ours(target, **{"chunk_rows": 11} | options)


def solved(loss, layer, **options):
    return loss.detach(), torch.autograd.grad(loss, layer, make_grad_output(loss), **options)


def assert_right(found, right, dtype=torch.float64):
    of_value = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(found[0].double(), right[0], rtol=of_value, atol=of_value)
    for mine, wanted in zip(found[1], right[1], strict=True):
        assert mine.dtype == dtype
        largest = float(wanted.abs().max())
        torch.testing.assert_close(
            mine.double(), wanted, rtol=0.0, atol=1.5 * TOLERANCE[dtype] * largest + 1e-15
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@functions
def test_gradients(function, dtype, reduction):
    """With other options see test_linear_cross_entropy.py."""
    layer, target = make_layer(dtype), make_target()
    options = {"reduction": reduction, **function}
    right = expected(target, layer, **options)
    assert_right(solved(ours(target, **options)(*layer), layer), right, dtype)


@functions
def test_saturated_logits(function):
    """tanh is 1 and its derivative 0 where the layer's output is far beyond the cap."""
    layer, target = make_layer(torch.float32), make_target()
    with torch.no_grad():
        layer[0][3] *= 1e4
    right = expected(target, layer, **function)
    found = solved(ours(target, **function)(*layer), layer)
    assert_right(found, right, torch.float32)
    assert all(each.isfinite().all() for each in found[1])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@functions
def test_each_way_to_the_gradients(function, reduction):
    """A checkpoint, a single row, more dimensions, create_graph, torch.func, the compiler."""
    layer, target = make_layer(), make_target()
    options = {"reduction": reduction, **function}
    right, loss = expected(target, layer, **options), ours(target, **options)
    assert_right(solved(checkpoint(loss, *layer, use_reentrant=False), layer), right)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_right(solved(compiled(*layer), layer), right)
    kept = loss(*layer)
    for _ in range(2):
        assert_right(solved(kept, layer, retain_graph=True), right)
    assert_right(solved(kept, layer, create_graph=True), right)
    grad_output = make_grad_output(right[0])
    by_func = torch.func.grad(lambda *t: (loss(*t) * grad_output).sum(), (0, 1, 2))(*layer)
    assert_right((right[0], by_func), right)

    row = [layer[0][1].detach().requires_grad_(), *layer[1:]]
    found = solved(ours(target[1], **options)(*row), row)
    assert_right(found, expected(target[1], row, **options))
    many = [layer[0], layer[1][:28].unflatten(0, (7, 4)), layer[2][:28].unflatten(0, (7, 4))]
    classes = torch.arange(4 * ROWS).reshape(ROWS, 4) % 7
    flat = logits_of(layer[0], layer[1][:28], layer[2][:28], **function).unflatten(1, (7, 4))
    wanted = pg.cross_entropy(flat, classes, reduction=reduction, alpha=ALPHA)
    assert_right(solved(ours(classes, **options)(*many), layer), solved(wanted, layer))


@functions
def test_second_order(function):
    layer, target = make_layer(), make_target()

    def second(loss):
        first = torch.autograd.grad(loss, layer, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), layer)

    right = second(pg.cross_entropy(logits_of(*layer, **function), target, alpha=ALPHA))
    found = second(ours(target, **function)(*layer))
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)


@functions
def test_a_module(function):
    x, target = make_layer(torch.float32)[0], make_target()
    made = pg.PowerGradLinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, alpha=ALPHA, **function)
    right = ours(target, **function)(x, made.linear.weight, made.linear.bias)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(made), file)
    file.seek(0)
    for each in (made, copy.deepcopy(made), torch.jit.load(file)):
        torch.testing.assert_close(each(x, target), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype):
    """The cap adds an eighth of a chunk."""
    rows, classes = 4096, 1024
    input = torch.randn(rows, 32, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, 32, dtype=dtype, requires_grad=True)
    target = torch.arange(rows) % classes

    def peak(**function):
        def step():
            loss = pg.linear_cross_entropy(input, weight, target, **function)
            torch.autograd.grad(loss, (input, weight))

        step()
        return allocations_of(step).peak

    chunk = rows / (12 if dtype == torch.float32 else 8)
    plain = peak()
    assert peak(logit_scale=0.5) <= plain + 4096
    assert peak(softcap=30.0) <= plain + chunk / 8 * classes * dtype.itemsize * 1.1


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"softcap": 0.0}, ValueError, "'softcap' must be None, or finite and greater than 0"),
        ({"softcap": -1.0}, ValueError, "'softcap' must be .* got -1"),
        ({"softcap": math.nan}, ValueError, "'softcap' must be .* got nan"),
        ({"softcap": math.inf}, ValueError, "'softcap' must be .* got inf"),
        ({"logit_scale": math.inf}, ValueError, "'logit_scale' must be finite, got inf"),
        ({"logit_scale": math.nan}, ValueError, "'logit_scale' must be finite, got nan"),
        ({"softcap": "30"}, TypeError, "'softcap' must be float or None, not str"),
        ({"logit_scale": None}, TypeError, "'logit_scale' must be float, not NoneType"),
    ],
)
def test_bad_arguments(options, error, why):
    input, weight, bias = make_layer()
    with pytest.raises(error, match=why):
        pg.linear_cross_entropy(input, weight, make_target(), **options)
    with pytest.raises(error, match=why):
        pg.PowerGradLinearCrossEntropyLoss(FEATURES, CLASSES, **options)
    if error is ValueError:
        raw = torch.ops.powergrad.linear_cross_entropy
        with pytest.raises(error, match=why):
            raw(input, weight, make_target(), bias, alpha=torch.tensor(0.3), **options)


def test_a_cap_that_is_far_away_changes_nothing():
    layer, target = make_layer(), make_target()
    for first, second in itertools.pairwise(({}, {"softcap": 1e9}, {"logit_scale": 1.0})):
        found, right = (solved(ours(target, **each)(*layer), layer) for each in (first, second))
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("softcap", [0.3, 0.7, 1.7, 30.0, 30.1])
def test_a_logit_at_its_cap_has_no_gradient(dtype, softcap, isa):
    """Though the type does not have the cap itself, and what is stored divides to another 1."""
    x = torch.tensor([[1000.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], dtype=dtype, requires_grad=True)
    loss = pg.linear_cross_entropy(x, weight, torch.tensor([1]), softcap=softcap, alpha=1.0)
    for gradient in torch.autograd.grad(loss, (x, weight)):
        assert gradient.count_nonzero() == 0
