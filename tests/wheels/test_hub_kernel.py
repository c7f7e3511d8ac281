"""The layout for the Hugging Face hub, as its own package finds and loads it from a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from powergrad_ext import _build

pytest.importorskip("kernels.variants")  # the tests have a folder kernels

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "hub_kernel.py"

LOAD = """
import sys, torch, kernels
from pathlib import Path
kernel = kernels.get_local_kernel(Path(sys.argv[1]), backend="cpu", trust_remote_code=True)
logits, target = torch.randn(4, 10, requires_grad=True), torch.arange(4)
kernel.cross_entropy(logits, target, alpha=0.3).backward()
expected = torch.softmax(0.3 * logits.detach(), 1) - torch.nn.functional.one_hot(target, 10)
torch.testing.assert_close(logits.grad, expected / 4)
import powergrad_ext._native
print(powergrad_ext._native._C.__file__)
"""


def test_kernels_finds_and_runs_it(wheel: Path, tmp_path: Path) -> None:
    output = tmp_path / "kernel"
    # Where the tree has no package, the script asks the one that is installed.
    variables = os.environ | {"PYTHONPATH": str(Path(_build.__file__).parents[1])}
    build = [sys.executable, SCRIPT, output, wheel.resolve()]
    subprocess.run(build, check=True, env=variables)
    command = [sys.executable, "-c", LOAD, str(output)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(output / "build"))
