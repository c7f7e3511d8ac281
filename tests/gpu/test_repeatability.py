"""The same bits in every run: sums are taken in a fixed order, without atomics."""

import pytest
import torch
from cases import make_problem

import powergrad_ext as pg

SHAPES = {
    "many rows": (70000, 10),
    "ImageNet": (4096, 1000),
    "Llama 3": (64, 128256),
    "one row": (1, 262144),
    "past a cluster": (2, 3_000_001),
    "segmentation": (4, 21, 128, 127),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs(dtype, reduction, shape):
    problem = make_problem(
        shape, dtype, "cuda", reduction=reduction, weighted=True, label_smoothing=0.1
    )

    def run():
        logits = problem.logits.detach().requires_grad_()
        loss = problem.loss(logits, problem.target)
        output = pg.log_softmax(logits, problem.class_dim)
        loss_gradient = torch.autograd.grad(loss, logits, problem.grad_output(loss))[0]
        return loss, loss_gradient, output, torch.autograd.grad(output, logits, logits.detach())[0]

    first = run()
    for _ in range(3):
        for once, again in zip(first, run(), strict=True):
            assert torch.equal(once, again)
