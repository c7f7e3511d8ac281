"""The calculated cost of the exchange: by hand, and as its document shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import exchange


def test_the_document_shows_what_is_calculated() -> None:
    text = Path(exchange.__file__).with_suffix(".md").read_text()
    assert exchange.table() in text, "put the table of python bench/exchange.py there"
    assert "Calculated, not measured" in text


def test_by_hand() -> None:
    """Without bytes a call and its steps are left; within a node LL is the fastest protocol."""
    assert exchange.all_gather(8, 0) == pytest.approx(3.6 + 7 * 0.47)
    assert exchange.all_reduce(8, 0) == pytest.approx(3.6 + 14 * 0.47)
    assert exchange.all_reduce(512, 0) == pytest.approx(4.4 + 2 * (7 * 0.52 + 6 * 5.0))
    # Very many bytes: those that pass each link, at the whole bandwidth of a ring.
    assert exchange.all_gather(8, 450e9) == pytest.approx(7e6, rel=1e-3)
    assert exchange.all_reduce(8, 450e9) == pytest.approx(2 * 7 / 8 * 1e6, rel=1e-3)
