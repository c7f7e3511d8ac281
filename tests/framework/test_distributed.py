"""Two processes on gloo: the gradients of DDP and FSDP2 are those of one process."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
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
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.loss = pg.PowerGradLinearCrossEntropyLoss(16, 10, bias=True, chunk_rows=4)

    def forward(self, x, target):
        return self.loss(self.body(x), target)


def gradients(model, x, target):
    """An upstream gradient other than 1: the loss is scaled, as for accumulation."""
    (0.5 * model(x, target)).backward()
    return [parameter.grad for parameter in model.parameters()]


def with_ddp(model):
    return DistributedDataParallel(model)


def with_fsdp(model):
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in [*model.body, model.loss]:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank, rendezvous, distribute, make_model):
    """Runs in a process of its own; whatever it raises reaches the test.

    Ends its process itself. DTensor's caches keep the mesh, and with it the process group and the
    threads of gloo, alive after destroy_process_group. Such a thread needs the interpreter to
    release the tensors of its last collective; on a busy machine it comes to that only while the
    interpreter is being finalized, which aborts the process.
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=PROCESSES
    )
    x, target = (tensor.chunk(PROCESSES)[rank] for tensor in make_batch())
    found = gradients(distribute(make_model()), x, target)
    whole = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in found]
    torch.testing.assert_close(whole, gradients(make_model(), *make_batch()))
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("make_model", [BeforeLoss, WithLastLayer])
@pytest.mark.parametrize("distribute", [with_ddp, with_fsdp])
def test_gradients(distribute, make_model, tmp_path):
    arguments = (tmp_path / "rendezvous", distribute, make_model)
    torch.multiprocessing.spawn(train, arguments, PROCESSES)
