"""Hooks on saved tensors: checkpoints, offloading, compression.

What they hand to backward is used as it is, in whatever type and strides, and where they keep
tensors nothing is written in place.
"""

import pytest
import torch
from cases import check, check_log_softmax, generator, make_logits, make_problem
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import powergrad_ext as pg

REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


def unchanged(tensor):
    return tensor


def transposed(tensor):
    """The same numbers with other strides."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0) if tensor.dim() > 1 else tensor


def identity_hooks():
    return saved_tensors_hooks(unchanged, unchanged)


def checkpointed(step, *arguments):
    return checkpoint(step, *arguments, use_reentrant=False)


def offloaded(step, *arguments):
    with save_on_cpu():
        return step(*arguments)


def hooked(step, *arguments):
    with identity_hooks():
        return step(*arguments)


@pytest.mark.parametrize("how", [checkpointed, offloaded, hooked], ids=lambda how: how.__name__)
@pytest.mark.parametrize("loss_first", [False, True], ids=["loss last", "loss first"])
@REDUCTIONS
@DTYPES
def test_other_uses_of_the_logits_keep_them(dtype, reduction, loss_first, how, device):
    """A penalty on logits that inplace_backward gave away: its gradient is right too."""
    target = torch.arange(6, device=device)
    states = torch.randn(6, 8, generator=generator(2)).to(device, dtype)
    weight = torch.randn(8, 10, generator=generator(3)).to(device, dtype)

    def step(inplace_backward):
        def losses(h, w):
            z = h @ w
            terms = [
                lambda: 0.1 * z.logsumexp(1).float().square().mean(),
                lambda: pg.cross_entropy(
                    z, target, reduction=reduction, alpha=1.0, inplace_backward=inplace_backward
                ).sum(),
            ]
            return sum(term() for term in (reversed(terms) if loss_first else terms))

        return losses

    gradients = []
    for call in (lambda h, w: step(False)(h, w), lambda h, w: how(step(True), h, w)):
        w = weight.clone().requires_grad_()
        call(states, w).backward()
        gradients.append(w.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@DTYPES
def test_a_checkpoint_beside_the_loss(dtype, device):
    """One that needs the logits in backward, and finds them overwritten, raises."""
    logits = make_logits((6, 10), dtype, device).requires_grad_() * 1.0
    penalty = checkpointed(lambda z: z.logsumexp(1).sum(), logits)
    loss = pg.cross_entropy(logits, torch.arange(6, device=device), inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


def repacked(dtype=None, place=unchanged):
    """Hooks that give floating point tensors back in another type, and all in other strides."""

    def pack(tensor):
        return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

    return saved_tensors_hooks(pack, place)


@REDUCTIONS
@pytest.mark.parametrize("shape", [(6, 50), (3, 5, 37)], ids=["rows", "inner"])
@pytest.mark.parametrize("targets", ["int64", "probabilities"])
def test_other_strides(targets, shape, reduction, dtype, device):
    problem = make_problem(
        shape, dtype, device, reduction=reduction, targets=targets, weighted=True
    )
    loss_of = problem.loss

    def hooked_loss(logits, target):
        with repacked(place=transposed):
            return loss_of(logits, target)

    problem.loss = hooked_loss
    check(problem)


@REDUCTIONS
@pytest.mark.parametrize("packed", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("targets", ["int64", "probabilities"])
@DTYPES
def test_other_types(dtype, targets, packed, reduction, device):
    """The gradient is that of the logits that came back, to the precision of their first type."""
    options = {"reduction": reduction, "targets": targets, "weighted_rows": True, "z_loss": 0.1}
    problem = make_problem((6, 50), dtype, device, **options)
    logits = problem.logits.clone().requires_grad_()
    with repacked(packed):
        loss = problem.loss(logits, problem.target)
    loss.backward(torch.ones_like(loss))

    def packed_and_back(tensor):
        return tensor.to(packed).to(tensor.dtype) if tensor.is_floating_point() else tensor

    problem.alpha = torch.tensor(0.3, dtype=torch.float64).to(packed).double()
    problem.options["row_weight"] = packed_and_back(problem.options["row_weight"])
    seen = packed_and_back(problem.logits).requires_grad_()
    expected = problem.loss(seen, packed_and_back(problem.target))
    expected.backward(torch.ones_like(expected))
    torch.testing.assert_close(
        logits.grad, seen.grad, rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-6
    )


@pytest.mark.parametrize("packed", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@DTYPES
def test_other_types_of_log_softmax(dtype, packed, device):
    logits = make_logits((6, 50), dtype, device).requires_grad_()
    with repacked(packed):
        output = pg.log_softmax(logits)
    grad_output = torch.randn(output.shape, generator=generator(1)).to(output)
    output.backward(grad_output)
    seen = logits.detach().to(packed).to(dtype).requires_grad_()
    alpha = torch.tensor(0.3, dtype=torch.float64).to(packed).double()
    pg.log_softmax(seen, alpha=alpha).backward(grad_output)
    torch.testing.assert_close(logits.grad, seen.grad)


@pytest.mark.parametrize("dim", [0, 1])
def test_other_strides_of_log_softmax(dim, dtype, device, monkeypatch):
    function = pg.log_softmax

    def hooked_log_softmax(*arguments, **options):
        with repacked(place=transposed):
            return function(*arguments, **options)

    monkeypatch.setattr(pg, "log_softmax", hooked_log_softmax)
    check_log_softmax(make_logits((6, 50), dtype, device), dim)


def test_a_type_that_targets_had_comes_back(device):
    """Indices that a hook stored in fewer bits."""
    problem = make_problem((6, 50), torch.float32, device, reduction="none")
    loss_of = problem.loss

    def hooked_loss(logits, target):
        def pack(tensor):
            return tensor if tensor.is_floating_point() else tensor.short()

        with saved_tensors_hooks(pack, unchanged):
            return loss_of(logits, target)

    problem.loss = hooked_loss
    check(problem)


def test_what_cannot_be_used_is_refused(device):
    problem = make_problem((6, 50), torch.float32, device, reduction="none")
    logits = problem.logits.requires_grad_()

    def first_row(tensor):
        return tensor[:1] if tensor.shape == (3, 6) else tensor

    with saved_tensors_hooks(first_row, unchanged):
        loss = problem.loss(logits, problem.target)
    with pytest.raises(RuntimeError, match=r"statistics must be .*\[3, 6\].*got Float.*\[1, 6\]"):
        loss.sum().backward()
