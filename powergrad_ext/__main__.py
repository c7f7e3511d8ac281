"""``python -m powergrad_ext``: what was built and what is in use."""

from __future__ import annotations

import torch

import powergrad_ext
from powergrad_ext import _native
from powergrad_ext._build.commit import commit
from powergrad_ext._native import _C


def report() -> dict[str, str]:
    """The facts that belong into a bug report."""
    architectures = _C.cuda_architectures()
    return {
        "powergrad_ext": f"{powergrad_ext.__version__}, commit {commit() or 'unknown'}",
        "module": str(_C.__file__),
        "built": "on installation (AOT)" if _native.INSTALLED else "on first import (JIT)",
        "CPU instruction set": f"{_C.isa()} (supported: {', '.join(_C.available_isas())})",
        "CUDA architectures": ", ".join(architectures) or "none (built without CUDA kernels)",
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    for name, value in report().items():
        print(f"{name + ':':<22}{value}")


if __name__ == "__main__":
    main()
