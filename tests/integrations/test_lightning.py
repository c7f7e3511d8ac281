"""Lightning: the loss in a training_step, and a schedule that a checkpoint goes on with."""

from __future__ import annotations

import pytest
import torch
from frameworks import framework

lightning = framework("lightning")

from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

import powergrad_ext as pg  # noqa: E402
from powergrad_ext.integrations.lightning import AlphaCallback  # noqa: E402


class Classifier(LightningModule):
    def __init__(self, alpha):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.criterion = pg.PowerGradCrossEntropyLoss(alpha=alpha)
        self.alphas = []

    def training_step(self, batch, index):
        self.alphas.append(float(self.criterion.alpha))
        inputs, target = batch
        return self.criterion(self.layer(inputs), target)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def batches():
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 4, generator=random), torch.randint(3, (6,), generator=random))
        for _ in range(4)
    ]


class Stream(IterableDataset):
    """Batches of which nobody knows how many there are."""

    def __iter__(self):
        return iter(batches())


def fit(folder, schedule, resume=None, data=None, **options):
    model = Classifier(schedule.alpha)
    checkpoint = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AlphaCallback(schedule), checkpoint],
        **options,
    )
    trainer.fit(model, DataLoader(data or batches(), batch_size=None), ckpt_path=resume)
    return model


def test_every_step_has_its_alpha_and_a_checkpoint_goes_on(tmp_path):
    schedule = pg.AlphaSchedule(0.25, 1.0, shape="cosine")
    whole = fit(tmp_path / "whole", schedule, max_epochs=2)
    assert schedule.steps == 8
    assert whole.alphas == [schedule.value(step) for step in range(8)]

    first = fit(tmp_path / "cut", pg.AlphaSchedule(0.25, 1.0, 8, shape="cosine"), max_steps=4)
    (last,) = (tmp_path / "cut").glob("*step=4.ckpt")
    again = pg.AlphaSchedule(0.25, 1.0, shape="cosine")
    second = fit(tmp_path / "cut", again, resume=last, max_epochs=2)
    assert first.alphas + second.alphas == whole.alphas
    torch.testing.assert_close(second.layer.weight, whole.layer.weight)


def test_micro_batches_share_the_alpha_of_their_step(tmp_path):
    schedule = pg.AlphaSchedule(0.25, 1.0)
    model = fit(tmp_path, schedule, max_epochs=2, accumulate_grad_batches=2)
    assert schedule.steps == 4
    expected = [schedule.value(step) for step in range(4) for _ in range(2)]
    assert model.alphas == expected


def test_training_is_that_of_a_plain_loop(tmp_path):
    model, plain = fit(tmp_path, pg.AlphaSchedule(0.3), max_epochs=1), Classifier(0.3)
    optimizer = plain.configure_optimizers()
    for inputs, target in batches():
        optimizer.zero_grad()
        z = plain.layer(inputs)
        (torch.nn.functional.cross_entropy(0.3 * z, target) / 0.3).backward()
        optimizer.step()
    torch.testing.assert_close(model.layer.weight, plain.layer.weight)


@pytest.mark.parametrize(
    "options", [{"max_epochs": 2}, {"max_epochs": -1, "max_time": "00:00:00:05"}]
)
def test_a_stream_has_no_number_of_steps(tmp_path, options):
    with pytest.raises(ValueError, match=r"steps must be given to AlphaSchedule.*\(got (inf|-1)"):
        fit(tmp_path, pg.AlphaSchedule(0.25, 1.0), data=Stream(), **options)
    schedule = pg.AlphaSchedule(0.25, 1.0, steps=4)
    told = fit(tmp_path, schedule, data=Stream(), max_epochs=1)
    assert told.alphas == [schedule.value(step) for step in range(4)]
    assert fit(tmp_path, pg.AlphaSchedule(0.3), data=Stream(), max_epochs=1).alphas == [0.3] * 4
