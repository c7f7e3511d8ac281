"""What is too large for caches is written past them: the bits are those of a small tensor."""

import pytest
import torch
from torch import Tensor

import powergrad_ext as pg

# (N, C, positions): 20 MB and more, every image by itself far less. Whole vectors; a rest in every
# tile and rows in which no vector is aligned; too many classes for a tile of full width.
SHAPES = {"aligned": (16, 19, 128, 256), "unaligned": (16, 19, 127, 255), "many": (16, 3000, 208)}

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


def random_logits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(dtype)


def image_by_image(function, *tensors: Tensor) -> tuple[Tensor, ...]:
    results = [function(*(t[i : i + 1] for t in tensors)) for i in range(len(tensors[0]))]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


@shapes
@dtypes
def test_cross_entropy(shape, dtype):
    logits = random_logits(shape, dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    target[0, 3] = -100

    def step(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        loss = pg.cross_entropy(z, y, reduction="none", alpha=0.3)
        loss.sum().backward()
        return loss.detach(), z.grad

    for whole, parts in zip(
        step(logits, target), image_by_image(step, logits, target), strict=True
    ):
        assert torch.equal(whole, parts)


@shapes
@dtypes
def test_log_softmax(shape, dtype):
    logits = random_logits(shape, dtype)
    grad_output = random_logits(shape, dtype).flip(0)

    def step(z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        output = pg.log_softmax(z, dim=1, alpha=0.3)
        output.backward(g)
        return output.detach(), z.grad

    for whole, parts in zip(
        step(logits, grad_output), image_by_image(step, logits, grad_output), strict=True
    ):
        assert torch.equal(whole, parts)
