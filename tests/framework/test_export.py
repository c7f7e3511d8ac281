"""Models that hold or call our functions, in ONNX and in TorchScript."""

import io

import pytest
import torch

import powergrad_ext as pg

# Of TorchScript, of its exporter, and of a module that is exported as it was trained.
pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(torch.nn.Module):
    def __init__(self, tail):
        super().__init__()
        self.linear = torch.nn.Linear(4, 5)
        self.tail = tail

    def forward(self, x):
        return self.tail(self.linear(x))


TAILS = {
    "module": (pg.PowerGradLogSoftmax(alpha=0.5), torch.nn.LogSoftmax(-1)),
    "function": (lambda z: pg.log_softmax(z, 0), torch.nn.LogSoftmax(0)),
}


def onnx_model(model, x, dynamo):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    if dynamo:
        return torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
    buffer = io.BytesIO()
    torch.onnx.export(model, (x,), buffer, dynamo=False)
    return onnx.load_from_string(buffer.getvalue())


def evaluate(model, x):
    reference = pytest.importorskip("onnx.reference")
    evaluator = reference.ReferenceEvaluator(model)
    outputs = evaluator.run(None, {model.graph.input[0].name: x.numpy()})
    return [torch.as_tensor(output) for output in outputs]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
@pytest.mark.parametrize(("ours", "torchs"), TAILS.values(), ids=TAILS.keys())
def test_onnx(ours, torchs, dynamo):
    """The nodes that torch's own log-softmax gives, and its numbers."""
    model, x = Classifier(ours), torch.randn(3, 4)
    exported = onnx_model(model, x, dynamo)
    theirs = onnx_model(Classifier(torchs), x, dynamo)
    assert [node.op_type for node in exported.graph.node] == [
        node.op_type for node in theirs.graph.node
    ]
    torch.testing.assert_close(evaluate(exported, x)[0], model(x).detach(), rtol=1e-5, atol=1e-6)


class Linear(torch.nn.Module):
    """The function of a last layer of weights 1 and 0, as one of the logits."""

    def forward(self, z, target, weight=None, **options):
        if z.dim() > 2:  # a loss of more dimensions has a weight of as many
            return pg.cross_entropy(z, target, weight, **options)
        identity = torch.eye(z.shape[-1], dtype=z.dtype)
        return pg.linear_cross_entropy(z, identity, target, weight=weight, **options)


@pytest.mark.parametrize(
    ("ours", "dynamo"),
    [(pg.cross_entropy, True), (pg.cross_entropy, False), (Linear(), False)],
    ids=["dynamo", "TorchScript", "last layer in TorchScript"],
)
def test_onnx_of_every_option_of_a_loss(ours, dynamo):
    """Against torch's cross-entropy in float64; one export of all, which takes seconds each."""
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5])
    targets = {
        "rows": torch.tensor([2, 1, 0]),
        "rows that weigh nothing": torch.tensor([2, 1, 2], dtype=torch.int32),
        "positions": torch.tensor([[2, 4], [1, 1], [0, 3]]),
        "one row": torch.tensor(3),
        "probabilities": torch.randn(3, 5).softmax(1),
    }
    options = [
        {"weight": of_classes, "reduction": reduction, "label_smoothing": smoothing}
        for of_classes in (None, weight)
        for reduction in ("none", "sum", "mean")
        for smoothing in (0.0, 0.1)
    ]

    class Losses(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            parts = {"positions": x, "one row": x[0, :, 0]}
            losses = []
            for kind, target in targets.items():
                z = parts.get(kind, x[:, :, 0])
                ignored = {} if kind == "probabilities" else {"ignore_index": 1}
                losses += [self.function(z, target, **ignored, **given) for given in options]
            return losses

    x = torch.randn(3, 5, 2)
    found = evaluate(onnx_model(Losses(ours), x, dynamo), x)

    def in_float64(z, target, weight, **given):
        target = target.double() if target.is_floating_point() else target.long()
        weight = None if weight is None else weight.double()
        return torch.nn.functional.cross_entropy(z.double(), target, weight, **given).float()

    expected = Losses(in_float64)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_onnx_of_the_modules_of_losses(smoothing, dynamo):
    options = {"reduction": "mean", "label_smoothing": smoothing, "ignore_index": 1}
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5])
    function = {"logit_scale": 3.0, "softcap": 2.0}
    fused = pg.PowerGradLinearCrossEntropyLoss(4, 5, bias=True, weight=weight, **options)
    capped = pg.PowerGradLinearCrossEntropyLoss(4, 5, weight=weight, **options, **function)
    x, target = torch.randn(3, 4), torch.tensor([0, 4, 1])

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fused = fused
            self.capped = capped
            self.loss = pg.PowerGradCrossEntropyLoss(weight, **options)

        def forward(self, x):
            logits = self.fused.linear(x)
            return self.fused(x, target), self.loss(logits, target), self.capped(x, target)

    found = evaluate(onnx_model(Loss(), x, dynamo), x)
    plain = fused.linear.double()(x.double())
    scaled = 2.0 * torch.tanh(3.0 * capped.linear.double()(x.double()) / 2.0)
    for each, logits in zip(found, (plain, plain, scaled), strict=True):
        expected = torch.nn.functional.cross_entropy(logits, target, weight.double(), **options)
        torch.testing.assert_close(each, expected.detach().float(), rtol=1e-5, atol=1e-6)


def test_onnx_takes_targets():
    """Of the last layer and the loss, as an input of the graph."""
    model = pg.PowerGradLinearCrossEntropyLoss(4, 5, bias=True)
    onnx = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    x, target = torch.randn(3, 4), torch.tensor([0, 4, -100])
    exported = torch.onnx.export(model, (x, target), dynamo=True, verbose=False).model_proto
    names = [given.name for given in exported.graph.input]
    inputs = dict(zip(names, [x.numpy(), target.flip(0).numpy()], strict=True))
    (found,) = onnx.ReferenceEvaluator(exported).run(None, inputs)
    torch.testing.assert_close(torch.as_tensor(found), model(x, target.flip(0)).detach())


def test_onnx_of_other_sizes():
    """The number of rows that a TorchScript export leaves open, with and without smoothing."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnx.reference")

    class Losses(torch.nn.Module):
        def forward(self, x, target):
            weight = torch.linspace(0.5, 1.5, x.shape[1])
            return [
                pg.cross_entropy(x, target, weight, 1, label_smoothing=smoothing)
                for smoothing in (0.0, 0.1)
            ]

    buffer = io.BytesIO()
    example = (torch.randn(3, 5), torch.tensor([0, 1, 4]))
    axes = {name: {0: "rows"} for name in ("x", "target")}
    names = {"input_names": list(axes), "dynamic_axes": axes}
    torch.onnx.export(Losses(), example, buffer, dynamo=False, **names)
    x, target = torch.randn(7, 5), torch.tensor([0, 1, 4, 2, 2, 3, 1])
    model = onnx.load_from_string(buffer.getvalue())
    found = ort.ReferenceEvaluator(model).run(None, {"x": x.numpy(), "target": target.numpy()})
    expected = [each.numpy() for each in Losses()(x, target)]
    for each, right in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(each), torch.as_tensor(right))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (pg.PowerGradCrossEntropyLoss(label_smoothing=0.1), "cross_entropy"),
        (pg.PowerGradLinearCrossEntropyLoss(5, 5, ignore_index=1), "linear_cross_entropy"),
    ],
)
def test_onnx_of_a_scripted_loss(model, name):
    """The exporter of TorchScript would take our operators one by one from a script."""
    pytest.importorskip("onnx")
    # torch refuses scripts itself where an argument is left to its default of None.
    inputs = (torch.randn(3, 5), torch.tensor([0, 1, 4]), torch.ones(3))
    message = rf"script that calls {name}\(\) is not supported.*dynamo=True"
    with pytest.raises(RuntimeError, match=message):
        torch.onnx.export(torch.jit.script(model), inputs, io.BytesIO(), dynamo=False)


def test_onnx_of_an_exported_program():
    model, x = Classifier(pg.PowerGradLogSoftmax()), torch.randn(3, 4)
    program = torch.export.export(model, (x,))
    exported = onnx_model(program, x, dynamo=True)
    torch.testing.assert_close(evaluate(exported, x)[0], model(x).detach(), rtol=1e-5, atol=1e-6)


def test_graphs_of_training_keep_the_operators():
    """ONNX alone takes them apart: their gradient would be lost."""
    model, x = Classifier(pg.PowerGradLogSoftmax(alpha=0.3)), torch.randn(3, 4)
    program = torch.export.export(model, (x,))
    assert "powergrad.log_softmax" in str(program.graph)
    assert "powergrad.log_softmax_forward" in str(program.run_decompositions().graph)


class Holder(torch.nn.Module):
    """Has our modules beside what it computes."""

    def __init__(self, alpha):
        super().__init__()
        self.linear = torch.nn.Linear(4, 5)
        self.criterion = pg.PowerGradCrossEntropyLoss(
            torch.linspace(0.5, 1.5, 5), ignore_index=1, label_smoothing=0.1, alpha=alpha
        )
        self.log_softmax = pg.PowerGradLogSoftmax(1, alpha=alpha)

    def forward(self, x):
        return self.linear(x)


class Caller(Holder):
    def forward(self, x):
        logits = self.linear(x)
        target = torch.arange(x.shape[0])
        return self.criterion(logits, target) + self.log_softmax(logits)[:, 0].square().mean()


@pytest.mark.parametrize("alpha", [0.25, torch.tensor(0.25)], ids=["float", "tensor"])
@pytest.mark.parametrize("kind", [Holder, Caller])
def test_torchscript(kind, alpha):
    """Scripted, saved and loaded: the same values and gradients."""
    model, x = kind(alpha), torch.randn(3, 4)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    results = []
    for each in (model, torch.jit.script(model), loaded):
        output = each(x)
        gradients = torch.autograd.grad(output.sum(), list(each.linear.parameters()))
        results.append((output.detach(), gradients))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("kind", [Holder, Caller])
def test_traced(kind):
    model, x = kind(0.25), torch.randn(3, 4)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
