"""One run: a network, an alpha, a rate and a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from examples.evidence.metrics import class_metrics, logits_of
from examples.evidence.study import Arm, Metrics
from examples.evidence.training import batches, fit

from .data import Gazetteer
from .network import CharacterNetwork

RARE = 1000
"""A country is rare if fewer of the places to train with are there."""


@dataclass(frozen=True)
class Size:
    """How many places a seed draws to train with, how many at a time, how often each."""

    places: int
    batch: int
    epochs: int


def measure(
    gazetteer: Gazetteer, size: Size, arm: Arm, rate: float, seed: int, part: str
) -> Metrics:
    """Train on places that the seed draws, as it draws their order and the weights; judge."""
    train, held_out = gazetteer.parts["train"], gazetteer.parts[part]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(train.names), generator=generator)[: size.places]
    torch.manual_seed(seed)
    network = CharacterNetwork(arm.network, gazetteer.characters, gazetteer.countries)
    fit(
        network,
        train.names[drawn],
        train.countries[drawn],
        batches(len(drawn), size.batch, size.epochs, seed),
        alpha=arm.alpha,
        rate=rate,
    )
    logits = logits_of(network, held_out.names)
    rare = gazetteer.places_of[held_out.countries] < RARE
    return class_metrics(logits, held_out.countries, arm.alpha) | {
        f"{group}_{name}": value
        for group, those in (("rare", rare), ("frequent", ~rare))
        for name, value in class_metrics(
            logits[those], held_out.countries[those], arm.alpha
        ).items()
    }
