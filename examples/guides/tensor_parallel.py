"""A sharded vocabulary: torchrun --nproc-per-node 2 examples/guides/tensor_parallel.py."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import powergrad_ext as pg

device = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if device == "cuda" else "gloo")
mesh = init_device_mesh(device, (dist.get_world_size(),))
torch.manual_seed(0)  # the same rows and weights on every rank
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1001)).to(device)
# Each rank makes the logits of its own classes, and keeps them.
head = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
model[2] = parallelize_module(model[2], mesh, head)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

features, target = torch.randn(128, 20, device=device), torch.randint(1001, (128,), device=device)
for _ in range(10):
    optimizer.zero_grad()
    loss = pg.cross_entropy(model(features), target, alpha=0.3).full_tensor()
    loss.backward()
    optimizer.step()
print(f"rank {dist.get_rank()}: loss {loss.item():.3f}")
dist.destroy_process_group()
