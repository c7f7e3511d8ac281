"""Who hands out memory: every figure about large tensors depends on it.

glibc gives large blocks back to the system as soon as they are free, and gets fresh pages for the
next ones, which the system clears first: that is what people have who set nothing. With the
settings called "kept", or with jemalloc or tcmalloc, freed memory is kept and used again.

The choice has to be made before a process starts, so a script starts itself anew with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from ctypes.util import find_library

DEFAULT = "glibc"
KEPT = "glibc-kept"
LIBRARIES = {"jemalloc": "libjemalloc2", "tcmalloc": "libtcmalloc-minimal4"}
"""By the library's name: the package that has it on Debian and Ubuntu."""
ALLOCATORS = (DEFAULT, KEPT, *LIBRARIES)

CHOICE = "POWERGRAD_BENCH_ALLOCATOR"
SETTINGS = {
    # Thresholds that are never reached.
    KEPT: dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**40)),
    # By default it gives large blocks back, too.
    "jemalloc": {"MALLOC_CONF": "oversize_threshold:1,dirty_decay_ms:-1,muzzy_decay_ms:-1"},
}


def keeps_memory(allocator: str) -> bool:
    """Whether a large tensor finds the pages of one that was freed before."""
    return allocator != DEFAULT


def current() -> str:
    """The allocator that this process was started with."""
    return os.environ.get(CHOICE, DEFAULT)


def use(allocator: str) -> None:
    """Go on with this allocator: where it is another one, as the same command in its stead.

    Raises:
        SystemExit: the allocator is not installed.
    """
    if allocator != current():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings(allocator))


def settings(allocator: str) -> Mapping[str, str]:
    """The environment that chooses it.

    Raises:
        SystemExit: the allocator is not installed.
    """
    choice = {CHOICE: allocator} | SETTINGS.get(allocator, {})
    if allocator in LIBRARIES:
        library = find_library(allocator) or find_library(f"{allocator}_minimal")
        if library is None:
            package = LIBRARIES[allocator]
            raise SystemExit(
                f"{allocator} is not found (Debian and Ubuntu: apt-get install {package})"
            )
        return choice | {"LD_PRELOAD": library}
    return choice
