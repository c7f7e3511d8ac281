"""A torch of a minor version that the wheel has no binding for, where something can be compiled."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from installation import Installed

from powergrad_ext import _build
from powergrad_ext._build import tools

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.slow  # it compiles for a minute
def test_the_binding_alone_is_compiled_once(altered: Installed, tmp_path: Path) -> None:
    """By a C++ compiler; the kernels that were installed are opened, and not compiled."""
    if missing := tools.missing_tool():
        pytest.skip(f"this takes {missing}")
    minor, suffix = _build.minor_version(torch.__version__), _build.running_python().suffix
    name = _build.binding_name(minor, suffix)
    (altered.native / name).unlink()
    block = re.search(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    compilers = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    first = altered.run(block[1], PATH=compilers, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert f"that for torch {minor} has to be compiled, which is done once" in first.stderr
    (folder,) = (tmp_path / "powergrad_ext").iterdir()
    made = {path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    assert made == {name, "in_use"}
    opened = {path.resolve() for path in folder.iterdir() if path.is_symlink() and path.exists()}
    assert opened == set(altered.native.glob("libpowergrad_*.so"))
    second = altered.run(block[1], TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert "compiled" not in second.stderr
