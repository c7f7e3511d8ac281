"""Weights of tokens, z-loss, and metrics from the pass that computes the loss."""

import torch

import powergrad_ext as pg

torch.manual_seed(0)
hidden = torch.randn(64, 32, requires_grad=True)
head = torch.nn.Linear(32, 1000, bias=False)
labels = torch.randint(1000, (64,))
labels[50:] = -100  # padding
row_weight = torch.where(torch.arange(64) < 8, 0.1, 1.0)  # a prompt that counts less

loss, metrics = pg.linear_cross_entropy(
    hidden,
    head.weight,
    labels,
    alpha=0.8,
    row_weight=row_weight,
    z_loss=1e-4,
    return_metrics=True,
)
loss.backward()
counted = labels != -100
accuracy = metrics.correct[counted].float().mean()
print(f"loss {loss.item():.3f}, accuracy {accuracy.item():.1%}")
print(f"entropy {metrics.entropy[counted].mean().item():.3f} nats")
print(f"log-probability {metrics.log_prob[counted].mean().item():.3f}")
