"""Two processes on gloo: the gradients of DDP and FSDP2 are those of one process."""

import itertools

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import powergrad_ext as pg

PROCESSES = 2


class BeforeLoss(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
        self.loss = pg.PowerGradCrossEntropyLoss(alpha=0.3)

    def forward(self, x, target):
        return self.loss(self.body(x), target)


def make_batch():
    random = torch.Generator().manual_seed(1)
    return torch.randn(12, 8, generator=random), torch.randint(0, 10, (12,), generator=random)


class WithLastLayer(nn.Module):
    """The last layer is in the loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))
        self.loss = pg.PowerGradLinearCrossEntropyLoss(16, 10, bias=True, chunk_rows=4)

    def forward(self, x, target):
        return self.loss(self.body(x), target)


def with_ddp(model):
    return DistributedDataParallel(model)


def with_fsdp(model):
    for layer in [*model.body, model.loss]:
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def with_one_group(model):
    return fully_shard(model)


def with_last_layer_as_group(model):
    if isinstance(model, WithLastLayer):
        fully_shard(model.loss.linear)
    return fully_shard(model)


def with_last_layer_kept(model):
    if isinstance(model, WithLastLayer):
        fully_shard(model.loss.linear, reshard_after_forward=False)
    return fully_shard(model)


def with_last_layer_and_norm_as_group(model):
    if isinstance(model, WithLastLayer):
        fully_shard([model.body[-1], model.loss.linear])
    return fully_shard(model)


DISTRIBUTED = [
    with_ddp,
    with_fsdp,
    with_one_group,
    with_last_layer_as_group,
    with_last_layer_kept,
    with_last_layer_and_norm_as_group,
]


def check_training(distribute, make_model, rank):
    """The rows of the ranks differ; the loss and every gradient, twice, as of one process."""
    x, target = (tensor.chunk(PROCESSES)[rank] for tensor in make_batch())
    model = distribute(make_model())
    for _ in range(2):
        model.zero_grad()
        loss = model(x, target)
        (0.5 * loss).backward()
    alone = make_model()
    right = alone(*make_batch())
    (0.5 * right).backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / PROCESSES, right.detach())
    for parameter, whole in zip(model.parameters(), alone.parameters(), strict=True):
        grad = parameter.grad
        found = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        torch.testing.assert_close(found, whole.grad)


def refuse_what_fsdp_has_sharded(rank):
    """The function cannot gather a weight, and does not take its shards for sharded classes."""
    model = WithLastLayer()
    fully_shard(model.loss.linear)
    x, target = (tensor.chunk(PROCESSES)[rank] for tensor in make_batch())
    with pytest.raises(TypeError, match=r"argument 'input' must be a DTensor.*FSDP2 has sharded"):
        pg.linear_cross_entropy(model.body(x), model.loss.linear.weight, target)


def train():
    rank = dist.get_rank()
    for distribute, make_model in itertools.product(DISTRIBUTED, (BeforeLoss, WithLastLayer)):
        check_training(distribute, make_model, rank)
    refuse_what_fsdp_has_sharded(rank)


def test_training():
    on_ranks(PROCESSES, train)
