"""torchtitan: the loss as the trainer's configuration names one, alone and in chunks of tokens."""

import torch
from torchtitan.components.loss import ChunkedLossWrapper

from powergrad_ext.integrations.torchtitan import PowerGradLoss

torch.manual_seed(0)
# In a trainer's configuration: loss = PowerGradLoss.Config(alpha=0.8)
loss_fn = PowerGradLoss.Config(alpha=0.8).build()
logits = torch.randn(2, 16, 1000, requires_grad=True)
labels = torch.randint(1000, (2, 16))
loss, _ = loss_fn(logits, labels, torch.tensor(32.0))
loss.backward()
print(f"loss per token {loss.item():.3f}")

# In place of torchtitan's chunked cross-entropy, which never holds all logits.
head = torch.nn.Linear(64, 1000, bias=False)
config = ChunkedLossWrapper.Config(num_chunks=4, loss_fn=PowerGradLoss.Config(alpha=0.8))
chunked = config.build()
chunked.set_lm_head(head)
hidden = torch.randn(2, 16, 64, requires_grad=True)
loss, _ = chunked(hidden, labels, torch.tensor(32.0))
loss.backward()
print(f"loss per token, in chunks {loss.item():.3f}")
