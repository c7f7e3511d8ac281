"""What a call allocates on the CPU, as torch's profiler sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile


class Allocations(NamedTuple):
    """Bytes beyond those before the call."""

    peak: int
    left: int
    total: int  # freed or not


def allocations_of(call: Callable[[], Any]) -> Allocations:
    """Of a call whose result is kept until they are counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = call()
    events = seen.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = total = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        now += change
        peak = max(peak, now)
        total += max(change, 0)
    del result
    return Allocations(peak, now, total)
