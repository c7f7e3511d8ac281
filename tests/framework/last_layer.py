"""A last layer and its loss, fused and by the definition, for the tests that compare the two."""

import torch
import torch.nn.functional as F

import powergrad_ext as pg

N, H, C = 30, 8, 11


def make_layer(device, dtype=torch.float64, rows=N):
    random = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=random).to(device, dtype).requires_grad_()
        for shape in ((rows, H), (C, H), (C,))
    ]


def make_target(device, rows=N, ignore_index=-100):
    target = torch.arange(rows, device=device) % C
    return torch.where(target == 3, ignore_index, target)


def fused(target, **options):
    def loss(input, linear_weight, linear_bias):
        return pg.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, chunk_rows=7, **options
        )

    return loss


def of_logits(target, **options):
    return lambda *layer: pg.cross_entropy(F.linear(*layer), target, **options)


def grad_output_for(loss):
    return torch.linspace(-1.0, 2.0, loss.numel()).reshape(loss.shape).to(loss)


def row_options(device):
    """Row weights, some of them 0, and the other options that backward needs more tensors for."""
    return {
        "weight": torch.linspace(0.5, 1.5, C, device=device, dtype=torch.float64),
        "row_weight": (torch.arange(N, device=device) % 4).double(),
        "z_loss": 0.1,
        "label_smoothing": 0.1,
    }
