"""torch.func and the operators themselves, which exported modules call; forward mode is refused."""

import pytest
import torch
from cases import make_problem
from torch.autograd import forward_ad
from torch.func import grad, grad_and_value, jacrev, jvp, vmap

import powergrad_ext as pg
from powergrad_ext import reference
from powergrad_ext.options import Options

OPS = torch.ops.powergrad
ALPHA = torch.tensor(0.3, dtype=torch.float64)


def samples(device):
    """Logits and targets of four problems."""
    problems = [make_problem((5, 7), torch.float64, device, seed=seed) for seed in range(4)]
    logits = torch.stack([problem.logits for problem in problems])
    return logits, torch.stack([problem.target for problem in problems])


def operator_loss(logits, target, reduction="mean"):
    return OPS.cross_entropy(logits, target, None, -100, reduction, alpha=ALPHA)


def raw_loss(logits, target, reduction="mean"):
    return OPS.cross_entropy_forward(
        logits, target, *Options(reduction=reduction, alpha=ALPHA), False
    )[0]


def operator_log_softmax(logits, target):
    return OPS.log_softmax(logits, alpha=ALPHA)[:, 0].square().sum()


def raw_log_softmax(logits, target):
    output = OPS.log_softmax_forward(logits, -1, ALPHA, False)[0]
    return output[:, 0].square().sum()


def specified_log_softmax(logits, target):
    return reference.log_softmax(logits, alpha=0.3)[:, 0].square().sum()


OPERATORS = {
    "cross_entropy": (operator_loss, reference.cross_entropy),
    "cross_entropy_forward": (raw_loss, reference.cross_entropy),
    "log_softmax": (operator_log_softmax, specified_log_softmax),
    "log_softmax_forward": (raw_log_softmax, specified_log_softmax),
}


def value_and_size_of_gradient(loss):
    """Differentiates an inner transform's value as well as its gradient."""

    def penalised(logits, target):
        gradient, value = grad_and_value(loss)(logits, target)
        return value + gradient.square().sum()

    return grad(penalised)


OF_ONE_SAMPLE = [grad, jacrev, value_and_size_of_gradient]


@pytest.mark.filterwarnings("error:.*performance drop")
@pytest.mark.parametrize(
    "transform",
    [
        grad,
        vmap,
        jacrev,
        value_and_size_of_gradient,
        lambda loss: vmap(grad(loss)),
        lambda loss: grad(lambda z, y: vmap(loss)(z, y).square().sum()),
        lambda loss: vmap(value_and_size_of_gradient(loss)),
        lambda loss: value_and_size_of_gradient(lambda z, y: vmap(grad(loss))(z, y).sum()),
    ],
    ids=["grad", "vmap", "jacrev", "nested", "vmap grad", "grad vmap", "vmap nested", "mixed"],
)
@pytest.mark.parametrize(("ours", "specified"), OPERATORS.values(), ids=OPERATORS.keys())
def test_operators(ours, specified, transform, device):
    logits, target = samples(device)
    if transform in OF_ONE_SAMPLE:
        logits, target = logits[0], target[0]
    torch.testing.assert_close(
        transform(ours)(logits, target),
        transform(specified)(logits, target),
        rtol=1e-11,
        atol=1e-13,
    )


def test_derivative_of_the_raw_operators_in_eager_mode(device):
    logits, target = samples(device)
    for ours, specified in OPERATORS.values():
        gradients = []
        for loss in (ours, specified):
            z = logits[0].clone().requires_grad_()
            gradients.append(torch.autograd.grad(loss(z, target[0]), z)[0])
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("function", [pg.cross_entropy, torch.ops.powergrad.cross_entropy])
def test_forward_mode_is_refused(function):
    """The transform defines a gradient; a tangent is never lost without a word."""
    logits, tangent, target = torch.randn(4, 5), torch.randn(4, 5), torch.arange(4)
    alpha = torch.tensor(0.3)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        jvp(lambda z: function(z, target, alpha=alpha), (logits,), (tangent,))
    for requires_grad, grad_mode in [(False, True), (True, True), (False, False)]:
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            dual = forward_ad.make_dual(logits.clone().requires_grad_(requires_grad), tangent)
            with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
                function(dual, target, alpha=alpha)
    with forward_ad.dual_level():
        probabilities = forward_ad.make_dual(logits.softmax(1), tangent)
        with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
            function(logits, probabilities, alpha=alpha)


@pytest.mark.parametrize("function", [pg.log_softmax, torch.ops.powergrad.log_softmax])
def test_forward_mode_of_log_softmax_is_refused(function):
    logits, tangent = torch.randn(4, 5), torch.randn(4, 5)
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        jvp(lambda z: function(z, alpha=torch.tensor(0.3)), (logits,), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, tangent)
        with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
            function(dual, alpha=torch.tensor(0.3))


def tangents_of_raw_operators():
    """Calls of the raw operators, each with one dual argument."""
    logits, target = torch.randn(4, 5), torch.arange(4)
    options = Options(alpha=ALPHA)
    _, statistics, total = OPS.cross_entropy_forward(logits, target, *options, True)
    _, log_statistics = OPS.log_softmax_forward(logits, -1, ALPHA, True)
    ones = torch.ones(())
    return {
        "forward": lambda dual: OPS.cross_entropy_forward(dual(logits), target, *options, True),
        "probabilities": lambda dual: OPS.cross_entropy_forward(
            logits, dual(logits.softmax(1)), *options, True
        ),
        "backward": lambda dual: OPS.cross_entropy_backward(
            ones, dual(logits), target, statistics, total, *options
        ),
        "backward, grad_output": lambda dual: OPS.cross_entropy_backward(
            dual(ones), logits, target, statistics, total, *options
        ),
        "log-softmax": lambda dual: OPS.log_softmax_forward(dual(logits), -1, ALPHA, True),
        "log-softmax backward": lambda dual: OPS.log_softmax_backward(
            logits, dual(logits), -1, ALPHA, log_statistics
        ),
    }


@pytest.mark.parametrize("name", tangents_of_raw_operators())
def test_forward_mode_of_raw_operators_is_refused(name):
    call = tangents_of_raw_operators()[name]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward"):
        call(lambda tensor: forward_ad.make_dual(tensor.clone(), torch.randn_like(tensor)))
