"""The scripts of the guides, each in a process of its own, as a reader runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from frameworks import framework

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "examples" / "guides"
ALONE = {
    "plain_loop": None,
    "language_model": None,
    "compiled": None,
    "amp_and_accumulation": None,
    "transformers_trainer": "transformers",
    "trl_sft": "trl",
    "lightning_fit": "lightning",
    "timm_losses": "timm",
    "torchtitan_loss": "torchtitan",
    "fastai_learner": "fastai",
}
ON_TWO_RANKS = ("ddp", "fsdp2", "tensor_parallel")


def run(*command: str | Path, cwd: Path) -> str:
    variables = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_guide_has_a_test() -> None:
    scripts = {path.stem for path in GUIDES.glob("*.py")} - {"__init__"}
    assert scripts == {*ALONE, *ON_TWO_RANKS}


def test_the_quickstart(tmp_path: Path) -> None:
    printed = run(sys.executable, ROOT / "examples" / "quickstart.py", cwd=tmp_path)
    assert float(printed.split()[-1].rstrip("%")) > 90.0


@pytest.mark.parametrize("name", ALONE)
def test_a_guide(name: str, tmp_path: Path) -> None:
    if needed := ALONE[name]:
        framework(needed)
    assert run(sys.executable, GUIDES / f"{name}.py", cwd=tmp_path)


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_a_guide_on_two_ranks(name: str, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    printed = run(*torchrun, "--nproc-per-node", "2", GUIDES / f"{name}.py", cwd=tmp_path)
    assert "rank 0: loss" in printed
    assert "rank 1: loss" in printed
