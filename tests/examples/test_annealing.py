"""The comparison of annealed alphas, very small."""

from __future__ import annotations

import pytest

from examples.digits import annealing


def test_every_method_is_tuned_and_told(monkeypatch, capsys):
    monkeypatch.setattr(annealing, "EPOCHS", 1)
    monkeypatch.setattr(annealing, "RATES", (0.04,))
    monkeypatch.setattr(annealing, "TUNING_SEEDS", range(100, 101))
    monkeypatch.setattr(annealing, "SEEDS", range(2))
    monkeypatch.setenv("COLUMNS", "100")
    annealing.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in annealing.METHODS)
    rows = [line.split() for line in printed.splitlines()]
    (row,) = (row for row in rows if row[:1] == ["cross-entropy"])
    assert row[1:5] == ["0.04", "+0.00", "±", "0.00"]


def test_an_annealed_run_ends_near_one():
    (result,) = annealing.test_results(annealing.METHODS["linear to 1"], 0.04, [0])
    assert result.nll == pytest.approx(result.nll_trained)
    method = annealing.METHODS["linear to 1"](0.04)
    assert method.criterion.schedule.steps == 5 * 19
