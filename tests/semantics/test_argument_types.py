"""Arguments of other types: those that are taken beside the logits', and those that are not."""

import functools

import pytest
import torch
import torch.nn.functional as F
from calls import CALLS, CLASSES, INDEX, OPS, arguments, last_layer, logits
from cases import DTYPES, LAYOUTS, check, make_problem

import powergrad_ext as pg

SHAPES = {"rows": (6, 50), "inner": (3, 5, 37)}
OF_ROWS = [
    ("z_loss", "no", "must be float, not str"),
    ("row_weight", [1.0] * 3, "must be Tensor or None, not list"),
    ("return_metrics", 1, "must be bool, not int"),
]
OTHERS = pytest.mark.parametrize("other", DTYPES, ids=lambda other: f"with {other}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_uint8_targets(reduction, ignore_index, layout, dtype, device):
    problem = make_problem(
        SHAPES[layout], dtype, device, reduction=reduction, ignore_index=ignore_index, weighted=True
    )
    problem.target = problem.target.clamp(min=0).to(torch.uint8)
    check(problem)
    loss = pg.PowerGradCrossEntropyLoss(
        problem.weight, ignore_index, reduction, alpha=problem.alpha
    )(problem.logits, problem.target)
    as_int64 = problem.loss(problem.logits, problem.target.long())
    torch.testing.assert_close(loss, as_int64, rtol=0, atol=0)


def test_uint8_ignore_index_of_segmentation(device):
    """255, the label of what is not to be learned."""
    logits = torch.randn(2, 5, 7, dtype=torch.float64, device=device)
    target = torch.randint(0, 5, (2, 7), device=device)
    target[0, 3] = target[1, 0] = 255
    expected = F.cross_entropy(logits, target, ignore_index=255)
    ours = pg.cross_entropy(logits, target.byte(), ignore_index=255)
    torch.testing.assert_close(ours, expected)


@OTHERS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_probabilities(reduction, layout, other, dtype, device):
    """As if they had been converted first; their gradient comes back in their own type."""
    problem = make_problem(
        SHAPES[layout], dtype, device, reduction=reduction, targets="probabilities", weighted=True
    )
    problem.target = problem.target.to(other)
    logits, wide = problem.logits.clone().requires_grad_(), problem.logits.clone().requires_grad_()
    target = problem.target.requires_grad_()
    same = problem.target.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    for z, q in ((logits, target), (wide, same)):
        loss = problem.loss(z, q)
        loss.backward(problem.grad_output(loss))
    assert target.grad.dtype == other
    torch.testing.assert_close(logits.grad, wide.grad)
    torch.testing.assert_close(target.grad, same.grad.to(other))


@OTHERS
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("targets", ["int64", "probabilities"])
def test_weights(targets, autocast, other, dtype, device):
    problem = make_problem((6, 50), dtype, device, targets=targets, weighted=True)
    problem.weight = problem.weight.to(other)
    loss_of = problem.loss

    def loss(logits, target):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            return loss_of(logits, target)

    problem.loss = loss
    check(problem)


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
        for call in CALLS:
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
    with pytest.raises((TypeError, RuntimeError), match=r"input.*quantized|quantized.*input"):
        pg.cross_entropy(quantized, INDEX)
    with pytest.raises((TypeError, RuntimeError), match=r"input.*quantized|quantized.*input"):
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
        *OF_ROWS,
    ],
    ids=str,
)
def test_argument_of_another_type(name, value, words):
    with pytest.raises(TypeError, match=f"argument '{name}' {words}"):
        pg.cross_entropy(logits(3, CLASSES), INDEX, **{name: value})


@pytest.mark.parametrize(("name", "value", "words"), OF_ROWS, ids=str)
def test_argument_of_another_type_of_the_last_layer(name, value, words):
    with pytest.raises(TypeError, match=f"argument '{name}' {words}"):
        last_layer(logits(3, CLASSES), INDEX, **{name: value})


@pytest.mark.parametrize(
    "make",
    [pg.PowerGradCrossEntropyLoss, functools.partial(pg.PowerGradLinearCrossEntropyLoss, 4, 7)],
)
def test_return_metrics_of_modules_is_a_bool(make):
    with pytest.raises(TypeError, match="'return_metrics' must be bool, not int"):
        make(return_metrics=1)


@pytest.mark.parametrize(("dim", "words"), [("1", "not str"), (2**63, "not 9223372036854775808")])
def test_dim_of_another_type(dim, words):
    with pytest.raises(TypeError, match=f"argument 'dim' must be int .*, {words}"):
        pg.log_softmax(logits(3, CLASSES), dim)
