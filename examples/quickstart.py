"""Train a small classifier with the PowerGrad Transform: python examples/quickstart.py."""

import torch

import powergrad_ext as pg

torch.manual_seed(0)
centres = torch.randn(10, 20)  # ten clusters in twenty dimensions
target = torch.randint(10, (2000,))
features = centres[target] + torch.randn(2000, 20)

model = torch.nn.Linear(20, 10)
criterion = pg.PowerGradCrossEntropyLoss(alpha=0.3)  # in place of torch.nn.CrossEntropyLoss
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(100):
    optimizer.zero_grad()
    criterion(model(features), target).backward()
    optimizer.step()

accuracy = (model(features).argmax(1) == target).float().mean().item()
print(f"training accuracy {accuracy:.1%}")
