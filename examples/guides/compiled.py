"""A compiled step: an alpha that changes does not compile it again."""

import torch

import powergrad_ext as pg

torch.manual_seed(0)
features, target = torch.randn(256, 20), torch.randint(4, (256,))
model = torch.nn.Linear(20, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
schedule = pg.AlphaSchedule(0.3, 1.0, steps=20, shape="cosine")


@torch.compile(fullgraph=True)
def loss_of(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the loss; alpha is a tensor, which the graph reads at every call."""
    return pg.cross_entropy(model(features), target, alpha=schedule.alpha)


for _ in range(20):
    optimizer.zero_grad()
    loss = loss_of(features, target)
    loss.backward()
    optimizer.step()
    schedule.step()
print(f"loss {loss.item():.3f} at alpha {schedule.alpha.item():.2f}")
