"""The base model, and one run of fine-tuning it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

import powergrad_ext as pg
from examples.evidence.study import Arm, Metrics
from examples.evidence.training import batches

from .metrics import judge, sample_metrics
from .network import CONTEXT, LanguageModel
from .texts import VOCABULARY, Texts, windows

PRETRAINING_RATE = 3e-3


@dataclass(frozen=True)
class Size:
    """Batches to pretrain on; windows that a seed draws to fine-tune on, and how often each."""

    batch: int
    pretraining_steps: int
    windows: int
    epochs: int
    judged: int
    """Windows of each text, of validation or test, at most."""


def fit(
    model: LanguageModel, text: Tensor, order: Sequence[Tensor], *, alpha: float, rate: float
) -> None:
    """Train in place on the batches of windows (N, length + 1), in this order."""
    model.train()
    optimizer = AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = OneCycleLR(
        optimizer, rate, total_steps=len(order), pct_start=0.1, cycle_momentum=False
    )
    for batch in order:
        tokens = text[batch]
        features = model(tokens[:, :-1]).flatten(0, 1)
        loss = pg.linear_cross_entropy(
            features, model.head.weight, tokens[:, 1:].flatten(), alpha=alpha
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def base_model(texts: Texts, size: Size, path: Path) -> LanguageModel:
    """Return the model of the old text, which all runs begin with; kept at path."""
    torch.manual_seed(0)
    model = LanguageModel(VOCABULARY)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    old = windows(texts.old["train"], CONTEXT)
    epochs = -(-size.pretraining_steps * size.batch // len(old)) + 1
    order = batches(len(old), size.batch, epochs, seed=0)[: size.pretraining_steps]
    fit(model, old, order, alpha=1.0, rate=PRETRAINING_RATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def measure(
    base: LanguageModel, texts: Texts, size: Size, arm: Arm, rate: float, seed: int, part: str
) -> Metrics:
    """Fine-tune on windows that the seed draws, in an order that it draws; judge on both texts."""
    new = windows(texts.new["train"], CONTEXT)
    drawn = torch.randperm(len(new), generator=torch.Generator().manual_seed(seed))[: size.windows]
    model = deepcopy(base)
    order = batches(len(drawn), size.batch, size.epochs, seed)
    fit(model, new[drawn], order, alpha=arm.alpha, rate=rate)
    held_out = {
        name: windows(text[part], CONTEXT)[: size.judged]
        for name, text in (("new", texts.new), ("old", texts.old))
    }
    metrics = judge(model, held_out, arm.alpha)
    if part == "test":
        metrics |= sample_metrics(model, held_out["new"], seed)
    return metrics
