"""The autograd of linear_cross_entropy: types, hooks, create_graph, compiled, inf and NaN."""

import math

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
from torch._dynamo import compiled_autograd
from torch.autograd.graph import saved_tensors_hooks

import powergrad_ext as pg

REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def gradients_of(loss_of, layer, grad_output=None):
    loss = loss_of(*layer)
    if grad_output is None:
        grad_output = grad_output_for(loss)
    return torch.autograd.grad(loss, layer, grad_output)


@REDUCTIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_node_itself_returns_the_types_of_its_arguments(dtype, reduction, device):
    """The engine would convert others without a word; they would take their memory until then."""
    loss = fused(make_target(device), reduction=reduction)(*make_layer(device, dtype))
    with torch.no_grad():  # else it takes the path of create_graph
        gradients = loss.grad_fn(torch.ones_like(loss))
    assert [each.dtype for each in gradients if each is not None] == [dtype] * 3


@REDUCTIONS
def test_hooks_that_pack_everything_in_fewer_bits(reduction, device):
    """Each argument gets its type back: the gradient is that of the rounded ones."""
    layer, target = make_layer(device), make_target(device)
    options = row_options(device) | {"reduction": reduction, "alpha": 0.5}

    def pack(tensor):
        return tensor.bfloat16() if tensor.is_floating_point() else tensor.to(torch.int16)

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = fused(target, **options)(*layer)
    found = torch.autograd.grad(loss, layer, grad_output_for(loss))
    options["weight"] = options["weight"].bfloat16().double()
    rounded = [each.detach().bfloat16().double().requires_grad_() for each in layer]
    right = gradients_of(
        of_logits(target, **options),
        rounded,
        grad_output_for(loss),
    )
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@REDUCTIONS
@pytest.mark.parametrize("which", [0, 1, 2], ids=["input", "linear_weight", "linear_bias"])
def test_hooks_that_pack_one_argument(which, reduction, device):
    layer, target = make_layer(device, torch.float32), make_target(device)
    memory = layer[which].data_ptr()

    def pack(tensor):
        return tensor.double() if tensor.data_ptr() == memory else tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = gradients_of(fused(target, reduction=reduction), layer)
    torch.testing.assert_close(found, gradients_of(of_logits(target, reduction=reduction), layer))


@REDUCTIONS
@pytest.mark.parametrize("biased", [True, False])
def test_create_graph_with_every_option(biased, reduction, device):
    layer, target = make_layer(device), make_target(device, ignore_index=5)
    target[0] = 5
    if not biased:
        layer.pop()
    options = row_options(device) | {"ignore_index": 5, "alpha": 0.4, "reduction": reduction}

    def both_orders(loss_of):
        loss = loss_of(*layer)
        first = torch.autograd.grad(loss, layer, grad_output_for(loss), create_graph=True)
        return [*first, *torch.autograd.grad(sum(each.square().sum() for each in first), layer)]

    found = both_orders(
        lambda x, w, b=None: pg.linear_cross_entropy(x, w, target, linear_bias=b, **options)
    )
    right = both_orders(lambda x, w, b=None: pg.cross_entropy(F.linear(x, w, b), target, **options))
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-13)


@REDUCTIONS
def test_a_backward_after_create_graph(reduction, device):
    layer, target = make_layer(device), make_target(device)
    loss = fused(target, reduction=reduction)(*layer)
    torch.autograd.grad(loss, layer, grad_output_for(loss), create_graph=True)
    found = torch.autograd.grad(loss, layer, grad_output_for(loss))
    torch.testing.assert_close(found, gradients_of(of_logits(target, reduction=reduction), layer))


@REDUCTIONS
def test_compiled_autograd(reduction, device):
    """Twice: what forward has computed is an input of the graph."""
    target = make_target(device)
    for factor in (1.0, 3.0):
        layer = make_layer(device)
        right = gradients_of(
            lambda *t, by=factor: by * of_logits(target, reduction=reduction)(*t).sum(),
            layer,
            torch.tensor(1.0, dtype=torch.float64, device=device),
        )
        loss = factor * fused(target, reduction=reduction)(*layer).sum()
        with compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward()
        torch.testing.assert_close(tuple(each.grad for each in layer), right)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("grad_output", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("function", [fused, of_logits], ids=["fused", "of logits"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_grad_output_that_is_not_finite(function, reduction, grad_output, compiled, device):
    """Rows that count are lost, and no other: a GradScaler sees it, and torch does the same."""
    layer, target = make_layer(device, torch.float32), make_target(device)
    loss_of = function(target, reduction=reduction)
    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    grad_output = torch.tensor(grad_output, device=device)
    found = gradients_of(loss_of, layer, grad_output)
    ignored = target == -100
    assert (found[0][ignored] == 0).all()
    for each in (found[0][~ignored], found[1], found[2]):
        assert not each.isfinite().any()
    nothing = torch.full_like(target, -100)
    loss_of = function(nothing, reduction=reduction)
    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    assert all((each == 0).all() for each in gradients_of(loss_of, layer, grad_output))


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["all zero", "zero for the targets"])
@pytest.mark.parametrize("function", [fused, of_logits], ids=["fused", "of logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_targets_that_weigh_nothing(dtype, function, weights, label_smoothing, compiled, device):
    """A mean over no weight is NaN, of rows that count; torch's of the same logits."""
    layer = make_layer(device, dtype)
    target = torch.arange(N, device=device) % 4
    target[::3] = -100
    weight = torch.zeros(C, device=device)
    if weights == "zero for the targets":
        weight[4:] = 1.0
    options = {"weight": weight, "label_smoothing": label_smoothing}
    loss_of = function(target, **options)
    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    loss, right_loss = (
        loss_of(*layer),
        F.cross_entropy(F.linear(*[each.float() for each in layer]), target, **options),
    )
    torch.testing.assert_close(loss, right_loss, equal_nan=True)
    found = torch.autograd.grad(loss, layer)
    right = torch.autograd.grad(right_loss, layer)
    torch.testing.assert_close(found, right, equal_nan=True)


def test_numbers_that_are_tensors(device):
    """0-d ones, as torch takes them, for options that are numbers; others are refused by name."""
    layer, target = make_layer(device), make_target(device, ignore_index=4)
    options = {"ignore_index": torch.tensor(4), "label_smoothing": torch.tensor(0.25)}
    found = gradients_of(fused(target, **options), layer)
    right = gradients_of(fused(target, ignore_index=4, label_smoothing=0.25), layer)
    torch.testing.assert_close(found, right, rtol=0, atol=0)
    torch.testing.assert_close(found, gradients_of(of_logits(target, **options), layer))
    for name, value in (
        ("ignore_index", torch.tensor(4.0)),
        ("ignore_index", torch.tensor([4])),
        ("label_smoothing", torch.tensor([0.25])),
    ):
        with pytest.raises(TypeError, match=name):
            fused(target, **{name: value})(*layer)


@pytest.mark.parametrize(("biased", "alpha"), [(False, 0.4), (True, torch.tensor(0.4))], ids=str)
def test_scripted_module(biased, alpha, device):
    """With the layer's bias, where it has one, and every option."""
    torch.manual_seed(0)
    module = pg.PowerGradLinearCrossEntropyLoss(
        H,
        C,
        bias=biased,
        weight=torch.linspace(0.5, 1.5, C),
        ignore_index=5,
        label_smoothing=0.1,
        reduction="sum",
        alpha=alpha,
        chunk_rows=7,
        z_loss=0.1,
    ).to(device)
    x, target = make_layer(device, torch.float32)[0], make_target(device)
    rows = (torch.arange(N, device=device) % 4).float()
    target[target == -100] = 5
    tensors = [x, *module.linear.parameters()]
    scripted = torch.jit.script(module)
    options = {"alpha": 0.4, "row_weight": rows, "z_loss": 0.1}
    right = pg.cross_entropy(module.linear(x), target, module.weight, 5, "sum", 0.1, **options)
    loss = scripted(x, target, rows)
    torch.testing.assert_close(loss, right)
    torch.testing.assert_close(
        torch.autograd.grad(loss, tensors), torch.autograd.grad(right, tensors)
    )
