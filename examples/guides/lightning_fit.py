"""Lightning: the loss in training_step, and a callback for an alpha that changes."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

import powergrad_ext as pg
from powergrad_ext.integrations.lightning import AlphaCallback


class Classifier(LightningModule):
    """A network and its criterion."""

    def __init__(self, criterion: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.criterion = torch.nn.Linear(20, 4), criterion

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        features, target = batch
        return self.criterion(self.network(features), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.manual_seed(0)
data = TensorDataset(torch.randn(256, 20), torch.randint(4, (256,)))
schedule = pg.AlphaSchedule(0.25, 1.0, shape="cosine")  # over all steps of the Trainer
trainer = Trainer(
    max_epochs=2,
    accelerator="cpu",
    callbacks=[AlphaCallback(schedule)],
    enable_checkpointing=False,
    logger=False,
)
model = Classifier(pg.PowerGradCrossEntropyLoss(alpha=schedule.alpha))
trainer.fit(model, DataLoader(data, batch_size=32))
print(f"alpha after training: {schedule.alpha.item():.2f}")
