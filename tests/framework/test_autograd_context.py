"""Checkpoints, saved tensors, and modes without gradients."""

import pytest
import torch
from cases import check, make_logits, make_problem
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import powergrad_ext as pg

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean"])


@REDUCTIONS
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpoint(use_reentrant, reduction, device):
    """Recomputed in backward, and the same."""
    options = {"reduction": reduction, "weighted_rows": True, "z_loss": 0.1}
    problem = make_problem((6, 50), torch.float32, device, **options)
    gradients = []
    for loss_of in (
        problem.loss,
        lambda z, t: checkpoint(problem.loss, z, t, use_reentrant=use_reentrant),
    ):
        logits = problem.logits.clone().requires_grad_()
        loss = loss_of(logits, problem.target)
        loss.backward(problem.grad_output(loss))
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


@HALF
@REDUCTIONS
def test_half_logits_are_saved_as_they_are(reduction, dtype, device):
    """Nothing of (N, C) is kept in float32, and the logits are not copied."""
    problem = make_problem((16, 500), dtype, device, reduction=reduction)
    logits = problem.logits.requires_grad_()
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        problem.loss(logits, problem.target)
    large = [tensor for tensor in saved if tensor.numel() >= logits.numel()]
    assert [tensor.dtype for tensor in large] == [dtype]
    assert large[0].data_ptr() == logits.data_ptr()


@HALF
@REDUCTIONS
def test_autocast_of_cross_entropy(reduction, dtype, device):
    """Half logits are read as they are; the loss is float32 and the gradient half."""
    problem = make_problem((6, 50), dtype, device, reduction=reduction, weighted=True)
    loss_of = problem.loss

    def under_autocast(logits, target):
        with torch.autocast(device.type, dtype=dtype):
            loss = loss_of(logits, target)
        assert loss.dtype == torch.float32
        return loss

    problem.loss = under_autocast
    check(problem)


def test_autocast_of_a_model(device):
    """The logits of a float32 model under autocast arrive in bfloat16 and go back in it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 10).to(device)
    x, target = torch.randn(6, 8, device=device), torch.arange(6, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = model(x)
        loss = pg.cross_entropy(logits, target)
    logits.retain_grad()
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    assert model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("requested", [None, torch.float32])
def test_autocast_of_log_softmax_is_that_of_torch(requested, dtype, device):
    logits = make_logits((6, 50), dtype, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        ours = pg.log_softmax(logits, 1, dtype=requested)
        torchs = torch.nn.functional.log_softmax(logits, 1, dtype=requested)
    assert ours.dtype == torchs.dtype


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_modes_without_gradient(mode, dtype, device):
    """The value is the same to the promised bound, and nothing is kept for a backward."""
    problem = make_problem((6, 50), dtype, device)
    logits = problem.logits.requires_grad_()
    expected = problem.loss(logits, problem.target)
    with mode():
        loss = problem.loss(logits, problem.target)
        output = pg.log_softmax(logits, 1)
    assert not loss.requires_grad
    assert not output.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=4e-6, atol=0)


def test_logits_made_in_inference_mode(device):
    with torch.inference_mode():
        logits = make_logits((6, 50), torch.float32, device)
    target = torch.arange(6, device=device)
    loss = pg.cross_entropy(logits, target)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target))


def test_logits_that_want_no_gradient(device):
    logits, target = make_logits((6, 50), torch.float32, device), torch.arange(6, device=device)
    assert not pg.cross_entropy(logits, target).requires_grad
    assert not pg.log_softmax(logits).requires_grad


def test_training_after_inference_with_the_same_alpha(device):
    """Nothing that inference mode made is kept and saved for a backward later."""
    alpha = 0.12345
    logits = make_logits((6, 50), torch.float32, device)
    target = torch.arange(6, device=device)
    with torch.inference_mode():
        pg.cross_entropy(logits, target, alpha=alpha)
        pg.log_softmax(logits, alpha=alpha)
    logits.requires_grad_()
    losses = pg.cross_entropy(logits, target, reduction="none", alpha=alpha)
    (losses.sum() + pg.log_softmax(logits, alpha=alpha).sum()).backward()
    assert logits.grad.isfinite().all()
