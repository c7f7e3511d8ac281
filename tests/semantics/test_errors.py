"""Wrong arguments: one clear sentence with the argument, the value and what was expected.

And nothing is computed or written before it, also not by the raw operators, which C++ programs and
compiled graphs call without passing through Python.
"""

import math
import re

import pytest
import torch

import powergrad_ext as pg
from powergrad_ext.options import Options

CLASSES = 5
OPS = torch.ops.powergrad
TYPE_ERRORS = (TypeError, RuntimeError)
INDEX = torch.tensor([0, 4, 2])


def logits(*shape):
    return torch.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)


def probabilities(dtype=torch.float32):
    return torch.full((3, CLASSES), 1 / CLASSES, dtype=dtype)


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
invalid = pytest.mark.parametrize(("bad", "kind", "words"), INVALID.values(), ids=INVALID.keys())


def arguments(device="cpu", **bad):
    good = {"input": logits(3, CLASSES), "target": INDEX, **Options().keywords()}
    return {name: beside(device, value) for name, value in (good | bad).items()}


def beside(device, value):
    """The same argument on a device, unless it is meant to be elsewhere."""
    if isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return value.to(device)
    return value


def as_operator_arguments(given):
    alpha = given["alpha"]
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64)
    return given | {"alpha": alpha}


def raw_forward(**given):
    return OPS.cross_entropy_forward(**as_operator_arguments(given), needs_backward=True)


def saved_by_forward(device):
    returned = raw_forward(**arguments(device))
    return dict(zip(("statistics", "total_weight"), returned[1:], strict=True))


def raw_backward(**given):
    device = given["input"].device
    given = as_operator_arguments(given) | saved_by_forward(device)
    return OPS.cross_entropy_backward(grad_output=torch.ones((), device=device), **given)


def operator(**given):
    return OPS.cross_entropy(**as_operator_arguments(given))


def in_place_backward(**given):
    return pg.cross_entropy(**given, inplace_backward=True)


CALLS = [
    pg.cross_entropy,
    in_place_backward,
    operator,
    raw_forward,
    raw_backward,
]


@invalid
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_invalid(call, bad, kind, words, device):
    skip_device_assertion(device, kind)
    given = arguments(device, **bad)
    before = given["input"].clone()
    with pytest.raises(kind, match=words):
        call(**given)
    assert same(given["input"], before)


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


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nested_tensors(requires_grad, layout):
    def nested(tensor, **options):
        return torch.nested.nested_tensor([tensor, tensor], layout=layout, **options)

    bad = {
        "input": nested(logits(3, CLASSES), requires_grad=requires_grad),
        "target": nested(torch.zeros(3)),
        "weight": nested(torch.ones(CLASSES)),
    }
    for name, tensor in bad.items():
        given = arguments() | {name: tensor}
        for call in (pg.cross_entropy, in_place_backward, operator, raw_forward):
            with pytest.raises(
                RuntimeError, match=rf"'{name}' must be a dense.*nested.*torch\.cat"
            ):
                call(**given)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nested_logits_of_log_softmax(requires_grad):
    strided = torch.nested.nested_tensor([logits(3, CLASSES)], requires_grad=requires_grad)
    jagged = torch.nested.nested_tensor([logits(3, CLASSES)], layout=torch.jagged)

    def operator_log_softmax(z):
        return OPS.log_softmax(z, alpha=torch.tensor(0.3))

    for function, nested in (
        (pg.log_softmax, strided),
        (operator_log_softmax, strided),
        (operator_log_softmax, jagged),
    ):
        with pytest.raises(RuntimeError, match=r"'input' must be a dense.*nested.*torch\.cat"):
            function(nested)
    for dim in (0, 1):
        with pytest.raises(
            ValueError, match=f"'dim' must be .* not the batch or the ragged.*{dim}"
        ):
            pg.log_softmax(jagged, dim)
    with pytest.raises(IndexError, match=r"\[-3, 2\], but got 3"):
        pg.log_softmax(jagged, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized_logits():
    quantized = torch.quantize_per_tensor(logits(3, CLASSES), 0.1, 0, torch.qint8)
    with pytest.raises(TYPE_ERRORS, match=r"input.*quantized|quantized.*input"):
        pg.cross_entropy(quantized, INDEX)
    with pytest.raises(TYPE_ERRORS, match=r"input.*quantized|quantized.*input"):
        pg.log_softmax(quantized)


@pytest.mark.parametrize("bad", [[0.0, 1.0], None, "logits"], ids=str)
def test_not_a_tensor(bad):
    with pytest.raises(TypeError):
        pg.cross_entropy(bad, INDEX)
    with pytest.raises(TypeError):
        pg.cross_entropy(logits(3, CLASSES), bad)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weight", [1.0] * CLASSES, "must be Tensor or None, not list"),
        ("ignore_index", 2.0, "must be int .*, not float"),
        ("ignore_index", None, "must be int .*, not NoneType"),
        ("ignore_index", 2**63, "must be int .*, not 9223372036854775808"),
        ("reduction", None, "must be str, not NoneType"),
        ("label_smoothing", "0.1", "must be float, not str"),
        ("inplace_backward", "yes", "must be bool, not str"),
    ],
    ids=str,
)
def test_argument_of_another_type(name, value, words):
    with pytest.raises(TypeError, match=f"argument '{name}' {words}"):
        pg.cross_entropy(logits(3, CLASSES), INDEX, **{name: value})


@pytest.mark.parametrize(("dim", "words"), [("1", "not str"), (2**63, "not 9223372036854775808")])
def test_dim_of_another_type(dim, words):
    with pytest.raises(TypeError, match=f"argument 'dim' must be int .*, {words}"):
        pg.log_softmax(logits(3, CLASSES), dim)


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
