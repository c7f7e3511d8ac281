"""How many threads PyTorch uses, for the length of a block or of a function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Use this many threads inside, and as many as before after it; a decorator as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
