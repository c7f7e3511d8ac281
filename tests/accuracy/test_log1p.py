"""The logarithm of a row's sum: a relative error of 2 epsilon, as log1p.h has it."""

import numpy as np
import pytest
import torch

ROWS = 200_000


@pytest.mark.parametrize("classes", [2, 12])
def test_relative_error(classes, isa):
    """Of the loss of the largest logit: log(1 + r), and nothing else."""
    generator = torch.Generator().manual_seed(0)
    distance = torch.empty(ROWS, classes).exponential_(0.4, generator=generator)
    logits = distance.sort(1).values.neg()
    logits[:, 0] = 0.0
    target = torch.zeros(ROWS, dtype=torch.int64)
    losses, statistics, _ = torch.ops.powergrad.cross_entropy_forward(
        logits, target, None, -100, "none", 0.0, torch.tensor(1.0), None, 0.0, needs_backward=True
    )
    exact = np.log1p(statistics[1].double().numpy())
    error = np.abs(losses.double().numpy() - exact) / exact
    assert error.max() <= 2 * np.finfo(np.float32).eps
