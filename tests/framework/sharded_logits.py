"""Logits whose classes are sharded over the ranks of a test, and their loss and gradient."""

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

import powergrad_ext as pg

ROWS, CLASSES = 9, 23


def problem(dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(ROWS, CLASSES, dtype=torch.float64, generator=random)).to(dtype)
    target = torch.randint(CLASSES, (ROWS,), generator=random)
    target[[2, 5]] = torch.tensor([3, -7])
    return logits, target


def shard_of(tensor, sizes):
    return tensor.split(sizes, 1)[dist.get_rank()]


def solve(loss, logits, grad_output):
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward(grad_output.to(value.dtype))
    return value.detach(), logits.grad


def row_weights():
    """Of which some are 0."""
    return 0.25 * (torch.arange(ROWS) % 4).double()


def check_bits(loss):
    everyone = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, loss)
    for other in everyone:
        assert torch.equal(other, loss)


def forget_sizes():
    """A layer of another size, as by a group of its own."""
    pg.distributed._sizes.clear()


class Exchanges(TorchDispatchMode):
    """Records in `sizes` how many numbers each all-gather takes from this rank."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops._c10d_functional.all_gather_into_tensor.default:
            self.sizes.append(arguments[0].numel())
        return function(*arguments, **keywords or {})


def run(checks):
    torch.set_num_threads(1 + dist.get_rank() % 2)  # the bits do not depend on it
    for check in checks:
        check()
