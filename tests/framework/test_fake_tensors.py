"""Shapes, types and strides without data: FakeTensor and meta agree with the kernels."""

import pytest
import torch
from cases import make_problem
from torch._subclasses.fake_tensor import FakeTensorMode

import powergrad_ext as pg

CASES = {
    "rows": ((6, 10), torch.float32, {}),
    "segmentation": ((2, 5, 7), torch.bfloat16, {"reduction": "none"}),
    "a single row": ((9,), torch.float64, {"reduction": "none"}),
    "probabilities": ((2, 5, 7), torch.float16, {"targets": "probabilities"}),
    "nothing": ((0, 5), torch.float32, {"reduction": "none"}),
}
cases = pytest.mark.parametrize(("shape", "dtype", "options"), CASES.values(), ids=CASES.keys())


def solve(logits, target, weight, options):
    logits = logits.detach().requires_grad_()
    loss = pg.cross_entropy(logits, target, weight, **options)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    return loss, gradient


def description(tensor):
    return tensor.shape, tensor.dtype, tensor.stride()


@cases
@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
def test_fake_tensors(shape, dtype, options, transposed):
    problem = make_problem(shape, dtype, weighted=True, **options)
    logits = problem.logits
    if transposed:
        logits = logits.transpose(0, -1).contiguous().transpose(0, -1)
    real = solve(logits, problem.target, problem.weight, problem.options)
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(t) for t in (logits, problem.target, problem.weight)]
        fake = solve(*tensors, problem.options)
    for ours, theirs in zip(fake, real, strict=True):
        assert description(ours) == description(theirs)


@cases
def test_meta_tensors(shape, dtype, options):
    problem = make_problem(shape, dtype, weighted=True, **options)
    tensors = (problem.logits, problem.target, problem.weight)
    real = solve(*tensors, problem.options)
    meta = solve(*(tensor.to("meta") for tensor in tensors), problem.options)
    for ours, theirs in zip(meta, real, strict=True):
        assert ours.is_meta
        assert description(ours) == description(theirs)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_softmax(dim):
    logits = torch.randn(2, 5, 7).bfloat16()
    real = pg.log_softmax(logits, dim)
    assert description(pg.log_softmax(logits.to("meta"), dim)) == description(real)
    with FakeTensorMode() as mode:
        assert description(pg.log_softmax(mode.from_tensor(logits), dim)) == description(real)


def test_gradient_of_log_softmax():
    """In the strides of the logits, which those of the gradient that it is given need not be."""
    logits = torch.randn(7, 5, 2).transpose(0, -1)

    def gradient_for(logits):
        logits = logits.detach().requires_grad_()
        output = pg.log_softmax(logits, 1)
        return torch.autograd.grad(output, logits, torch.ones_like(output))[0]

    real = gradient_for(logits)
    assert real.stride() == logits.stride() != pg.log_softmax(logits, 1).stride()
    assert description(gradient_for(logits.to("meta"))) == description(real)
    with FakeTensorMode() as mode:
        assert description(gradient_for(mode.from_tensor(logits))) == description(real)


def test_wrong_arguments_are_seen_without_data():
    logits = torch.randn(3, 5, device="meta")
    with pytest.raises(ValueError, match="to match target batch_size"):
        pg.cross_entropy(logits, torch.zeros(2, device="meta").long())
    with pytest.raises(IndexError, match="Dimension out of range"):
        pg.log_softmax(logits, 2)


CALLS = {
    "cross_entropy": lambda z, y, w: pg.cross_entropy(z, y),
    "unreduced": lambda z, y, w: pg.cross_entropy(z, y, reduction="none").sum(),
    "log_softmax": lambda z, y, w: pg.log_softmax(z, alpha=0.5).square().sum(),
    "linear": lambda z, y, w: pg.linear_cross_entropy(z, w, y),
    "linear unreduced": lambda z, y, w: pg.linear_cross_entropy(z, w, y, reduction="none").sum(),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@calls
def test_fake_tensors_outside_their_mode(call):
    """As torch's own functions: what they are made of says which mode is meant."""
    with torch._subclasses.FakeTensorMode():
        z, y = torch.randn(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64)
        w = torch.randn(3, 3)
    loss = call(z, y, w)
    (gradient,) = torch.autograd.grad(loss, z)
    assert type(loss) is type(gradient) is type(z)
    assert loss.shape == ()
    assert gradient.shape == z.shape


@calls
def test_real_tensors_where_the_default_device_is_meta(call):
    """Compiled as well: a model may be built there and its loss run elsewhere."""
    z, y, w = torch.randn(2, 3, requires_grad=True), torch.tensor([0, 2]), torch.randn(3, 3)
    (expected,) = torch.autograd.grad(call(z, y, w), z)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for function in (call, compiled):
        with torch.device("meta"):
            (gradient,) = torch.autograd.grad(function(z, y, w), z)
        torch.testing.assert_close(gradient, expected)
