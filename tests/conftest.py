"""What every test shares: the level that is run, devices, and instruction sets.

Levels: `check` runs each test with the CPU's best instruction set; `test`, the default, with that
and the scalar one; `rest` is what `test` leaves out: tests marked slow, all other instruction sets,
and long runs of hypothesis.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from cases import DTYPES, devices, instruction_set

from powergrad_ext._native import _C

# What most machines that run tests have, and Inductor then refuses more: so on a desk too.
os.environ.setdefault("CI", "true")

EXAMPLES = {"check": 20, "test": 100, "rest": 1000}
ISAS = tuple(_C.available_isas())
BEST = ISAS[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--level", choices=tuple(EXAMPLES), default="test")


def pytest_configure(config: pytest.Config) -> None:
    level = config.getoption("--level")
    with suppress(ModuleNotFoundError):  # where it is missing, its tests are skipped
        import hypothesis

        # The same examples in every run: a failure in CI is a failure on a desk.
        hypothesis.settings.register_profile(
            level, deadline=None, max_examples=EXAMPLES[level], derandomize=True, database=None
        )
        hypothesis.settings.load_profile(level)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    level = config.getoption("--level")
    left_out = [item for item in items if not _is_run(item, level)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _is_run(item, level)]


def _is_run(item: pytest.Item, level: str) -> bool:
    parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    isa = parameters.get("isa", BEST)
    if parameters.get("device") == "cuda" and isa != BEST:
        return False  # a GPU has no instruction set to choose
    in_test = item.get_closest_marker("slow") is None and isa in (BEST, "scalar")
    if level == "rest":
        function = getattr(item, "obj", None)
        return not in_test or getattr(function, "is_hypothesis_test", False)
    return in_test and (level == "test" or isa == BEST)


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with each instruction set that this CPU has."""
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every supported type of logits."""
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
