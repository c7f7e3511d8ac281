"""The wheel that the environment variable WHEEL names, where there is torch and no compiler.

Without that variable nothing here is run, as in `make test`; `make test-wheel` sets it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installed

WHEEL = os.environ.get("WHEEL")
if WHEEL is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def wheel() -> Path:
    assert WHEEL is not None
    return Path(WHEEL)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture
def altered(installed: Installed) -> Iterator[Installed]:
    """The same, whose libraries are as they were when a test is over that changes them."""
    before = {path: path.read_bytes() for path in installed.native.iterdir()}
    yield installed
    for path in installed.native.iterdir():
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
