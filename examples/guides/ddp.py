"""DistributedDataParallel: torchrun --nproc-per-node 2 examples/guides/ddp.py."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import powergrad_ext as pg

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank = dist.get_rank()
torch.manual_seed(0)
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
model = DistributedDataParallel(torch.nn.Linear(20, 4).to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

torch.manual_seed(rank)  # each process has its own rows
features, target = torch.randn(128, 20, device=device), torch.randint(4, (128,), device=device)
for _ in range(10):
    optimizer.zero_grad()
    loss = pg.cross_entropy(model(features), target, alpha=0.3)
    loss.backward()
    optimizer.step()
print(f"rank {rank}: loss {loss.item():.3f}")
dist.destroy_process_group()
