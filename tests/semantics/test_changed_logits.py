"""Logits that are changed in place after forward, without gradient.

torch's own functions have saved log-probabilities and do not mind. Here a gradient that forward has
computed already does not mind either; a backward that would need the logits says what happened.
"""

import pytest
import torch
from cases import make_problem
from oracle import assert_gradient, definition

import powergrad_ext as pg

HAPPENED = r"cross_entropy\(\): backward needs .* changed in place .*clone\(\).*expected version 0"


def change(tensor):
    with torch.no_grad():
        tensor.mul_(2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradient_of_forward(dtype, reduction):
    problem = make_problem((6, 50), dtype, reduction=reduction)
    logits = problem.logits.clone().requires_grad_()
    loss = problem.loss(logits, problem.target)
    change(logits)
    loss.backward()
    expected = problem.expected(definition, torch.ones_like(loss))
    assert_gradient(logits.grad, expected.gradient, 1)


@pytest.mark.parametrize("changed", ["logits", "target", "weight", "alpha"])
def test_backward_that_needs_them(changed, dtype, device):
    given = {
        "logits": torch.randn(6, 10, device=device).to(dtype).requires_grad_(),
        "target": torch.arange(3, device=device).repeat(2),
        "weight": torch.ones(10, device=device),
        "alpha": torch.tensor(0.3),
    }
    losses = pg.cross_entropy(
        given["logits"],
        given["target"],
        given["weight"].to(torch.float64 if dtype == torch.float64 else torch.float32),
        reduction="none",
        alpha=given["alpha"],
    )
    if changed == "weight" and dtype == torch.float64:
        pytest.skip("a copy was given")
    change(given[changed])
    with pytest.raises(RuntimeError, match=HAPPENED):
        losses.sum().backward()


def test_log_softmax(dtype, device):
    logits = torch.randn(6, 10, device=device).to(dtype).requires_grad_()
    output = pg.log_softmax(logits)
    change(logits)
    with pytest.raises(RuntimeError, match=HAPPENED.replace("cross_entropy", "log_softmax")):
        output.sum().backward()


def test_two_slices_of_one_tensor(device):
    """Torch counts changes of the whole; the second slice cannot tell that it was spared."""
    logits = torch.randn(6, 10, device=device).requires_grad_() * 1.0
    target = torch.arange(3, device=device)
    losses = [pg.cross_entropy(part, target, inplace_backward=True) for part in logits.chunk(2)]
    losses[0].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="another loss over the same memory with inplace_back"):
        losses[1].backward()


def test_a_graph_that_is_gone_is_told_in_torchs_words(device):
    losses = pg.cross_entropy(
        torch.randn(3, 5, device=device, requires_grad=True), torch.arange(3, device=device)
    )
    losses.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses.backward()
