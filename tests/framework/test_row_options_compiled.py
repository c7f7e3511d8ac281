"""row_weight, z_loss and return_metrics compiled and exported."""

from __future__ import annotations

import itertools

import pytest
import torch
from last_layer import N, make_layer, make_target
from row_options import make_finite_rows

import powergrad_ext as pg

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
