"""linear_cross_entropy under the compiler, torch.func and hooks, and as a module."""

import copy

import pytest
import torch
import torch.nn.functional as F
from last_layer import (
    C,
    H,
    N,
    fused,
    grad_output_for,
    make_layer,
    make_target,
    of_logits,
    row_options,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import powergrad_ext as pg

REDUCTIONS = ("none", "mean", "sum")


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def solve(loss, layer):
    value = loss(*layer)
    return value.detach(), torch.autograd.grad(value, layer, grad_output_for(value))


def assert_same(found, right):
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("reduction", "backend"), [("mean", "inductor"), ("none", "aot_eager")])
def test_compiled(reduction, backend, device):
    """One graph, forward and backward, for every batch."""
    counter = CompileCounterWithBackend(backend)

    def step(input, linear_weight, linear_bias, target, row_weight):
        options = {"label_smoothing": 0.1, "z_loss": 0.1, "row_weight": row_weight}
        loss = fused(target, reduction=reduction, **options, return_metrics=True)
        value, metrics = loss(input, linear_weight, linear_bias)
        return value, *metrics

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for rows in (N, 12, 70):
        layer, target = make_layer(device, rows=rows), make_target(device, rows)
        row_weight = (torch.arange(rows, device=device) % 4).double()
        results = []
        for function in (compiled, step):
            loss, *metrics = function(*layer, target, row_weight)
            gradients = torch.autograd.grad(loss, layer, grad_output_for(loss))
            results.append((loss, *metrics, *gradients))
        assert_same(*results)
        compilations.append(counter.frame_count)
    assert compilations == compilations[:1] * 3


def test_compiled_in_bfloat16(device):
    layer, target = make_layer(device, torch.bfloat16), make_target(device)
    compiled = torch.compile(fused(target), fullgraph=True, backend="aot_eager")
    found, right = solve(compiled, layer), solve(fused(target), layer)
    torch.testing.assert_close(found, right)


def test_compiled_under_autocast(device):
    layer, target = make_layer(device, torch.float32), make_target(device)

    def loss(*layer):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return fused(target)(*layer)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, right = solve(compiled, layer), solve(loss, layer)
    torch.testing.assert_close(found, right, rtol=2**-7, atol=2**-9)


def test_compiled_module(device):
    """The last layer of a model that is compiled as a whole."""
    model = Model(device)
    x, target = torch.randn(N, 5, device=device), make_target(device)
    right = torch.autograd.grad(model(x, target), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True)
    found = torch.autograd.grad(compiled(x, target), list(model.parameters()))
    torch.testing.assert_close(found, right)


class Model(nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, H, device=device)
        self.head = pg.PowerGradLinearCrossEntropyLoss(H, C, bias=True, device=device)

    def forward(self, x, target):
        return self.head(self.body(x).relu(), target)


TRANSFORMS = {
    "grad": (lambda f: grad(lambda *t: f(*t).square().sum(), argnums=(0, 1, 2)), ()),
    "vmap of weights": (lambda f: vmap(f, in_dims=(None, 0, 0)), (1, 2)),
    "vmap of inputs": (lambda f: vmap(f, in_dims=(0, None, None)), (0,)),
    "vmap of grad": (
        lambda f: vmap(grad(lambda *t: f(*t).square().sum()), in_dims=(0, None, None)),
        (0,),
    ),
    "jacrev": (lambda f: jacrev(f, argnums=2), ()),
    "functionalize": (functionalize, ()),
}


@pytest.mark.parametrize(("transform", "batched"), TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_functorch(reduction, transform, batched, device):
    layer, target = make_layer(device), make_target(device)
    tensors = [
        torch.stack([each, 2 * each]).detach() if i in batched else each.detach()
        for i, each in enumerate(layer)
    ]
    options = row_options(device) | {"reduction": reduction}
    found = transform(fused(target, **options))(*tensors)
    assert_same(found, transform(of_logits(target, **options))(*tensors))


def test_functorch_under_compile(device):
    layer, target = [each.detach() for each in make_layer(device)], make_target(device)
    of = grad(fused(target), argnums=(0, 1, 2))
    assert_same(torch.compile(of, fullgraph=True, backend="aot_eager")(*layer), of(*layer))


def test_gradcheck(device):
    layer, target = make_layer(device, rows=5), make_target(device, 5)

    def loss(input, linear_weight, linear_bias):
        return pg.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, alpha=1.0, chunk_rows=2
        )

    assert torch.autograd.gradcheck(loss, layer)
    assert torch.autograd.gradgradcheck(loss, layer)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_checkpoint(reduction, reentrant, device):
    layer, target = make_layer(device), make_target(device)
    loss = fused(target, reduction=reduction, **row_options(device))
    value, right = solve(loss, layer)
    found = checkpoint(loss, *layer, use_reentrant=reentrant)
    found.backward(grad_output_for(found))
    assert_same(found, value)
    assert_same([each.grad for each in layer], list(right))


def test_fake_tensors():
    with FakeTensorMode():
        layer = [torch.randn(shape, requires_grad=True) for shape in ((N, H), (C, H), (C,))]
        loss = fused(torch.zeros(N, dtype=torch.int64))(*layer)
        gradients = torch.autograd.grad(loss, layer)
    assert loss.shape == ()
    assert [each.shape for each in gradients] == [each.shape for each in layer]


def test_tied_embeddings(device):
    """The gradients of both uses of the weight are added."""
    torch.manual_seed(0)
    embedding = nn.Embedding(C, H, device=device, dtype=torch.float64)
    tokens = torch.arange(N, device=device) % C
    head = pg.PowerGradLinearCrossEntropyLoss(H, C, device=device, dtype=torch.float64)
    head.linear.weight = embedding.weight

    def composed(x, target):
        return pg.cross_entropy(F.linear(x, embedding.weight), target)

    def gradient(loss):
        return torch.autograd.grad(loss(embedding(tokens), tokens), embedding.weight)[0]

    assert_same(gradient(head), gradient(composed))


def test_module(device):
    """State dicts are torch's own; copies are independent; it says what it is."""
    weight = torch.linspace(0.5, 1.5, C)
    module = pg.PowerGradLinearCrossEntropyLoss(
        H, C, bias=True, weight=weight, ignore_index=None, reduction="sum", alpha=0.4
    ).to(device, torch.float64)
    x, target = make_layer(device)[0].detach(), make_target(device)
    right = pg.cross_entropy(module.linear(x), target, module.weight, reduction="sum", alpha=0.4)
    assert_same(module(x, target), right)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.linear.weight.zero_()
    assert_same(module(x, target), right)
    assert "alpha=0.4" in repr(module)
    assert "Linear(in_features=8, out_features=11, bias=True)" in repr(module)
    if hasattr(nn, "LinearCrossEntropyLoss"):
        torchs = nn.LinearCrossEntropyLoss(H, C, bias=True, weight=weight, dtype=torch.float64)
        torchs.load_state_dict(module.state_dict())
        module.load_state_dict(torchs.state_dict())
    with pytest.raises(RuntimeError, match=r"weight shape.*\(11,\).*\(3,\)"):
        pg.PowerGradLinearCrossEntropyLoss(H, C, weight=torch.ones(3))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        pg.PowerGradLinearCrossEntropyLoss(H, C, label_smoothing=1.5)
    with pytest.raises(ValueError, match="alpha"):
        pg.PowerGradLinearCrossEntropyLoss(H, C, alpha=-1.0)


def test_alpha_schedule_under_compile(device):
    """Values of a 0-d tensor, one compilation."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pg.linear_cross_entropy, fullgraph=True, backend=counter)
    layer, target = make_layer(device), make_target(device)
    compilations = []
    for value in (0.3, 0.6, 1.0):
        alpha = torch.tensor(value, dtype=torch.float64)
        found = torch.autograd.grad(compiled(*layer[:2], target, alpha=alpha), layer[:2])
        right = torch.autograd.grad(
            pg.cross_entropy(F.linear(*layer[:2]), target, alpha=value), layer[:2]
        )
        assert_same(found, right)
        compilations.append(counter.frame_count)
    assert compilations == compilations[:1] * 3
