"""One implementation at one problem, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def nothing() -> None:
    """Prepare nothing."""


def unchanged(result: Any) -> Tensor:
    """What is a tensor already."""
    return result


@dataclass(frozen=True)
class Step:
    """What is done again and again.

    Attributes:
        run: what is timed; returns the gradient (of forward alone its result, for the floor the
            copy).
        prepare: runs before each timed call, untimed. It leaves the caches and the implementation's
            own threads as a training step would: the logits just written.
        as_tensor: turns what run returns into a tensor, untimed.
        has_own_stream: run works on another CUDA stream than torch's, and waits for it.
    """

    run: Callable[[], Any]
    prepare: Callable[[], object] = nothing
    as_tensor: Callable[[Any], Tensor] = unchanged
    has_own_stream: bool = False
