"""How pictures look: readable on a light and on a dark page, for any eyes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.style

BASELINE_COLOUR = "#64789a"
OUR_COLOUR = "#e0542f"
FINE_PRINT = "#747c86"


def house_style() -> AbstractContextManager[None]:
    """Return a block inside which matplotlib draws in this style."""
    return matplotlib.style.context(Path(__file__).with_name("plot.mplstyle"))
