"""logit_scale and softcap of linear_cross_entropy, by the identity in float64.

For logits L = softcap tanh(logit_scale (x W^T + b) / softcap), PGT's gradient for the layer is
torch's of F.cross_entropy(alpha L) / alpha.
"""

from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from allocations import allocations_of
from torch.utils.checkpoint import checkpoint

import powergrad_ext as pg

ROWS, FEATURES, CLASSES, ALPHA = 45, 14, 29, 0.4
FUNCTIONS = [
    {"softcap": 5.0},
    {"logit_scale": 0.3},
    {"logit_scale": -1.7, "softcap": 3.0},
    {"logit_scale": 0.0, "softcap": 2.0},
]
functions = pytest.mark.parametrize("function", FUNCTIONS, ids=str)
# Of the largest gradient. Half precision rounds the logits, which are up to 5 or 20 here.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


def make_layer(dtype=torch.float64):
    random = torch.Generator().manual_seed(2)
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [each.to(dtype).requires_grad_() for each in tensors]


def make_target(kind="indices"):
    random = torch.Generator().manual_seed(3)
    if kind == "probabilities":
        logits = torch.randn(ROWS, CLASSES, generator=random, dtype=torch.float64)
        return logits.softmax(1)
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    target[::6] = -100
    return target


def logits_of(input, weight, bias=None, logit_scale=1.0, softcap=None):
    z = logit_scale * F.linear(input, weight, bias)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def solved(loss, layer, **options):
    grad_output = torch.linspace(-1.5, 2.0, loss.numel()).reshape(loss.shape).to(loss)
    return loss.detach(), torch.autograd.grad(loss, layer, grad_output, **options)


def identity(layer, target, function, **options):
    """Value and gradients in float64, for the layer as it was rounded."""
    wide = [each.detach().double().requires_grad_() for each in layer]
    logits = logits_of(*wide, **function)
    value = F.cross_entropy(logits, target, **options)
    return value.detach(), solved(F.cross_entropy(ALPHA * logits, target, **options) / ALPHA, wide)[
        1
    ]


def ours(layer, target, function, **options):
    input, weight, *bias = layer
    return pg.linear_cross_entropy(
        input,
        weight,
        target,
        linear_bias=bias[0] if bias else None,
        alpha=ALPHA,
        **{"chunk_rows": 11} | function | options,
    )


def assert_right(found, right, dtype=torch.float64):
    of_value = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(found[0].double(), right[0], rtol=of_value, atol=of_value)
    for mine, wanted in zip(found[1], right[1], strict=True):
        assert mine.dtype == dtype
        largest = float(wanted.abs().max())
        torch.testing.assert_close(
            mine.double(), wanted, rtol=0.0, atol=TOLERANCE[dtype] * largest + 1e-15
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@functions
def test_the_identity(function, dtype, reduction):
    layer, target = make_layer(dtype), make_target()
    for kept in (layer, layer[:2]):
        right = identity(kept, target, function, reduction=reduction)
        assert_right(solved(ours(kept, target, function, reduction=reduction), kept), right, dtype)


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("chunk_rows", [None, 1, 7, 45])
def test_other_options(chunk_rows, kind):
    layer, target, function = make_layer(), make_target(kind), FUNCTIONS[2]
    weight = torch.linspace(0.2, 2.0, CLASSES, dtype=torch.float64)
    options = {"label_smoothing": 0.2, "weight": weight}
    right = identity(layer, target, function, **options)
    loss = ours(layer, target, function, chunk_rows=chunk_rows, **options)
    assert_right(solved(loss, layer, retain_graph=True), right)
    assert_right(solved(loss, layer), right)


@functions
def test_saturated_logits(function):
    """tanh is 1 and its derivative 0 where the layer's output is far beyond the cap."""
    layer, target = make_layer(torch.float32), make_target()
    with torch.no_grad():
        layer[0][3] *= 1e4
    right = identity(layer, target, function)
    found = solved(ours(layer, target, function), layer)
    assert_right(found, right, torch.float32)
    assert all(each.isfinite().all() for each in found[1])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@functions
def test_each_way_to_the_gradients(function, reduction):
    """A checkpoint, a single row, more dimensions, create_graph, torch.func, the compiler."""
    layer, target = make_layer(), make_target()
    right = identity(layer, target, function, reduction=reduction)

    def loss(*layer):
        return ours(layer, target, function, reduction=reduction)

    assert_right(solved(checkpoint(loss, *layer, use_reentrant=False), layer), right)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_right(solved(compiled(*layer), layer), right)
    assert_right(solved(loss(*layer), layer, create_graph=True), right)
    grad_output = torch.linspace(-1.5, 2.0, right[0].numel()).reshape(right[0].shape).to(right[0])
    by_func = torch.func.grad(lambda *t: (loss(*t) * grad_output).sum(), (0, 1, 2))(*layer)
    assert_right((right[0], by_func), right)

    row = [layer[0][1].detach().requires_grad_(), *layer[1:]]
    assert_right(
        solved(ours(row, target[1], function, reduction=reduction), row),
        identity(row, target[1], function, reduction=reduction),
    )
    many = [layer[0], layer[1][:28].unflatten(0, (7, 4)), layer[2][:28].unflatten(0, (7, 4))]
    classes = torch.arange(4 * ROWS).reshape(ROWS, 4) % 7
    flat = logits_of(layer[0], layer[1][:28], layer[2][:28], **function).unflatten(1, (7, 4))
    wanted = F.cross_entropy(ALPHA * flat, classes, reduction=reduction) / ALPHA
    assert_right(
        solved(ours(many, classes, function, reduction=reduction), layer),
        (
            F.cross_entropy(flat, classes, reduction=reduction).detach(),
            solved(wanted, layer)[1],
        ),
    )


@functions
def test_second_order(function):
    layer, target = make_layer(), make_target()

    def second(loss):
        first = torch.autograd.grad(loss, layer, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), layer)

    right = second(pg.cross_entropy(logits_of(*layer, **function), target, alpha=ALPHA))
    found = second(ours(layer, target, function))
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)


@functions
def test_a_module(function):
    x, target = make_layer(torch.float32)[0], make_target()
    made = pg.PowerGradLinearCrossEntropyLoss(FEATURES, CLASSES, bias=True, alpha=ALPHA, **function)
    right = ours([x, made.linear.weight, made.linear.bias], target, function)
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
        found, right = (solved(ours(layer, target, each), layer) for each in (first, second))
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("softcap", [0.3, 0.7, 1.7, 30.0, 30.1])
def test_a_logit_at_its_cap_has_no_gradient(dtype, softcap, isa):
    """Though the type does not have the cap itself, and what is stored divides to another 1."""
    x = torch.tensor([[1000.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], dtype=dtype, requires_grad=True)
    loss = pg.linear_cross_entropy(x, weight, torch.tensor([1]), softcap=softcap, alpha=1.0)
    for gradient in torch.autograd.grad(loss, (x, weight)):
        assert gradient.count_nonzero() == 0
