"""What `import powergrad_ext` brings into a process, and what still works after it."""

import subprocess
import sys
from pathlib import Path

import torch

from powergrad_ext._constant import assume_constant_result

REPOSITORY = Path(__file__).resolve().parents[2]

IMPORT = """
import os, sys, warnings
import torch
modules, environment, filters = set(sys.modules), dict(os.environ), list(warnings.filters)
import powergrad_ext as pg
"""


def run(code, first=""):
    command = [sys.executable, "-c", first + IMPORT + code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_brings_only_itself_and_changes_nothing():
    """torch._dynamo takes seconds, sets an environment variable and adds a filter for warnings."""
    brought = run("""
assert dict(os.environ) == environment
assert warnings.filters == filters
print(*(name for name in set(sys.modules) - modules if not name.startswith("powergrad_ext")))
""")
    third_party = {
        name
        for name in brought.split()
        if name.split(".")[0] not in sys.stdlib_module_names | {"triton"}
        and not name.startswith("_sysconfigdata")  # the standard library's, named after a platform
    }
    # flop_counter takes milliseconds; where triton is installed it imports that.
    assert third_party <= {"torch.utils.flop_counter", "torch.utils.module_tracker"}


def test_what_is_registered_works_when_it_is_first_used():
    run("""
import io
z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
torch.testing.assert_close(
    torch.vmap(lambda z, y: pg.cross_entropy(z, y))(z, y), pg.cross_entropy(z, y, reduction="none")
)
assert "torch._dynamo" not in sys.modules
warnings.simplefilter("ignore")
model = torch.nn.Sequential(pg.PowerGradLogSoftmax())
for kind in (model, torch.jit.script(model)):
    buffer = io.BytesIO()
    torch.onnx.export(kind, (z,), buffer, dynamo=False)
    assert b"LogSoftmax" in buffer.getvalue()
""")


def test_scripts_can_be_exported_first():
    """Nothing of Python's is called between the script and the exporter."""
    run("""
import io
warnings.simplefilter("ignore")
buffer = io.BytesIO()
torch.onnx.export(
    torch.jit.script(pg.PowerGradLogSoftmax()), (torch.randn(4, 3),), buffer, dynamo=False
)
assert b"LogSoftmax" in buffer.getvalue()
""")


def test_the_mark_for_compilers_is_torchs():
    def ours():
        pass

    def torchs():
        pass

    assume_constant_result(ours)
    torch.compiler.assume_constant_result(torchs)
    assert vars(ours) == vars(torchs) != {}


def test_functions_that_have_the_names_of_their_modules():
    """Whatever is imported first: powergrad_ext.cross_entropy is the function."""
    code = """
import copy, importlib, pickle
for name in ("cross_entropy", "log_softmax", "linear_cross_entropy", "ctc_loss"):
    module = importlib.import_module(f"powergrad_ext.{name}")
    function = getattr(pg, name)
    assert function is vars(module)[name]
    assert pickle.loads(pickle.dumps(function)) is copy.deepcopy(function) is function
traced = torch.fx.symbolic_trace(lambda z, y: pg.cross_entropy(z, y))
z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
assert pickle.loads(pickle.dumps(traced))(z, y) == pg.cross_entropy(z, y)
"""
    run(code, first="import powergrad_ext.cross_entropy, powergrad_ext.linear_cross_entropy")
    exec(IMPORT + code, {})
