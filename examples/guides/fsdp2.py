"""FSDP2 with the loss in the last layer: torchrun --nproc-per-node 2 examples/guides/fsdp2.py."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import powergrad_ext as pg


class Network(nn.Module):
    """A body and a head that computes the loss itself, without its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU())
        self.head = pg.PowerGradLinearCrossEntropyLoss(64, 1000, alpha=0.3)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of this process's rows."""
        return self.head(self.body(features), target)


dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank = dist.get_rank()
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
torch.manual_seed(0)
model = Network().to(device)
fully_shard(model.body)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

torch.manual_seed(rank)
features, target = torch.randn(128, 20, device=device), torch.randint(1000, (128,), device=device)
for _ in range(10):
    optimizer.zero_grad()
    loss = model(features, target)
    loss.backward()
    optimizer.step()
print(f"rank {rank}: loss {loss.item():.3f}")
dist.destroy_process_group()
