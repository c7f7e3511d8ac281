"""Two files: what has changed beyond noise, and what has only moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import compare
from bench.cases import CASES, FRESH, Group
from bench.estimates import estimate, estimate_ratio_of_medians
from bench.result import Result, read, results_of, write

NOISE = np.random.default_rng(0).normal(0.0, 0.05, (2, 41))


def results_file(path: Path, cpu: str, slow: float, noise: np.ndarray) -> Path:
    result = Result(Group(CASES["tiny"], "float32", FRESH))
    result.seconds = {"copy": 1.0 + noise, "eager": slow * (1.0 + noise)}
    result.skipped = {"jax": "jax cannot be imported"}
    with path.open("w") as lines:
        write(lines, [{"kind": "machine", "cpu": cpu, "load": noise[0]}, *result.as_json()])
    return path


def test_files_keep_what_was_measured(tmp_path: Path) -> None:
    path = results_file(tmp_path / "a", "one", 1.0, NOISE[0])
    (result,) = results_of(read(path))
    assert result.group == Group(CASES["tiny"], "float32", FRESH)
    np.testing.assert_allclose(result.seconds["copy"], 1.0 + NOISE[0], rtol=1e-4)
    assert result.skipped == {"jax": "jax cannot be imported"}


def test_noise_does_not_count_and_a_change_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results_file(tmp_path / "a", "one", 1.0, NOISE[0])
    after = results_file(tmp_path / "b", "another", 1.2, NOISE[1])
    changes = {change.peer: change for change in compare.changes(read(before), read(after))}
    assert not changes["copy"].is_beyond_noise(0.03)
    assert changes["eager"].is_beyond_noise(0.03)
    compare.main([str(before), str(after)])
    printed = capsys.readouterr().out
    assert "Different cpu: one, then another" in printed
    assert "load" not in printed
    assert "F.cross_entropy" in printed
    assert "slower" in printed
    assert "1 of 2 times changed beyond noise" in printed


@pytest.mark.parametrize(
    ("slow", "arguments", "changed"),
    [
        (1.04, [], 1),
        (1.02, [], 0),
        (0.96, [], 1),
        (0.98, [], 0),
        (1.2, ["--least", "0.15"], 1),
        (1.2, ["--least", "0.25"], 0),
    ],
)
def test_how_great_a_change_counts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slow: float,
    arguments: list[str],
    changed: int,
) -> None:
    quiet = np.zeros(41)
    before = results_file(tmp_path / "a", "one", 1.0, quiet)
    after = results_file(tmp_path / "b", "one", slow, quiet)
    compare.main([str(before), str(after), *arguments])
    assert f"{changed} of 2 times changed beyond noise" in capsys.readouterr().out


def test_two_measurements_are_resampled_on_their_own() -> None:
    """Their errors add up as independent ones do, also where both happen to be the same numbers."""
    rounds = 1.0 + np.random.default_rng(0).normal(0.0, 0.05, 401)
    of_one = estimate(rounds, 0.99)
    of_ratio = estimate_ratio_of_medians(rounds, rounds, 0.99)
    assert of_ratio.median == 1.0
    assert 1.25 * of_one.error < of_ratio.error < 1.6 * of_one.error


def test_files_that_cannot_be_compared_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results_file(tmp_path / "a", "one", 1.0, NOISE[0])
    without_times = tmp_path / "b"
    without_times.write_text(path.read_text().splitlines()[0])
    with pytest.raises(SystemExit, match="No time is in both files"):
        compare.main([str(path), str(without_times)])
    with pytest.raises(SystemExit):
        compare.main([str(path), str(tmp_path / "nowhere")])
    assert "there is no file" in capsys.readouterr().err
