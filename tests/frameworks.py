"""What the tests of the integrations share."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def framework(name: str) -> ModuleType:
    """The framework; without it, the file that asks is skipped, but not where it has to be there.

    REQUIRED_FRAMEWORKS names those that `make test` has installed.
    """
    if name in os.environ.get("REQUIRED_FRAMEWORKS", "").split():
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
