"""The processes that train together: those of torchrun, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """How many there are, which of them this is, and the device that it works on."""

    count: int
    rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, network: nn.Module) -> nn.Module:
        """Return the network with its gradients averaged over all processes."""
        network = network.to(self.device)
        return network if self.count == 1 else DistributedDataParallel(network)

    def agree_on_buffers(self, network: nn.Module) -> None:
        """Give every process the running statistics of the first, which are those saved."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the others that torchrun has started; on CUDA a GPU each."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Processes(1, 0, torch.device(device))
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_world_size(), dist.get_rank(), torch.device(device))
    finally:
        dist.destroy_process_group()
