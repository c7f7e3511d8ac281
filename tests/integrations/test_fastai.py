"""fastai: its own loss at alpha 1, the identity in float64, and what a Learner makes of it."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from frameworks import framework

framework("fastai")

from fastai.data.core import DataLoaders  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402

from powergrad_ext.integrations.fastai import PowerGradCrossEntropyLossFlat  # noqa: E402

OPTIONS = [
    {},
    {"weight": torch.linspace(0.5, 2.0, 5), "ignore_index": 2},
    {"label_smoothing": 0.1, "reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss(options):
    """Segmentation: classes along another axis than the last."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, 4, generator=random).requires_grad_()
    target = torch.randint(5, (2, 3, 4), generator=random)
    theirs = CrossEntropyLossFlat(axis=1, **options)(z, target)
    torch.testing.assert_close(
        PowerGradCrossEntropyLossFlat(axis=1, alpha=1.0, **options)(z, target), theirs
    )
    found = PowerGradCrossEntropyLossFlat(axis=1, alpha=0.3, **options)(z, target)
    torch.testing.assert_close(found, theirs)
    wide = z.detach().double().requires_grad_()
    if "weight" in options:
        options = options | {"weight": options["weight"].double()}
    (F.cross_entropy(0.3 * wide, target, **options) / 0.3).backward()
    found.backward()
    torch.testing.assert_close(z.grad, wide.grad.float())


def test_a_learner(tmp_path):
    torch.manual_seed(0)
    data = [(torch.randn(4), torch.tensor(number % 3)) for number in range(12)]
    loaders = DataLoaders.from_dsets(data, data, bs=6, device="cpu", num_workers=0)
    loss = PowerGradCrossEntropyLossFlat(alpha=0.25)
    learner = Learner(loaders, torch.nn.Linear(4, 3), loss_func=loss, path=tmp_path)
    with learner.no_logging():
        learner.fit(1, lr=0.1)
        found, _, classes = learner.get_preds(with_decoded=True)
    logits = learner.model(torch.stack([inputs for inputs, _ in data])).detach()
    torch.testing.assert_close(torch.Tensor(found), torch.softmax(0.25 * logits, -1))
    assert torch.Tensor(classes).equal(logits.argmax(-1).float())


def test_pickle():
    twin = pickle.loads(pickle.dumps(PowerGradCrossEntropyLossFlat(alpha=0.4)))
    assert twin.func.alpha == 0.4
