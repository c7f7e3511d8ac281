"""No code of one instruction set may be reached by a processor that lacks it.

A weak symbol is one of several copies, of which the linker keeps any. If a file compiled for
AVX-512 brought one, all other files might call that copy.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run

LEAKING = """
#pragma GCC push_options
#pragma GCC target("avx2")
template <class Number>
__attribute__((noinline)) Number twice(Number x) {
  return x + x;
}
float four_times(float x) { return twice(twice(x)); }
#pragma GCC pop_options
"""


def weak_symbols(object_file: Path) -> list[str]:
    """The weak and unique symbols that an object file defines, as nm prints them."""
    symbols = run("nm", "-C", "--defined-only", object_file, cwd=object_file.parent).stdout
    return [line for line in symbols.splitlines() if line.split(maxsplit=2)[1] in {"W", "V", "u"}]


@pytest.mark.slow
def test_kernels_define_no_weak_symbol(wheel: Path, source_tree: Path) -> None:
    objects = list((source_tree / "build" / "objects").glob("cpu/kernels_*.o"))
    assert len(objects) == len(list((source_tree / "csrc" / "cpu").glob("kernels_*.cpp"))) > 0
    for kernels in objects:
        assert weak_symbols(kernels) == []


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "leak.cpp").write_text(LEAKING)
    run("c++", "-O3", "-c", "leak.cpp", cwd=tmp_path)
    assert any("twice<float>" in symbol for symbol in weak_symbols(tmp_path / "leak.o"))
