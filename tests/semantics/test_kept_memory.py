"""What a loss keeps for backward."""

import pytest
import torch
from allocations import allocations_of

import powergrad_ext as pg

ROWS, CLASSES = 4096, 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}], ids=["", "z_loss"])
def test_the_gradient_and_no_statistics_of_rows(reduction, options):
    """Where forward computes the gradient, no backward reads them but one that makes a graph."""
    logits = torch.randn(ROWS, CLASSES, requires_grad=True)
    target = torch.randint(CLASSES, (ROWS,))

    def forward():
        return pg.cross_entropy(logits, target, reduction=reduction, alpha=0.3, **options)

    forward()
    of_gradient = ROWS * CLASSES * 4
    assert of_gradient <= allocations_of(forward).left < of_gradient + ROWS
