"""What only a GPU can show. Everything else runs there too, by way of the device fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import devices


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Skips where there is no GPU, or no kernels for it."""
    if "cuda" not in devices():
        pytest.skip("needs a GPU, and powergrad_ext built with CUDA kernels")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any call of torch that waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")
