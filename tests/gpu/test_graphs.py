"""CUDA graphs: captured once, replayed with other numbers in the same tensors.

A replay sees what its tensors hold by then: the logits, how many rows are ignored, and alpha.
"""

import pytest
import torch
from cases import check_log_softmax, make_logits, make_problem
from oracle import assert_gradient, assert_loss, definition

import powergrad_ext as pg

CASES = {
    "mean": {},
    "sum, weights, smoothing": {"reduction": "sum", "weighted": True, "label_smoothing": 0.1},
    "none, int32": {"reduction": "none", "targets": "int32"},
    "probabilities": {"targets": "probabilities", "weighted": True},
}
SHAPES = {"rows": (64, 1000), "long rows": (4, 50257), "inner": (2, 21, 37)}


def capture(step):
    """A graph of one step, and the tensors that its replays write."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = step()
    return graph, written


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replays_with_other_logits_targets_and_alpha(dtype, shape, options):
    problem = make_problem(shape, dtype, "cuda", **options)
    problem.alpha = torch.tensor(0.3, device="cuda")
    logits = problem.logits.requires_grad_()
    grad_output = problem.grad_output(problem.loss(logits, problem.target).detach())

    def step():
        loss = problem.loss(logits, problem.target)
        return loss.detach(), torch.autograd.grad(loss, logits, grad_output)[0]

    graph, (loss, gradient) = capture(step)
    for seed, alpha in enumerate([0.3, 1.0, 0.25], start=1):
        other = make_problem(shape, dtype, "cuda", seed=seed, **options)
        with torch.no_grad():
            logits.copy_(other.logits)
        problem.target.copy_(other.target)
        if not problem.target.is_floating_point():
            problem.target.view(-1)[: seed * 2] = -100  # more of them are ignored every time
        problem.alpha.fill_(alpha)
        graph.replay()
        expected = problem.expected(definition, grad_output)
        assert_loss(loss, expected.loss)
        assert_gradient(gradient, expected.gradient, problem.class_dim, expected.terms)


def test_inplace_backward():
    problem = make_problem((64, 1000), torch.bfloat16, "cuda")
    problem.alpha = torch.tensor(0.3, device="cuda")
    source = problem.logits.clone()
    grad_output = torch.ones((), device="cuda")

    def step():
        logits = source.clone().requires_grad_() * 1.0
        loss = problem.loss(logits, problem.target, inplace_backward=True)
        return torch.autograd.grad(loss, logits, grad_output)[0]

    graph, gradient = capture(step)
    problem.alpha.fill_(0.7)
    graph.replay()
    assert_gradient(gradient, problem.expected(definition, grad_output).gradient, 1)


@pytest.mark.parametrize("dim", [0, 1])
def test_log_softmax(dim, monkeypatch):
    """The whole check of an eager call, with replays in its place."""
    given = make_logits((40, 300), torch.float32, "cuda")
    logits = given.clone().requires_grad_()
    grad_output = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)).cuda()
    alpha = torch.tensor(1.0, device="cuda")

    def step():
        output = pg.log_softmax(logits, dim, alpha=alpha)
        return output.detach(), torch.autograd.grad(output, logits, grad_output)[0]

    graph, (output, gradient) = capture(step)
    alpha.fill_(0.3)
    graph.replay()
    with torch.no_grad():
        expected = pg.log_softmax(given, dim, alpha=0.3)
    check_log_softmax(given, dim, alpha=0.3)  # so the eager call may serve as the measure
    torch.testing.assert_close(output, expected)
    leaf = given.clone().requires_grad_()
    (eager,) = torch.autograd.grad(pg.log_softmax(leaf, dim, alpha=0.3), leaf, grad_output)
    torch.testing.assert_close(gradient, eager)


def test_compiled_with_graphs():
    """mode="reduce-overhead" captures by itself; alpha on the device follows a schedule."""
    torch._dynamo.reset()
    alpha = torch.tensor(1.0, device="cuda")
    weight = torch.randn(300, 16, device="cuda").requires_grad_()
    x, target = torch.randn(32, 16, device="cuda"), torch.arange(32, device="cuda")

    def step(loss_of):
        loss = loss_of(x @ weight.T, target, alpha=alpha)
        return loss, torch.autograd.grad(loss, weight)[0]

    compiled = torch.compile(pg.cross_entropy, fullgraph=True, mode="reduce-overhead")
    for value in (1.0, 0.6, 0.3, 0.25):
        alpha.fill_(value)
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(step(compiled), step(pg.cross_entropy))
    torch._dynamo.reset()
