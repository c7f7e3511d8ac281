"""Sweeps, at two points each: slopes, tables and plots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import sweep
from bench.result import read
from bench.sweep import SWEEPS, Point, slope


def test_slope_is_that_of_the_larger_half() -> None:
    """A constant price of a call, then a square law."""
    points = [
        Point("rows", x, {"ours": np.full(5, max(1e4, float(x) ** 2))})
        for x in (1, 2, 4, 8, 1000, 2000, 4000, 8000)
    ]
    assert slope(points, "ours") == pytest.approx(2.0)


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_writes_points_and_plots(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shortened = replace(SWEEPS[name], values=SWEEPS[name].values[:2])
    monkeypatch.setitem(SWEEPS, name, shortened)
    monkeypatch.setattr(sweep, "VOCABULARY", sweep.Case("vocabulary", 4, 50))
    lines, plot = tmp_path / "sweep.jsonl", tmp_path / "plots" / "sweep"
    options = ["--sweep", name, "--peer", "eager", "--budget", "0"]
    sweep.main([*options, "--output", str(lines), "--plot", str(plot)])
    points = sweep.points_of(read(lines))
    assert [point.x for point in points] == list(shortened.values)
    expected = {"copy", "eager", "ours"} | ({"hook", "scaled"} if name == "alpha" else set())
    assert all(set(point.seconds) == expected for point in points)
    assert ("slope" in capsys.readouterr().out) == (shortened.has_slope and len(points) > 1)
    assert plot.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in plot.with_suffix(".svg").read_text()
