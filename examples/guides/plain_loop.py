"""A training loop with a schedule for alpha; the validation loss is that of softmax(alpha z)."""

import torch

import powergrad_ext as pg

torch.manual_seed(0)
features, target = torch.randn(512, 20), torch.randint(4, (512,))
model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
steps = 50
schedule = pg.AlphaSchedule(0.3, 0.5, steps=steps)

for step in range(steps):
    loss = pg.cross_entropy(model(features), target, alpha=schedule.alpha)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 10 == 0:
        nll = pg.calibration.negative_log_likelihood(model(features), target, alpha=schedule.alpha)
        print(f"step {step}: loss {loss.item():.3f}, NLL at softmax(alpha z) {nll.item():.3f}")
