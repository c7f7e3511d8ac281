"""Fixtures that every test shares: where to run, and with which instructions."""

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

with suppress(ModuleNotFoundError):  # where it is missing, its tests are skipped
    import hypothesis

    # The same examples in every run: a failure in CI is a failure on a desk.
    hypothesis.settings.register_profile(
        "ci", deadline=None, max_examples=300, derandomize=True, database=None
    )
    hypothesis.settings.register_profile("explore", deadline=None, max_examples=5000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A GPU has no instruction set to choose: one run of each test is enough there."""
    items[:] = [item for item in items if not _repeats_on_gpu(getattr(item, "callspec", None))]


def _repeats_on_gpu(call: Any) -> bool:
    if call is None or call.params.get("device") != "cuda":
        return False
    first = _C.available_isas()[0]
    return call.params.get("isa", first) != first


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=_C.available_isas())
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
