"""row_weight, z_loss and return_metrics compiled and exported; their operators."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch._dynamo.testing
from last_layer import N, make_layer, make_target
from row_options import make_finite_rows

import powergrad_ext as pg
from powergrad_ext.options import Options

OPS = torch.ops.powergrad
ALPHA = torch.tensor(0.4, dtype=torch.float64)

# The compiler


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend, fresh_compiler):
    logits, target, row_weight = make_finite_rows(dtype=torch.float32)

    def step(z, r):
        loss, metrics = pg.cross_entropy(
            z * 2.0, target, row_weight=r, z_loss=0.1, return_metrics=True
        )
        return loss, *metrics

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaf = logits.clone().requires_grad_()
        found = function(leaf, row_weight)
        assert not any(each.requires_grad for each in found[1:])
        metrics = [each.clone() for each in found[1:]]
        for each in found[1:]:  # they are the caller's
            each.zero_()
        found[0].backward()
        results.append((found[0], *metrics, leaf.grad))
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
        logits, target, row_weight = make_finite_rows((rows, 7), torch.float32)
        expected = pg.cross_entropy(logits, target, row_weight=row_weight, return_metrics=True)
        torch.testing.assert_close(step(logits, target, row_weight), expected[1].entropy)
    assert frames.frame_count == 1


# Operators


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3)], ids=str)
def test_registration(shape, reduction, z_loss, metrics):
    logits, target, row_weight = make_finite_rows(shape, torch.float32)
    options = Options(reduction=reduction, alpha=ALPHA, row_weight=row_weight, z_loss=z_loss)
    forward = (logits, target, *options)
    loss, statistics, total = OPS.cross_entropy_forward(*forward, True)
    of_row = OPS.cross_entropy_shard_forward(*forward, 1, 2, 7, metrics)[0]
    grad_output = torch.ones_like(loss)
    checks = {
        "cross_entropy_forward": (*forward, True, metrics),
        "cross_entropy_backward": (grad_output, logits, target, statistics, total, *options),
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
    logits, target, row_weight = make_finite_rows(dtype=torch.float32)
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
