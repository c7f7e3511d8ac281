"""fastai: a Learner whose predictions are the probabilities that PGT trains."""

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.metrics import accuracy

from powergrad_ext.integrations.fastai import PowerGradCrossEntropyLossFlat

torch.manual_seed(0)
data = [(torch.randn(20), torch.tensor(number % 4)) for number in range(256)]
loaders = DataLoaders.from_dsets(data[:200], data[200:], bs=32, device="cpu", num_workers=0)
loss = PowerGradCrossEntropyLossFlat(alpha=0.3)
learner = Learner(loaders, torch.nn.Linear(20, 4), loss_func=loss, metrics=accuracy)
learner.fit(2, lr=0.01)
probabilities, targets = learner.get_preds()
print(f"probabilities of {len(targets)} validation rows sum to {probabilities.sum(1).mean():.3f}")
