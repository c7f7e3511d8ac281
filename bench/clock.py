"""How one call is timed on a CPU and on a GPU."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from .step import Step

PAUSE_SECONDS = 0.002
"""Before another candidate: the last one's threads spin for a while, then let go of the CPU."""

SMALL_BYTES = 2**20
"""A GPU is done with fewer before its host has launched anything else."""


class Clock(Protocol):
    """Times calls on one device."""

    def seconds(self, step: Step) -> float:
        """Of one call; preparing it and freeing its result are not in them."""
        ...

    def pause(self) -> None:
        """Let the last candidate come to rest."""
        ...


class CpuClock:
    """The wall's time."""

    def seconds(self, step: Step) -> float:
        step.prepare()
        began = time.perf_counter()
        output = step.run()
        seconds = time.perf_counter() - began
        del output
        return seconds

    def pause(self) -> None:
        time.sleep(PAUSE_SECONDS)


class CudaClock:
    """The time between two events on the stream, beginning with a cold cache.

    Zeros are written over the L2 cache just before. That also keeps the device busy until the
    host has launched what is timed, so that the host's own time is not in it.
    """

    def __init__(self, device: str = "cuda") -> None:
        cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flood = torch.empty(4 * cache_bytes, dtype=torch.uint8, device=device)
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def seconds(self, step: Step) -> float:
        step.prepare()
        self._flood.zero_()
        if step.has_own_stream:
            return SynchronisedClock().seconds(Step(step.run))
        self._begin.record()
        output = step.run()
        self._end.record()
        torch.cuda.synchronize()
        del output
        return self._begin.elapsed_time(self._end) / 1e3

    def pause(self) -> None:
        torch.cuda.synchronize()


class SynchronisedClock:
    """The wall's time from an idle device to an idle device: what a small call costs its caller."""

    def seconds(self, step: Step) -> float:
        step.prepare()
        torch.cuda.synchronize()
        began = time.perf_counter()
        output = step.run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        del output
        return seconds

    def pause(self) -> None:
        torch.cuda.synchronize()


def clock_of(device: str, logits_bytes: int | None = None) -> Clock:
    """The clock for a device, and for logits of that size where nothing else is timed."""
    if device == "cpu":
        return CpuClock()
    small = logits_bytes is not None and logits_bytes < SMALL_BYTES
    return SynchronisedClock() if small else CudaClock()
