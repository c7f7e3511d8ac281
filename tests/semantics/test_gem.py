"""GEM (arXiv 2408.16673), linear form: its gradient is PGT's with alpha = 1 / beta.

GEM maximises sum_j q_j (log p_target - log p_j) over the model, where q = softmax(z / beta) is the
adversary's closed-form answer and carries no gradient. Here it is in float64, differentiated by
autograd as the paper defines it.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import powergrad_ext as pg


def gem(logits, target, beta):
    """The linear form, a loss for each row."""
    log_p = F.log_softmax(logits, dim=-1)
    q = F.softmax(logits.detach() / beta, dim=-1)
    return -(q * (log_p.gather(-1, target[:, None]) - log_p)).sum(-1)


@pytest.mark.parametrize("beta", [0.7, 0.5, 0.9, 1.0, 1.6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradients_are_equal(beta, reduction):
    random = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(19, 53, generator=random, dtype=torch.float64)).requires_grad_()
    target = torch.randint(53, (19,), generator=random)
    target[[2, 11]] = -100
    counts = target != -100

    (expected,) = torch.autograd.grad(
        -1.7 * getattr(gem(logits[counts], target[counts], beta), reduction)(), logits
    )
    loss = pg.cross_entropy(logits, target, reduction=reduction, alpha=1.0 / beta)
    (found,) = torch.autograd.grad(-1.7 * loss, logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    if beta != 1.0:
        plain = pg.cross_entropy(logits, target, reduction=reduction, alpha=1.0)
        (ordinary,) = torch.autograd.grad(-1.7 * plain, logits)
        assert (ordinary - expected).abs().max() > 1e-2 * expected.abs().max()
