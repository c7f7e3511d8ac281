"""Wrong arguments: one clear sentence with the argument, the value and what was expected.

And nothing is computed or written before it, also not by the raw operators, which C++ programs and
compiled graphs call without passing through Python.
"""

import math
import re

import pytest
import torch
from calls import (
    CALLS,
    CLASSES,
    INDEX,
    OPS,
    arguments,
    as_operator_arguments,
    last_layer,
    last_layer_of_many_dimensions,
    logits,
    probabilities,
    raw_forward,
    raw_shard,
    saved_by_forward,
    with_metrics,
)

import powergrad_ext as pg

TYPE_ERRORS = (TypeError, RuntimeError)


# name: (arguments that replace good ones, class of the error, what its text matches)
INVALID = {
    "alpha zero": ({"alpha": 0.0}, ValueError, "alpha.*0"),
    "alpha negative": ({"alpha": -1.5}, ValueError, r"alpha.*-1\.5"),
    "alpha nan": ({"alpha": math.nan}, ValueError, "alpha.*nan"),
    "alpha infinite": ({"alpha": math.inf}, ValueError, "alpha.*inf"),
    "alpha vector": ({"alpha": torch.ones(2)}, ValueError, "alpha"),
    "no classes": (
        {"input": torch.empty(0), "target": torch.tensor(-100)},
        RuntimeError,
        r"'input' must have at least one class, got shape \[0\]",
    ),
    "reduction": (
        {"reduction": "average"},
        ValueError,
        "average is not a valid value for reduction",
    ),
    "smoothing above 1": (
        {"label_smoothing": 1.5},
        RuntimeError,
        r"label_smoothing must be between 0\.0 and 1\.0\. Got: 1\.5",
    ),
    "smoothing below 0": (
        {"label_smoothing": -0.5},
        RuntimeError,
        r"label_smoothing must be between 0\.0 and 1\.0\. Got: -0\.5",
    ),
    "smoothing nan": ({"label_smoothing": math.nan}, RuntimeError, "label_smoothing.*nan"),
    "weight length": (
        {"weight": torch.ones(4)},
        RuntimeError,
        r"weight tensor should be defined either for all 5 classes.*\[4\]",
    ),
    "weight dimensions": ({"weight": torch.ones(5, 1)}, RuntimeError, r"weight tensor.*\[5, 1\]"),
    "weight integer": (
        {"weight": torch.ones(5).long()},
        TypeError,
        "'weight' must be float32, float64, bfloat16 or float16, got Long",
    ),
    "weight sparse": ({"weight": torch.ones(5).to_sparse()}, RuntimeError, "weight.*[Ss]parse"),
    "weight with gradient": ({"weight": torch.ones(5, requires_grad=True)}, RuntimeError, "weight"),
    "weight elsewhere": ({"weight": torch.ones(5, device="meta")}, RuntimeError, "same device"),
    "target too large": ({"target": torch.tensor([0, 10, 1])}, IndexError, "Target 10 .*5"),
    "target is C": ({"target": torch.tensor([0, 5, 1])}, IndexError, "Target 5 .*5"),
    "target negative": ({"target": torch.tensor([0, 1, -1])}, IndexError, "Target -1 .*5"),
    "target far out": ({"target": torch.tensor([2**40, 0, 1])}, IndexError, "Target 1099511627776"),
    "target int32": ({"target": torch.tensor([0, 7, 1]).int()}, IndexError, "Target 7 .*5"),
    "target was ignored": (
        {"target": torch.tensor([0, -100, 1]), "ignore_index": 2},
        IndexError,
        "Target -100",
    ),
    "batch": (
        {"target": torch.tensor([0, 1])},
        ValueError,
        re.escape("Expected input batch_size (3) to match target batch_size (2)."),
    ),
    "target of two dimensions": (
        {"target": torch.zeros(3, 1).long()},
        RuntimeError,
        "multi-target not supported",
    ),
    "spatial target": (
        {"input": logits(3, CLASSES, 4), "target": torch.zeros(3, 3).long()},
        RuntimeError,
        r"Expected target size \[3, 4\], got \[3, 3\]",
    ),
    "target of a row": (
        {"input": logits(CLASSES), "target": torch.zeros(2).long()},
        (RuntimeError, ValueError),
        "target",
    ),
    "float index": (
        {"target": torch.zeros(3)},
        TYPE_ERRORS,
        r"Long.*Float.*'target'.*int64.*shape of 'input', \[3, 5\], got shape \[3\]",
    ),
    "bool target": ({"target": torch.zeros(3).bool()}, TYPE_ERRORS, "Long.*Bool"),
    "int16 target": (
        {"target": torch.zeros(3).short()},
        TYPE_ERRORS,
        r"Long but found Short.*'target' must be int64, int32 or uint8.*target\.long\(\)",
    ),
    "uint8 target out of range": ({"target": torch.tensor([0, 200, 1]).byte()}, IndexError, "200"),
    "integer probabilities": (
        {"target": torch.ones(3, CLASSES).long()},
        TYPE_ERRORS,
        "Expected floating point type for target with class probabilities, got Long",
    ),
    "sparse probabilities": ({"target": probabilities().to_sparse()}, RuntimeError, "target"),
    "ignored probabilities": (
        {"target": probabilities(), "ignore_index": 2},
        RuntimeError,
        "ignore_index is not supported for floating point target",
    ),
    "target elsewhere": ({"target": INDEX.to("meta")}, RuntimeError, "same device.*meta"),
    "integer logits": ({"input": torch.ones(3, CLASSES).long()}, TYPE_ERRORS, "input.*Long"),
    "bool logits": ({"input": torch.ones(3, CLASSES).bool()}, TYPE_ERRORS, "input.*Bool"),
    "complex logits": ({"input": torch.ones(3, CLASSES).cfloat()}, TYPE_ERRORS, "input.*Complex"),
    "sparse logits": ({"input": logits(3, CLASSES).to_sparse()}, RuntimeError, "input.*[Ss]parse"),
    "logits without classes": (
        {"input": torch.tensor(1.0), "target": torch.tensor(0)},
        RuntimeError,
        "input",
    ),
    "no class to choose": ({"input": logits(3, 0)}, (RuntimeError, IndexError), "class|Target 0"),
}
# Of options that have the same words wherever they are given.
OF_ROWS = {
    "z-loss negative": ({"z_loss": -1e-4}, ValueError, r"'z_loss' must be finite and >= 0, got -"),
    "z-loss infinite": ({"z_loss": math.inf}, ValueError, "'z_loss' must be finite.*got inf"),
    "z-loss nan": ({"z_loss": math.nan}, ValueError, "'z_loss' must be finite.*got nan"),
    "too many weights": (
        {"row_weight": torch.ones(4)},
        RuntimeError,
        r"'row_weight' must have a number for each row, shape \[3\], got shape \[4\]",
    ),
    "weights of classes": (
        {"row_weight": torch.ones(3, CLASSES)},
        RuntimeError,
        r"'row_weight' must .* shape \[3\], got shape \[3, 5\]",
    ),
    "one weight": (
        {"row_weight": torch.tensor(1.0)},
        RuntimeError,
        r"'row_weight'.* got shape \[\]",
    ),
    "integer weights": (
        {"row_weight": torch.ones(3).long()},
        TypeError,
        "'row_weight' must be float32, float64, bfloat16 or float16, got Long",
    ),
    "boolean weights": ({"row_weight": torch.ones(3).bool()}, TypeError, "'row_weight'.*Bool"),
    "weights with a gradient": (
        {"row_weight": torch.ones(3, requires_grad=True)},
        RuntimeError,
        r"derivative for 'row_weight' is not implemented; pass row_weight\.detach\(\)",
    ),
    "weights elsewhere": (
        {"row_weight": torch.ones(3, device="meta")},
        RuntimeError,
        "same device.*'row_weight'",
    ),
    "infinite weight": (
        {"row_weight": torch.tensor([1.0, math.inf, 1.0])},
        ValueError,
        "'row_weight' must be finite and >= 0, got inf for row 1",
    ),
    "a weight beyond float32": (
        {"row_weight": torch.tensor([1.0, 1.0, 1e60], dtype=torch.float64)},
        ValueError,
        "'row_weight' must be finite and >= 0, got inf for row 2",
    ),
    "sparse weights": (
        {"row_weight": torch.ones(3).to_sparse()},
        RuntimeError,
        "'row_weight' must be a dense",
    ),
    "negative weight": (
        {"row_weight": torch.tensor([1.0, -2.5, 1.0])},
        ValueError,
        r"'row_weight' must be finite and >= 0, got -2\.5 for row 1",
    ),
    "nan weight": (
        {"row_weight": torch.tensor([1.0, 1.0, math.nan])},
        ValueError,
        "'row_weight' must be finite and >= 0, got nan for row 2",
    ),
}


def cases_of(table):
    return pytest.mark.parametrize(("bad", "kind", "words"), table.values(), ids=table.keys())


invalid = cases_of(INVALID | OF_ROWS)


@invalid
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_invalid(call, bad, kind, words, device):
    skip_device_assertion(device, kind)
    given = arguments(device, **bad)
    before = given["input"].clone()
    with pytest.raises(kind, match=words):
        call(**given)
    assert same(given["input"], before)


@cases_of(OF_ROWS)
@pytest.mark.parametrize("call", [with_metrics, raw_shard, last_layer], ids=lambda c: c.__name__)
def test_invalid_options_of_rows(call, bad, kind, words, device):
    with pytest.raises(kind, match=words):
        call(**arguments(device, **bad))


@pytest.mark.parametrize("name", ["negative weight", "z-loss nan", "weights with a gradient"])
def test_invalid_options_of_a_layer_of_many_dimensions(name, device):
    bad, kind, words = OF_ROWS[name]
    with pytest.raises(kind, match=words):
        last_layer_of_many_dimensions(**arguments(device, **bad))


@invalid
def test_invalid_under_autograd(bad, kind, words, device):
    skip_device_assertion(device, kind)
    given = arguments(device, **bad)
    if given["input"].is_floating_point():
        given["input"] = given["input"].clone().requires_grad_()
    with pytest.raises(kind, match=words):
        pg.cross_entropy(**given)


def skip_device_assertion(device, kind):
    if kind is IndexError and device.type == "cuda":
        pytest.skip("a target out of range ends the process: tests/gpu/test_assertions.py")


def same(a, b):
    if a.is_sparse:
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b)


def test_out_of_range_target_of_a_row_of_weights():
    """The weight of a class that is not there is not read either."""
    with pytest.raises(IndexError, match="Target 5"):
        pg.cross_entropy(logits(CLASSES), torch.tensor(5), torch.ones(CLASSES))


BAD_SAVED = {
    "statistics shape": lambda: {"statistics": torch.zeros(1, 1)},
    "statistics type": lambda: {"statistics": torch.zeros(3, 3).long()},
    "statistics elsewhere": lambda: {"statistics": torch.zeros(3, 3, device="meta")},
    "total_weight shape": lambda: {"total_weight": torch.zeros(2).double()},
    "total_weight type": lambda: {"total_weight": torch.tensor(3)},
    "grad_output shape": lambda: {"grad_output": torch.ones(2)},
}


@pytest.mark.parametrize("bad", BAD_SAVED.values(), ids=BAD_SAVED.keys())
def test_backward_with_what_forward_did_not_return(bad, device):
    given = as_operator_arguments(arguments(device)) | saved_by_forward(device)
    with device:
        given |= {"grad_output": torch.ones(())} | bad()
        (wrong,) = bad()
    before = given["input"].clone()
    with pytest.raises(RuntimeError, match=wrong):
        OPS.cross_entropy_backward(**given)
    assert torch.equal(given["input"], before)


METRICS_OF_PROBABILITIES = {
    "cross_entropy": with_metrics,
    "last layer": lambda **given: last_layer(**given, return_metrics=True),
    "reference": lambda **given: pg.reference.cross_entropy(**given, return_metrics=True),
    "shard": lambda **given: raw_shard(**given, metrics=True),
    "meta": lambda **given: raw_forward(**arguments("meta", **given), metrics=True),
}


@pytest.mark.parametrize(
    "call", METRICS_OF_PROBABILITIES.values(), ids=METRICS_OF_PROBABILITIES.keys()
)
def test_metrics_need_class_indices(call):
    with pytest.raises(ValueError, match=r"return_metrics.* must be False.*probabilities"):
        call(**arguments("cpu", target=probabilities()))


@pytest.mark.parametrize("z_loss", [-1.0, math.inf, math.nan, "no"])
def test_modules(z_loss):
    for make in (
        pg.PowerGradCrossEntropyLoss,
        lambda **o: pg.PowerGradLinearCrossEntropyLoss(2, 4, **o),
    ):
        with pytest.raises(ValueError, match="z_loss must be a finite number >= 0"):
            make(z_loss=z_loss)


@pytest.mark.parametrize("bad", [{"z_loss": -1.0}, {"row_weight": -torch.ones(3)}], ids=str)
def test_reference(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        pg.reference.cross_entropy(**arguments(**bad))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("row_weight", torch.ones(3)),
        ("z_loss", torch.tensor(0.1)),
        ("label_smoothing", torch.tensor(0.1)),
    ],
)
def test_no_derivative_is_silently_0(name, value):
    """Of torch.func, also for numbers that torch takes as 0-d tensors."""

    def loss(value):
        return pg.cross_entropy(**arguments(**{name: value}))

    with pytest.raises((TypeError, RuntimeError), match=name):
        torch.func.grad(loss)(value)
    with pytest.raises((TypeError, RuntimeError), match=name):
        loss(value.clone().requires_grad_())
