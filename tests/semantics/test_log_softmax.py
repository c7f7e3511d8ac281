"""log_softmax over every dimension, type and conversion, as torch.log_softmax takes them."""

import pytest
import torch
from cases import check_log_softmax, make_logits
from torch.profiler import ProfilerActivity, profile

import powergrad_ext as pg
from powergrad_ext import reference

SHAPES = {
    "a number": (),
    "a row": (9,),
    "rows": (7, 33),
    "one class": (4, 1),
    "images": (2, 19, 5, 7),
    "no rows": (0, 5),
    "no classes": (5, 0),
    "GPT-2, odd": (2, 50257),
    "a long column": (9000, 3),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_dimension(shape, dtype, device, isa):
    for dim in range(-len(shape), len(shape)) if shape else (-1, 0):
        check_log_softmax(make_logits(shape, dtype, device), dim)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.25, 0.7, 2.0])
@pytest.mark.parametrize("dim", [0, 1], ids=["inner", "rows"])
def test_alpha(dim, alpha, dtype, device, isa):
    check_log_softmax(make_logits((40, 37), dtype, device), dim, alpha=alpha)


@pytest.mark.parametrize(
    ("dtype", "converted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float64),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float32),
    ],
    ids=str,
)
def test_dtype(dtype, converted, device):
    """The logits are converted first, and their gradient comes back in their own type."""
    check_log_softmax(make_logits((6, 50), dtype, device), 1, dtype=converted)


def permuted(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def padded(x):
    return torch.nn.functional.pad(x, (3, 5))[..., 3:-5]


def expanded(x):
    return x[:1].expand(x.shape)


PLACES = [permuted, channels_last, padded, expanded]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("shape", [(5, 37), (4, 5, 37), (2, 19, 5, 7)], ids=str)
def test_output_is_contiguous(shape, dim, place, dtype, device):
    """Like torch's, so that views of it work; the gradient keeps the strides of the logits."""
    logits = place(make_logits(shape, dtype, device)).detach().requires_grad_()
    output = pg.PowerGradLogSoftmax(dim)(logits)
    assert output.stride() == torch.log_softmax(logits, dim).stride()
    assert pg.log_softmax(logits.detach(), dim, dtype=torch.float64).is_contiguous()
    (gradient,) = torch.autograd.grad(output, logits, output)
    assert gradient.stride() == torch.empty_like(logits).stride()
    check_log_softmax(logits, dim)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_contiguous_output_costs_one_copy_at_most(dim, place):
    """None where classes are neighbours in the logits and in the output."""
    logits = place(make_logits((4, 5, 37), torch.float32, "cpu"))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        pg.log_softmax(logits, dim)
    copies = sum(event.name == "aten::copy_" for event in profiler.events())
    assert copies <= (0 if dim == 2 and logits.stride(2) == 1 else 1)


def test_jagged_logits(device):
    """As torch's: along a dimension that is the same for all."""
    parts = [make_logits((rows, 7), torch.float32, device, seed=rows) for rows in (3, 0, 5)]
    logits = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    output = pg.log_softmax(logits, alpha=0.5)
    assert output.shape == logits.shape
    (output * logits.detach()).values().sum().backward()
    for part, ours, gradient in zip(parts, output.unbind(), logits.grad.unbind(), strict=True):
        z = part.clone().requires_grad_()
        expected = pg.log_softmax(z, alpha=0.5)
        (expected * part).sum().backward()
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(gradient, z.grad)


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_jagged_logits_with_lengths(transposed, device):
    """What lies between the rows that count is not part of the tensor, nor of the result."""
    values = make_logits((9, 7), torch.float32, device).requires_grad_()
    offsets, lengths = torch.tensor([[0, 4, 6, 9], [3, 0, 2, -1]], device=device)
    lengths = lengths[:3]
    logits = torch.nested.nested_tensor_from_jagged(values, offsets, lengths)
    given, dim = (logits.transpose(1, 2), 1) if transposed else (logits, 2)
    output = pg.log_softmax(given, dim, alpha=0.5)
    torch.testing.assert_close(output.lengths(), lengths)
    for first, count, part in zip(offsets, lengths, output.unbind(), strict=False):
        expected = torch.log_softmax(values[first : first + count], 1)
        torch.testing.assert_close(part.T if transposed else part, expected)
    grad_output = make_logits((9, 7), torch.float32, device, seed=1)
    by_values = grad_output.T if transposed else grad_output
    output.values().backward(by_values)
    expected = grad_output - torch.softmax(0.5 * values, 1) * grad_output.sum(1, keepdim=True)
    torch.testing.assert_close(values.grad, expected.detach())


@pytest.mark.parametrize("function", [pg.log_softmax, reference.log_softmax])
def test_integers_with_dtype(function, device):
    logits = torch.tensor([[1, 2, 3]], device=device)
    torch.testing.assert_close(
        function(logits, 1, dtype=torch.float32), torch.log_softmax(logits, 1, dtype=torch.float32)
    )


def test_confident_rows_keep_their_digits(dtype, device, isa):
    """log p near 0 and 1 - p' near 0, in both layouts: neither is a difference of rounded ones."""
    logits = torch.linspace(-1.0, 0.0, 40).repeat(3, 1)
    logits[:, 7] = torch.tensor([20.0, 33.0, 50.0])
    check_log_softmax(logits.to(device, dtype), 1)
    check_log_softmax(logits.T.contiguous().to(device, dtype), 0)


def test_row_offset(device, isa):
    logits = make_logits((5, 300), torch.float32, device) + 2.0**20
    check_log_softmax(logits, 1)
    check_log_softmax(logits, 0)


def test_loss_on_log_probabilities_is_the_fused_loss(device):
    """cross_entropy is nll_loss on log_softmax, fused: also in its gradient."""
    logits = make_logits((6, 50), torch.float64, device).requires_grad_()
    target = torch.arange(6, device=device)
    fused = pg.cross_entropy(logits, target)
    composed = torch.nn.functional.nll_loss(pg.log_softmax(logits, 1), target)
    torch.testing.assert_close(fused, composed)
    (of_fused,) = torch.autograd.grad(fused, logits)
    (of_composed,) = torch.autograd.grad(composed, logits)
    torch.testing.assert_close(of_fused, of_composed, rtol=1e-12, atol=1e-14)


def test_retained_graph(device):
    logits = make_logits((6, 50), torch.float32, device).requires_grad_()
    output = pg.log_softmax(logits, 1)
    grad_output = torch.randn(6, 50).to(output)
    (first,) = torch.autograd.grad(output, logits, grad_output, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(output, logits, 2 * grad_output)
    assert torch.equal(first, kept)
    assert torch.equal(second, 2 * kept)


INVALID = {
    "dimension": (torch.randn(3, 5), {"dim": 2}, IndexError, "Dimension out of range"),
    "dimension of a number": (torch.randn(()), {"dim": 1}, IndexError, "Dimension out of range"),
    "integers": (torch.ones(3, 5).long(), {}, (TypeError, RuntimeError), "input.*Long"),
    "complex": (torch.ones(3, 5).cfloat(), {}, (TypeError, RuntimeError), "input.*ComplexFloat"),
    "integer dtype": (
        torch.randn(3, 5),
        {"dtype": torch.int64},
        (TypeError, RuntimeError),
        "Long",
    ),
    "sparse": (torch.randn(3, 5).to_sparse(), {}, RuntimeError, "input.*[Ss]parse"),
    "not a tensor": ([1.0, 2.0], {}, TypeError, ""),
}


@pytest.mark.parametrize(("logits", "options", "kind", "words"), INVALID.values(), ids=INVALID)
def test_invalid(logits, options, kind, words):
    with pytest.raises(kind, match=words):
        pg.log_softmax(logits, **options)
