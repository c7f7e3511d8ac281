"""What a user does first, beside any torch, where nothing can be compiled."""

from __future__ import annotations

import re
from pathlib import Path

from installation import Installed

README = Path(__file__).resolve().parents[2] / "README.md"


def test_importing_takes_no_time(installed: Installed) -> None:
    """Beyond torch's own import; nothing is said, and nothing is compiled."""
    code = """
import time, torch
begun = time.process_time()
import powergrad_ext
print(time.process_time() - begun)
from powergrad_ext import _native
assert _native.INSTALLED
"""
    done = installed.run(code)
    assert float(done.stdout) < 2.0
    # A torch for CUDA tells where triton is missing, which it looks for to count flops.
    said = [line for line in done.stderr.splitlines() if "torch/utils/flop_counter" not in line]
    assert said == []


def test_the_first_block_of_the_readme(installed: Installed) -> None:
    block = re.search(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    installed.run(block[1])


def test_errors_keep_their_type_and_their_words(installed: Installed) -> None:
    """C++ exceptions cross from one library to another, with the numbers in them."""
    code = """
import torch, powergrad_ext as pg
for target in (10, -1):
    try:
        pg.cross_entropy(torch.zeros(2, 10), torch.tensor([0, target]))
    except IndexError as error:
        print(error)
try:
    pg.cross_entropy(torch.ones(2, 3), torch.zeros(4, dtype=torch.long))
except ValueError as error:
    print(error)
"""
    words = (
        "Target {} is out of bounds: cross_entropy() expects class indices in [0, 10) for C = 10 "
        "classes, or ignore_index (-100)."
    )
    first, second, third = installed.run(code).stdout.splitlines()
    assert [first, second] == [words.format(10), words.format(-1)]
    assert "batch_size (2)" in third
    assert "(4)" in third


def test_gradients_in_eager_mode_compiled_and_through_the_last_layer(installed: Installed) -> None:
    """The gradient is that of F.cross_entropy(alpha z) / alpha."""
    installed.run("""
import torch, powergrad_ext as pg
import torch.nn.functional as F
torch.manual_seed(0)
hidden = torch.randn(33, 20, dtype=torch.float64, requires_grad=True)
weight = torch.randn(101, 20, dtype=torch.float64, requires_grad=True)
target = torch.randint(101, (33,))
logits = (hidden @ weight.T).detach().requires_grad_()
(expected,) = torch.autograd.grad(F.cross_entropy(0.3 * logits, target) / 0.3, logits)

def loss(z):
    return pg.cross_entropy(z, target, alpha=0.3)

compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
for function in (loss, compiled):
    value = function(logits)
    torch.testing.assert_close(value, F.cross_entropy(logits, target))
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, expected)
last_layer = pg.linear_cross_entropy(hidden, weight, target, alpha=0.3)
gradients = torch.autograd.grad(last_layer, (hidden, weight))
torch.testing.assert_close(gradients, (expected @ weight, expected.T @ hidden))
""")


def test_all_instruction_sets_of_the_processor_are_used(installed: Installed) -> None:
    """As the system tells them."""
    line = re.search("^flags.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(line[0].split()) if line else set()
    avx2 = {"avx2", "fma"}
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    needed = {"avx512_bf16": avx512 | {"avx512_bf16"}, "avx512": avx512, "avx2": avx2}
    code = "from powergrad_ext._native import _C; print(*_C.available_isas())"
    available = installed.run(code).stdout.split()
    assert available == [*(name for name in needed if needed[name] <= flags), "scalar"]


def test_threads_are_torch_s(installed: Installed) -> None:
    """One OpenMP library, no thread beyond those that torch has, and no driver of a GPU."""
    code = """
import os, re, torch, powergrad_ext as pg
torch.set_num_threads(3)
logits, target = torch.randn(4096, 1000, requires_grad=True), torch.randint(1000, (4096,))
threads = lambda: len(os.listdir("/proc/self/task"))
torch.nn.functional.cross_entropy(logits, target).backward()
before = threads()
pg.cross_entropy(logits, target, alpha=0.3).backward()
maps = open("/proc/self/maps").read()
print(before, threads(), len(set(re.findall(r"/\\S*libgomp\\S*", maps))), "libcuda.so" in maps)
"""
    before, after, libraries, driver = installed.run(code).stdout.split()
    assert int(before) >= 3
    assert (after, libraries, driver) == (before, "1", "False")


def test_a_second_copy_of_the_package_is_refused(installed: Installed) -> None:
    """By a sentence: registering its operators again would end the process."""
    code = f"""
import shutil, sys, torch, powergrad_ext
shutil.copytree({str(installed.package)!r}, "second/powergrad_ext", dirs_exist_ok=True)
for name in [name for name in sys.modules if name.startswith("powergrad_ext")]:
    del sys.modules[name]
sys.path.insert(0, "second")
import powergrad_ext
"""
    done = installed.run(code, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: another library in this process has already registered")
