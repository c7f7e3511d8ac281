"""`python -m powergrad_ext`, and the choice of the instruction set, in processes of their own."""

import os
import platform
import re
import subprocess
import sys

import pytest
import torch

import powergrad_ext
from powergrad_ext._native import _C


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("isa", _C.available_isas())
def test_report(isa):
    """What was built and what is in use; POWERGRAD_ISA has been obeyed."""
    done = run("-m", "powergrad_ext", POWERGRAD_ISA=isa)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    version, commit = lines["powergrad_ext"].split(", commit ")
    assert version.strip() == powergrad_ext.__version__
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", commit)
    assert lines["torch"].strip() == torch.__version__
    assert lines["CPU instruction set"].split()[0] == isa
    assert any(word in lines["built"] for word in ("AOT", "JIT"))
    assert "CUDA architectures" in lines


@pytest.mark.parametrize("isa", ["sse2", "AVX2"])
def test_unknown_instruction_set(isa):
    """An error of the import: one sentence with the name, the value and what there is."""
    done = run("-c", "import powergrad_ext", POWERGRAD_ISA=isa)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert f"POWERGRAD_ISA={isa}" in message
    assert ", ".join(_C.available_isas()) in message


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16"])
def test_instruction_set_of_other_processors(isa):
    """Known, but not here: the import says so instead of dying of an illegal instruction."""
    if isa in _C.available_isas():
        pytest.skip(f"this processor has {isa}")
    done = run("-c", "import powergrad_ext", POWERGRAD_ISA=isa)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ")
    supported = ", ".join(_C.available_isas())
    if platform.machine() == "x86_64":
        assert f"POWERGRAD_ISA={isa} is not supported by this processor" in message
    assert f"supports: {supported}" in message
    with pytest.raises((RuntimeError, ValueError), match=f"isa={isa}"):
        _C.set_isa(isa)


def test_names_of_instruction_sets():
    assert _C.isa() in _C.available_isas()
    assert "scalar" in _C.available_isas()
    with pytest.raises(ValueError, match="sse2"):
        _C.set_isa("sse2")


def test_public_names():
    assert set(powergrad_ext.__all__) == {
        "AlphaSchedule",
        "PowerGradCrossEntropyLoss",
        "PowerGradLinearCrossEntropyLoss",
        "PowerGradLogSoftmax",
        "RowMetrics",
        "calibration",
        "cross_entropy",
        "ctc_loss",
        "distributed",
        "linear_cross_entropy",
        "log_softmax",
        "reference",
    }
    assert all(hasattr(powergrad_ext, name) for name in powergrad_ext.__all__)
