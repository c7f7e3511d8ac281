"""A target out of range stops the kernel, as torch's do, before anything is read through it.

The assertion ends all work on the device, so each runs in a process of its own.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
import powergrad_ext as pg

logits = torch.randn({shape}, device="cuda", requires_grad=True)
target = torch.zeros({target_shape}, dtype={dtype}, device="cuda")
target.view(-1)[-1] = {bad}
loss = pg.cross_entropy(logits, target, torch.ones(5, device="cuda"), {options})
torch.cuda.synchronize()
"""
CASES = {
    "too large": ("4, 5", "4", "torch.int64", "5", ""),
    "negative": ("4, 5", "4", "torch.int64", "-1", "label_smoothing=0.1"),
    "far out": ("4, 5", "4", "torch.int64", "2**40", "reduction='none'"),
    "int32, inner": ("2, 5, 7", "2, 7", "torch.int32", "-100", "ignore_index=2"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_target_out_of_range(case):
    names = ("shape", "target_shape", "dtype", "bad", "options")
    script = SCRIPT.format(**dict(zip(names, case, strict=True)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr
