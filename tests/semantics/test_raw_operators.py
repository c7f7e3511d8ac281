"""torch.ops.powergrad.*: what the raw operators return, together and one by one."""

import pytest
import torch
from cases import generator, make_logits, make_problem
from oracle import (
    assert_gradient,
    assert_log_probabilities,
    assert_loss,
    definition,
    log_softmax_definition,
)

from powergrad_ext.options import Options

OPS = torch.ops.powergrad
ALPHA = torch.tensor(0.3, dtype=torch.float64)

CASES = {
    "mean": {"reduction": "mean"},
    "sum, weights": {"reduction": "sum", "weighted": True},
    "none, smoothing": {"reduction": "none", "label_smoothing": 0.1},
    "mean, weights and smoothing": {"weighted": True, "label_smoothing": 0.1},
    "probabilities": {"targets": "probabilities"},
}
CALLS = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
SHAPES = pytest.mark.parametrize("shape", [(6, 50), (3, 5, 37), (1, 70000)], ids=str)


def raw_arguments(problem):
    return problem.target, *Options(problem.weight, **problem.options, alpha=ALPHA)


@CALLS
@SHAPES
def test_forward_and_backward(shape, options, dtype, device, isa):
    problem = make_problem(shape, dtype, device, **options)
    raw = raw_arguments(problem)
    loss, statistics, total = OPS.cross_entropy_forward(problem.logits, *raw, True)
    grad_output = problem.grad_output(loss)
    target, *options = raw
    gradient = OPS.cross_entropy_backward(
        grad_output, problem.logits, target, statistics, total, *options
    )
    expected = problem.expected(definition, grad_output)
    assert_loss(loss, expected.loss)
    assert_gradient(gradient, expected.gradient, problem.class_dim, expected.terms)


def test_forward_without_backward_saves_nothing(dtype, device):
    problem = make_problem((6, 50), dtype, device)
    loss, statistics, _ = OPS.cross_entropy_forward(problem.logits, *raw_arguments(problem), False)
    assert statistics.numel() == 0
    with_statistics = OPS.cross_entropy_forward(problem.logits, *raw_arguments(problem), True)
    torch.testing.assert_close(loss, with_statistics[0], rtol=4e-6, atol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_backward_does_not_need_is_not_returned(requires_grad, device):
    """Whether autograd keeps it or not: compilers plan with the sizes that a fake tensor has."""
    problem = make_problem((6, 50), torch.float32, device)
    logits = problem.logits.requires_grad_(requires_grad)
    raw = raw_arguments(problem)
    for needs_backward, shape in ((False, (0, 6)), (True, (3, 6))):
        statistics = OPS.cross_entropy_forward(logits, *raw, needs_backward)[1]
        assert statistics.shape == shape
    for needs_backward, shape in ((False, (0, 6)), (True, (2, 6))):
        statistics = OPS.log_softmax_forward(logits, 1, ALPHA, needs_backward)[1]
        assert statistics.shape == shape


def test_statistics_in_another_type_and_order(device):
    """As whoever kept them may give them back: the gradient has the same bits."""
    problem = make_problem((6, 50), torch.float32, device)
    target, *options = raw_arguments(problem)
    logits, ones = problem.logits, torch.ones(6, 50, device=device)
    _, of_loss, total = OPS.cross_entropy_forward(logits, target, *options, True)
    _, of_output = OPS.log_softmax_forward(logits, 1, ALPHA, True)

    def gradients(change):
        return (
            OPS.cross_entropy_backward(
                ones[0, 0], logits, target, change(of_loss), change(total), *options
            ),
            OPS.log_softmax_backward(ones, logits, 1, ALPHA, change(of_output)),
        )

    def in_columns(tensor):
        return tensor.t().contiguous().t()

    right = gradients(torch.clone)
    for change in (torch.Tensor.double, torch.Tensor.float, in_columns):
        torch.testing.assert_close(gradients(change), right, rtol=0, atol=0)


def test_total_weight(device):
    """What the mean divides by: summed weights, of the rows that count."""
    problem = make_problem((6, 50), torch.float32, device, weighted=True)
    total = OPS.cross_entropy_forward(problem.logits, *raw_arguments(problem), True)[2]
    counted = problem.target[problem.target != -100]
    torch.testing.assert_close(total, problem.weight.double()[counted].sum())


@pytest.mark.parametrize("dim", [0, 1], ids=["inner", "rows"])
def test_log_softmax(dim, dtype, device, isa):
    logits = make_logits((70, 50), dtype, device)
    output, statistics = OPS.log_softmax_forward(logits, dim, ALPHA, True)
    grad_output = torch.randn(70, 50, generator=generator(1)).to(output)
    gradient = OPS.log_softmax_backward(grad_output, logits, dim, ALPHA, statistics)
    expected_output, expected, terms = log_softmax_definition(logits, dim, grad_output, 0.3)
    assert_log_probabilities(output, expected_output)
    assert_gradient(gradient, expected, dim, terms)
    alone, nothing = OPS.log_softmax_forward(logits, dim, ALPHA, False)
    assert_log_probabilities(alone, expected_output)
    assert nothing.numel() == 0


@pytest.fixture
def nan_in_fresh_memory():
    """PyTorch's own way to see who reads, or hands out, memory that nobody wrote."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@SHAPES
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_every_element_is_written(shape, dtype, device):
    """Also of what ignored rows and other reductions have no use for."""
    assert torch.empty(3).isnan().all()
    problem = make_problem(shape, dtype, device, weighted=True)
    raw = raw_arguments(problem)
    target, *options = raw
    _, statistics, total = forward = OPS.cross_entropy_forward(problem.logits, *raw, True)
    grad_output = torch.ones((), device=device, dtype=forward[0].dtype)
    logits = problem.logits.clone().requires_grad_()
    loss = OPS.cross_entropy(logits, target, **Options(*options).keywords())
    returned = [
        *forward,
        *torch.autograd.grad(loss, logits),
        OPS.cross_entropy_backward(
            grad_output, problem.logits, target, statistics, total, *options
        ),
    ]
    for dim in (0, 1):
        output, statistics = OPS.log_softmax_forward(problem.logits, dim, ALPHA, True)
        gradient = OPS.log_softmax_backward(output, problem.logits, dim, ALPHA, statistics)
        returned += [output, statistics, gradient]
    assert not any(tensor.isnan().any() for tensor in returned)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_alpha_made_in_inference_mode(reduction, device):
    """Which autograd does not save as it is."""
    with torch.inference_mode():
        alpha = torch.tensor(0.6, dtype=torch.float64)
    logits = make_logits((6, 7), torch.float32, device).requires_grad_()
    weight = make_logits((5, 7), torch.float32, device)
    target = torch.arange(6, device=device)
    calls = {
        "cross_entropy": lambda a: OPS.cross_entropy(logits, target, reduction=reduction, alpha=a),
        "linear_cross_entropy": lambda a: OPS.linear_cross_entropy(
            logits, weight, target % 5, reduction=reduction, alpha=a
        ),
        "log_softmax": lambda a: OPS.log_softmax(logits, alpha=a).square(),
    }
    for name, call in calls.items():
        found, right = (torch.autograd.grad(call(a).sum(), logits) for a in (alpha, alpha.clone()))
        torch.testing.assert_close(found, right, rtol=0, atol=0, msg=name)
