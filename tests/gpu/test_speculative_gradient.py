"""The gradient in forward, for a grad_output that only the device knows.

What is written to the logits behind autograd's back tells the two ways apart: a gradient that
stands as forward wrote it is that of the old logits; one that backward computed is not.
"""

import pytest
import torch
from cases import make_problem

import powergrad_ext as pg

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = {"rows": (64, 1000), "few classes": (300, 10), "inner": (2, 21, 15, 15)}
over_shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def gradient_of(logits, target, grad_output, loss_of=pg.cross_entropy, between=lambda: None):
    """Of a loss with that grad_output; `between` forward and backward something happens."""
    loss = loss_of(logits, target)
    between()
    return torch.autograd.grad(loss, logits, torch.full_like(loss, grad_output))[0]


def is_computed_in_backward(problem, grad_output, loss_of=pg.cross_entropy):
    """Of the second of two losses with that grad_output."""
    logits = problem.logits.clone().requires_grad_()
    expected = gradient_of(logits, problem.target, grad_output, loss_of)
    found = gradient_of(logits, problem.target, grad_output, loss_of, logits.data.zero_)
    return not torch.equal(found, expected)


def test_nothing_is_allocated_for_it_in_a_capture():
    """The first call of a type in its process. Replays follow grad_outputs all the same."""
    problem = make_problem((33, 7), torch.float64, "cuda")
    logits = problem.logits.requires_grad_()
    grad_output = torch.ones((), dtype=torch.float64, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.autograd.grad(pg.cross_entropy(logits.float(), problem.target), logits)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = pg.cross_entropy(logits, problem.target)
            captured = torch.autograd.grad(loss, logits, grad_output)[0]
    for value in (1.0, 0.25):
        grad_output.fill_(value)
        graph.replay()
        torch.testing.assert_close(captured, gradient_of(logits, problem.target, value))


@over_shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_what_was_assumed(dtype, shape):
    problem = make_problem(shape, dtype, "cuda")
    logits = problem.logits.requires_grad_()
    for grad_output in (1.0, 0.37, 65536.0, 0.0, -2.0, float("inf"), float("nan"), 0.37):
        first, *again = (gradient_of(logits, problem.target, grad_output) for _ in range(3))
        unassumed = (
            gradient_of(
                logits,
                problem.target,
                grad_output,
                lambda z, t: pg.cross_entropy(z, t, reduction="none").sum() / (t != -100).sum(),
            )
            if dtype == torch.float64
            else None
        )
        for other in again:
            torch.testing.assert_close(first, other, rtol=0, atol=0, equal_nan=True)
        if unassumed is not None:
            torch.testing.assert_close(first, unassumed, equal_nan=True)


@over_shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_constant_grad_output_gradient_is_assumed_from_the_second_step_on(dtype, shape):
    problem = make_problem(shape, dtype, "cuda")
    assert not is_computed_in_backward(problem, 0.125)
    logits = problem.logits.clone().requires_grad_()
    expected = gradient_of(logits, problem.target, 4.0)
    gradient_of(logits, problem.target, 8.0)
    changed = gradient_of(logits, problem.target, 4.0, between=logits.data.zero_)
    assert not torch.equal(changed, expected), "another one had come last"


def test_losses_of_other_shapes_do_not_spoil_it():
    heads = [make_problem(shape, torch.float32, "cuda") for shape in ((64, 100), (64, 200))]
    logits = [head.logits.clone().requires_grad_() for head in heads]
    kept = [z.detach().clone() for z in logits]
    for _ in range(2):
        losses = [pg.cross_entropy(z, head.target) for z, head in zip(logits, heads, strict=True)]
        for z in logits:
            z.data.zero_()
        scaled = losses[0] * 0.5 + losses[1] * 0.25
        found = torch.autograd.grad(scaled, logits)
        for z, old in zip(logits, kept, strict=True):
            z.data.copy_(old)
    for factor, gradient, z, head in zip((0.5, 0.25), found, logits, heads, strict=True):
        assert torch.equal(gradient, gradient_of(z, head.target, factor))


@pytest.mark.parametrize("grad_output", [1.0, 0.37])
def test_a_second_backward_has_memory_of_its_own(grad_output):
    problem = make_problem((64, 1000), torch.bfloat16, "cuda")
    logits = problem.logits.requires_grad_()
    loss = pg.cross_entropy(logits, problem.target)
    first = torch.autograd.grad(
        loss, logits, torch.full_like(loss, grad_output), retain_graph=True
    )[0]
    kept = first.clone()
    second = torch.autograd.grad(loss, logits, torch.full_like(loss, 2 * grad_output))[0]
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, 2 * first)


IN_BACKWARD = {
    "none": lambda z, t: pg.cross_entropy(z, t, reduction="none").sum(),
    "in place": lambda z, t: pg.cross_entropy(z * 1, t, inplace_backward=True),
}


@pytest.mark.parametrize("loss_of", IN_BACKWARD.values(), ids=IN_BACKWARD.keys())
def test_others_compute_it_in_backward(loss_of):
    problem = make_problem((64, 1000), torch.float32, "cuda")
    logits = problem.logits.clone().requires_grad_()
    expected = gradient_of(
        logits,
        problem.target,
        1.0,
        lambda z, t: pg.cross_entropy(
            z.double(), t, reduction="sum" if loss_of is IN_BACKWARD["none"] else "mean"
        ),
    )
    for _ in range(2):
        torch.testing.assert_close(gradient_of(logits, problem.target, 1.0, loss_of), expected)


def test_hooks_on_saved_tensors_keep_it_in_backward():
    problem = make_problem((64, 1000), torch.float32, "cuda")

    def hooked(z, t):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            return pg.cross_entropy(z, t)

    assert is_computed_in_backward(problem, 1.0, hooked)


def test_logits_that_were_written_to_are_refused():
    """Whether backward needs them only the device knows."""
    problem = make_problem((64, 1000), torch.float32, "cuda")
    logits = problem.logits.clone().requires_grad_()
    loss = pg.cross_entropy(logits, problem.target)
    with torch.no_grad():
        logits.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_several_threads():
    """Backward runs in the engine's thread; forward here in two more."""
    from concurrent.futures import ThreadPoolExecutor

    problem = make_problem((64, 1000), torch.float32, "cuda")

    def step(grad_output):
        logits = problem.logits.clone().requires_grad_()
        with torch.cuda.stream(torch.cuda.Stream()):
            found = gradient_of(logits, problem.target, grad_output)
            torch.cuda.current_stream().synchronize()
        return found

    torch.cuda.synchronize()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(step, [1.0, 0.5] * 20))
    assert all(torch.equal(g, found[i % 2]) for i, g in enumerate(found))
