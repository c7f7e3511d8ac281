"""row_weight, z_loss and return_metrics under what torch does to operators."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import ClassVar

import pytest
import torch
import torch._dynamo.testing
from last_layer import C, H, N, make_layer, make_target
from row_options import make_rows
from torch.func import functionalize, grad, vmap
from torch.utils.checkpoint import checkpoint

import powergrad_ext as pg
from powergrad_ext.options import Options

OPS = torch.ops.powergrad
ALPHA = torch.tensor(0.4, dtype=torch.float64)
REDUCTIONS = ("none", "mean", "sum")


def problem(shape=(6, 7), dtype=torch.float64):
    logits, target, row_weight = make_rows(shape, dtype)
    logits.select(min(1, len(shape) - 1), 0).fill_(0.5)
    return logits, target, row_weight


# Double backward


def second(function, logits, target, **options):
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, target, **options)
    loss = loss[0] if options.get("return_metrics") else loss
    upstream = torch.linspace(-1.0, 2.0, loss.numel()).double().reshape(loss.shape)
    upstream.requires_grad_()
    (gradient,) = torch.autograd.grad(loss, leaf, upstream, create_graph=True)
    direction = torch.linspace(1.0, -2.0, logits.numel()).double().sin().reshape(logits.shape)
    return gradient, *torch.autograd.grad(gradient, (leaf, upstream), direction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3), (7,)], ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities", "metrics"])
def test_double_backward(kind, shape, reduction):
    logits, target, row_weight = problem(shape)
    if kind == "probabilities":
        target = logits.flip(0).softmax(min(1, len(shape) - 1))
    options = {
        "reduction": reduction,
        "alpha": 0.4,
        "row_weight": row_weight,
        "z_loss": 0.1,
        "return_metrics": kind == "metrics",
    }
    found = second(pg.cross_entropy, logits, target, **options)
    right = second(pg.reference.cross_entropy, logits, target, **options)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_for_probabilities(reduction):
    """Of the loss and of its gradient; a row of weight 0 may hold NaN."""
    logits, _, row_weight = problem()
    logits[row_weight == 0] = torch.nan
    q = problem()[0].flip(0).softmax(1)
    results = []
    for function in (pg.cross_entropy, pg.reference.cross_entropy):
        z, target = logits.clone().requires_grad_(), q.clone().requires_grad_()
        loss = function(
            z, target, row_weight=row_weight, z_loss=0.1, reduction=reduction, alpha=0.4
        ).sum()
        first = torch.autograd.grad(loss, (z, target), create_graph=True)
        (mixed,) = torch.autograd.grad(first[0].square().sum(), target)
        results.append((*first, mixed))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_double_backward_of_the_last_layer():
    layer, target = make_layer("cpu"), make_target("cpu")
    options = {"row_weight": (torch.arange(N) % 4).double(), "z_loss": 0.1, "alpha": 0.4}

    def fused(input, weight, bias):
        return pg.linear_cross_entropy(input, weight, target, linear_bias=bias, **options)

    def of_logits(*layer):
        return pg.reference.cross_entropy(torch.nn.functional.linear(*layer), target, **options)

    results = []
    for function in (fused, of_logits):
        first = torch.autograd.grad(function(*layer), layer, create_graph=True)
        together = sum(each.square().sum() for each in first)
        results.append((*first, *torch.autograd.grad(together, layer)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


# torch.func


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 2, 7, 3), (4, 7)], ids=str)
@pytest.mark.parametrize("row_dim", [0, None], ids=["weights of samples", "shared weights"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_vmap(kind, row_dim, shape, reduction):
    samples = [make_rows(shape[1:], torch.float64, seed=seed) for seed in range(shape[0])]
    logits, target, row_weight = (torch.stack(each) for each in zip(*samples, strict=True))
    logits.select(min(2, len(shape) - 1), 0).fill_(0.5)
    if kind == "probabilities":
        target = logits.flip(0).softmax(min(2, len(shape) - 1))
    row_weight = row_weight if row_dim == 0 else row_weight[0]

    def loss(z, y, r):
        return pg.cross_entropy(z, y, row_weight=r, z_loss=0.1, reduction=reduction).sum()

    dims = (0, 0, row_dim)
    found = vmap(loss, dims)(logits, target, row_weight)
    gradients = vmap(grad(loss), dims)(logits, target, row_weight)
    for i in range(shape[0]):
        leaf = logits[i].clone().requires_grad_()
        rows = row_weight[i] if row_dim == 0 else row_weight
        alone = pg.reference.cross_entropy(
            leaf, target[i], row_weight=rows, z_loss=0.1, reduction=reduction
        ).sum()
        torch.testing.assert_close(found[i], alone)
        torch.testing.assert_close(gradients[i], torch.autograd.grad(alone, leaf)[0])


@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 2, 7, 3), (4, 7)], ids=str)
def test_metrics_under_torch_func(shape):
    samples = [make_rows(shape[1:], torch.float64, seed=seed) for seed in range(shape[0])]
    logits, target, row_weight = (torch.stack(each) for each in zip(*samples, strict=True))

    def loss(z, y, r):
        return pg.cross_entropy(z, y, row_weight=r, z_loss=0.1, return_metrics=True)

    found, metrics = vmap(loss)(logits, target, row_weight)
    _, of_gradient = vmap(grad(loss, has_aux=True))(logits, target, row_weight)
    for i in range(shape[0]):
        alone, its_metrics = loss(logits[i], target[i], row_weight[i])
        torch.testing.assert_close(found[i], alone)
        for each in (metrics, of_gradient):
            torch.testing.assert_close([m[i] for m in each], list(its_metrics))


def test_the_last_layer_under_torch_func():
    layer, target = make_layer("cpu"), make_target("cpu")
    row_weight = (torch.arange(N) % 4).double()

    def loss(input, weight, bias):
        return pg.linear_cross_entropy(
            input,
            weight,
            target,
            linear_bias=bias,
            row_weight=row_weight,
            z_loss=0.1,
            return_metrics=True,
        )

    expected, metrics = loss(*layer)
    gradients, its_metrics = grad(loss, (0, 1, 2), has_aux=True)(*layer)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, layer))
    torch.testing.assert_close(its_metrics, metrics)
    batched, of_batch = vmap(loss, (0, None, None))(torch.stack([layer[0]] * 2), *layer[1:])
    torch.testing.assert_close(batched, torch.stack([expected] * 2).detach())
    torch.testing.assert_close(of_batch.entropy[1], metrics.entropy)


def test_functionalization():
    logits, target, row_weight = problem()

    def loss(z):
        value, metrics = pg.cross_entropy(
            z, target, row_weight=row_weight, z_loss=0.1, return_metrics=True
        )
        return value, *metrics

    torch.testing.assert_close(functionalize(loss)(logits), loss(logits))


# The compiler


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend, fresh_compiler):
    logits, target, row_weight = problem(dtype=torch.float32)

    def step(z, r):
        loss, metrics = pg.cross_entropy(
            z * 2.0, target, row_weight=r, z_loss=0.1, return_metrics=True
        )
        return loss, *metrics

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaf = logits.clone().requires_grad_()
        found = function(leaf, row_weight)
        found[0].backward()
        assert not any(each.requires_grad for each in found[1:])
        results.append((*found, leaf.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_last_layer(reduction, fresh_compiler):
    layer, target = make_layer("cpu", torch.float32), make_target("cpu")
    row_weight = (torch.arange(N) % 4).float()

    def step(input, weight, bias):
        loss, metrics = pg.linear_cross_entropy(
            input,
            weight,
            target,
            linear_bias=bias,
            reduction=reduction,
            row_weight=row_weight,
            z_loss=0.1,
            return_metrics=True,
        )
        return loss, *metrics

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        found = function(*layer)
        results.append((*found, *torch.autograd.grad(found[0].sum(), layer)))
    torch.testing.assert_close(*results)


def test_one_compilation_for_any_number_of_rows(fresh_compiler):
    frames = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=frames, dynamic=True)
    def step(z, y, r):
        return pg.cross_entropy(z, y, row_weight=r, z_loss=0.1, return_metrics=True)[1].entropy

    for rows in (5, 8, 11):
        logits, target, row_weight = problem((rows, 7), torch.float32)
        expected = pg.cross_entropy(logits, target, row_weight=row_weight, return_metrics=True)
        torch.testing.assert_close(step(logits, target, row_weight), expected[1].entropy)
    assert frames.frame_count == 1


# Operators


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3)], ids=str)
def test_registration(shape, reduction, z_loss, metrics):
    logits, target, row_weight = problem(shape, torch.float32)
    options = Options(reduction=reduction, alpha=ALPHA, row_weight=row_weight, z_loss=z_loss)
    forward = (logits, target, *options)
    loss, statistics, total = OPS.cross_entropy_forward(*forward, True)
    of_row = OPS.cross_entropy_shard_forward(*forward, 1, 2, 7, metrics)[0]
    upstream = torch.ones_like(loss)
    checks = {
        "cross_entropy_forward": (*forward, True, metrics),
        "cross_entropy_backward": (upstream, logits, target, statistics, total, *options),
        "cross_entropy_shard_forward": (*forward, 1, 2, 7, metrics),
        "cross_entropy_merge_shards": (torch.stack([of_row] * 2), total, *options, metrics),
    }
    for name, arguments in checks.items():
        torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_registration_of_the_last_layer(requires_grad):
    input, weight, bias = (each.detach() for each in make_layer("cpu", torch.float32))
    target = make_target("cpu")
    options = Options(alpha=ALPHA, row_weight=(torch.arange(N) % 4).float(), z_loss=0.1)
    layer = (input, weight, target, bias, *options, 7, 0.7, 3.0)
    for shard in (("", 1, 0, 0), ("group", 1, 2, 3)):
        arguments = (*layer, *shard)
        torch.library.opcheck(
            OPS.linear_cross_entropy_forward.default, (*arguments, [True] * 3, True)
        )
        _, _, statistics, divisor, *_ = OPS.linear_cross_entropy_forward(*arguments, [True] * 3)
        backward = (torch.ones(()), *arguments, statistics, divisor, [True] * 3)
        torch.library.opcheck(OPS.linear_cross_entropy_backward.default, backward)
    if requires_grad:
        input, weight, bias = (each.requires_grad_() for each in (input, weight, bias))
    named = options.keywords()
    positional = [named.pop(name) for name in list(named)[:4]]
    torch.library.opcheck(
        OPS.linear_cross_entropy_metrics.default,
        (input, weight, target, bias, *positional),
        {**named, "chunk_rows": 7},
    )


# Saved tensors, autocast, modules


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpoints_and_packed_tensors(reduction):
    logits, target, row_weight = problem(dtype=torch.float32)
    layer = make_layer("cpu", torch.float32)
    rows = (torch.arange(N) % 4).float()
    options = {"reduction": reduction, "z_loss": 0.1}

    def loss(z):
        return pg.cross_entropy(z, target, row_weight=row_weight, **options).sum()

    def of_layer(input):
        return pg.linear_cross_entropy(
            input, *layer[1:2], make_target("cpu"), row_weight=rows, **options
        ).sum()

    for function, start in ((loss, logits), (of_layer, layer[0].detach())):
        leaf = start.clone().requires_grad_()
        (right,) = torch.autograd.grad(function(leaf), leaf)
        (found,) = torch.autograd.grad(checkpoint(function, leaf, use_reentrant=False), leaf)
        torch.testing.assert_close(found, right)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.bfloat16() if t.is_floating_point() else t, lambda t: t
        ):
            value = function(leaf)
        (rounded,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(rounded, right, rtol=0.1, atol=0.05)


def test_autocast():
    layer, target = make_layer("cpu", torch.float32), make_target("cpu")
    row_weight = (torch.arange(N) % 4).float()
    options = {"row_weight": row_weight, "z_loss": 0.1, "return_metrics": True}
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = pg.linear_cross_entropy(*layer[:2], target, **options)
    halves = [each.detach().bfloat16() for each in layer[:2]]
    expected, its_metrics = pg.linear_cross_entropy(*halves, target, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close((loss.detach(), *metrics), (expected, *its_metrics))


MODULES = {
    "loss": lambda: pg.PowerGradCrossEntropyLoss(z_loss=0.1, return_metrics=True),
    "layer": lambda: pg.PowerGradLinearCrossEntropyLoss(H, C, z_loss=0.1, return_metrics=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    module = MODULES[name]()
    assert "z_loss=0.1, return_metrics=True" in repr(module)
    input = make_layer("cpu", torch.float32)[0].detach()
    target, row_weight = make_target("cpu"), (torch.arange(N) % 4).float()
    target = target.clamp_max(H - 1)
    found = module(input, target, row_weight)
    copies = (copy.deepcopy(module), pickle.loads(pickle.dumps(module)))
    for each in copies:
        again = each(input, target, row_weight)
        assert torch.equal(again[0], found[0])
        assert torch.equal(again[1].entropy, found[1].entropy)
    if name == "loss":
        expected = pg.cross_entropy(
            input, target, row_weight=row_weight, z_loss=0.1, return_metrics=True
        )
    else:
        expected = pg.linear_cross_entropy(
            input,
            module.linear.weight,
            target,
            row_weight=row_weight,
            z_loss=0.1,
            return_metrics=True,
        )
    torch.testing.assert_close((found[0], *found[1]), (expected[0], *expected[1]))
    assert "z_loss" not in repr(pg.PowerGradCrossEntropyLoss())
    with pytest.raises(RuntimeError, match="return_metrics must be False under"):
        torch.jit.script(module)


def test_scripts():
    logits, target, row_weight = problem(dtype=torch.float32)
    for module in (pg.PowerGradCrossEntropyLoss(z_loss=0.1),):
        script = torch.jit.script(module)
        for rows in (None, row_weight):
            torch.testing.assert_close(script(logits, target, rows), module(logits, target, rows))


class Traced(torch.Tensor):
    """A subclass that records the keywords of what is called."""

    seen: ClassVar[dict] = {}

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (pg.cross_entropy, pg.linear_cross_entropy):
            cls.seen = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def test_torch_function_hands_them_on():
    logits, target, row_weight = problem()
    options = {"row_weight": row_weight.as_subclass(Traced), "z_loss": 0.1, "return_metrics": True}
    loss, _ = pg.cross_entropy(logits, target, **options)
    assert {name: Traced.seen[name] for name in ("z_loss", "return_metrics")} == {
        "z_loss": 0.1,
        "return_metrics": True,
    }
    plain = options | {"row_weight": row_weight}
    expected = pg.cross_entropy(logits, target, **plain)
    torch.testing.assert_close(torch.Tensor(loss), expected[0])
    layer = [each.detach() for each in make_layer("cpu")[:2]]
    rows = (torch.arange(N) % 4).double()
    found, _ = pg.linear_cross_entropy(
        *layer,
        make_target("cpu"),
        row_weight=rows.as_subclass(Traced),
        z_loss=0.1,
        return_metrics=True,
    )
    right = pg.linear_cross_entropy(*layer, make_target("cpu"), row_weight=rows, z_loss=0.1)
    torch.testing.assert_close(torch.Tensor(found), right)


def test_flops_of_metrics():
    """The products of the plain call, however metrics are asked for."""
    from torch.utils.flop_counter import FlopCounterMode

    layer, target = make_layer("cpu"), make_target("cpu")
    counts = []
    for return_metrics in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = pg.linear_cross_entropy(*layer[:2], target, return_metrics=return_metrics)
            (loss[0] if return_metrics else loss).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * N * C * H


def test_inplace_backward():
    """z-loss reads what forward saved, not the logits that the gradient has overwritten."""
    logits, target, row_weight = problem(dtype=torch.float32)
    for reduction in REDUCTIONS:
        results = []
        for inplace in (False, True):
            leaf = logits.clone().requires_grad_()
            loss = pg.cross_entropy(
                leaf * 1.0,
                target,
                row_weight=row_weight,
                z_loss=0.1,
                reduction=reduction,
                inplace_backward=inplace,
            ).sum()
            results.append(torch.autograd.grad(loss, leaf)[0])
        torch.testing.assert_close(*results)


# Export


class Loss(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, logits, target, row_weight):
        found = pg.cross_entropy(logits, target, row_weight=row_weight, **self.options)
        return (found[0], *found[1]) if self.options.get("return_metrics") else (found,)


class LayerLoss(Loss):
    def forward(self, input, linear_weight, target, row_weight):
        found = pg.linear_cross_entropy(
            input, linear_weight, target, row_weight=row_weight, **self.options
        )
        return (found[0], *found[1]) if self.options.get("return_metrics") else (found,)


def exported_cases():
    logits, target, row_weight = problem(dtype=torch.float32)
    layer, of_layer = make_layer("cpu", torch.float32), make_target("cpu")
    rows = (torch.arange(N) % 4).float()
    for metrics, reduction in itertools.product((False, True), ("mean", "none")):
        options = {"z_loss": 0.1, "reduction": reduction, "return_metrics": metrics}
        yield Loss(**options), (logits, target, row_weight)
        yield LayerLoss(**options), (*(each.detach() for each in layer[:2]), of_layer, rows)


def test_torch_export():
    for module, arguments in exported_cases():
        program = torch.export.export(module, arguments)
        torch.testing.assert_close(program.module()(*arguments), module(*arguments))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
def test_onnx(dynamo, tmp_path):
    runtime = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    for turn, (module, arguments) in enumerate(exported_cases()):
        path = tmp_path / f"{turn}.onnx"
        torch.onnx.export(module, arguments, path, dynamo=dynamo, opset_version=18)
        session = runtime.ReferenceEvaluator(str(path))
        names = session.input_names
        feeds = dict(zip(names, (each.numpy() for each in arguments), strict=True))
        with torch.no_grad():
            right = module(*arguments)
        for one, other in zip(session.run(None, feeds), right, strict=True):
            torch.testing.assert_close(torch.as_tensor(one), other, rtol=1e-5, atol=1e-6)
