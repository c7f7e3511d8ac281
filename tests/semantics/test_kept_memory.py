"""What a loss keeps for backward."""

import pytest
import torch
from allocations import allocations_of

import powergrad_ext as pg

ROWS, CLASSES = 4096, 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}], ids=["", "z_loss"])
def test_the_gradient_and_no_statistics_of_rows(reduction, options):
    """Where forward computes the gradient, backward rarely reads statistics: it computes them."""
    logits = torch.randn(ROWS, CLASSES, requires_grad=True)
    target = torch.randint(CLASSES, (ROWS,))

    def forward():
        return pg.cross_entropy(logits, target, reduction=reduction, alpha=0.3, **options)

    forward()
    of_gradient = ROWS * CLASSES * 4
    assert of_gradient <= allocations_of(forward).left < of_gradient + ROWS


def test_a_graph_of_the_gradient():
    """Its backward computes statistics and the gradient, which forward's is none of."""
    logits = torch.randn(ROWS, 64, requires_grad=True)
    target = torch.randint(64, (ROWS,))

    def step():
        loss = pg.cross_entropy(logits, target, alpha=0.3)
        return torch.autograd.grad(loss, logits, create_graph=True)

    step()
    of_gradient = logits.numel() * 4
    assert 2 * of_gradient <= allocations_of(step).total < 2.5 * of_gradient
