"""The loader of powergrad_ext over a binding and kernels that are compiled in a second."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from commands import REPOSITORY, run

MODULE = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
"""


class TinyPackage:
    """A source tree with the package's loader and one source file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tree"
        self.package = self.folder / "powergrad_ext"
        self.source = self.folder / "csrc" / "module.cpp"
        self.cache = folder / "cache"
        self.package.mkdir(parents=True)
        self.source.parent.mkdir()
        shutil.copy(REPOSITORY / "powergrad_ext" / "_native.py", self.package)
        shutil.copytree(REPOSITORY / "powergrad_ext" / "_build", self.package / "_build")
        (self.package / "__init__.py").touch()
        self.source.write_text(MODULE)
        (self.source.parent / "kernels.cpp").write_text("int unused;\n")
        shutil.copy(REPOSITORY / "csrc" / "exports.map", self.source.parent)
        (self.source.parent / "sources.txt").write_text("module module.cpp\ncpu kernels.cpp\n")

    def install(self) -> Path:
        """What the first import has compiled becomes what was installed; the binding's new path."""
        native = self.package / "native"
        Path(self.import_it().stdout.strip()).parent.rename(native)
        (binding,) = native.glob("_C_torch*.so")
        return binding

    def import_it(
        self, before: str = "", after: str = "", **variables: str | Path
    ) -> subprocess.CompletedProcess[str]:
        """Imports the package in a new process, among other statements; prints the module."""
        code = f"{before}\nfrom powergrad_ext import _native\nprint(_native._C.__file__)\n{after}"
        variables = {"TORCH_EXTENSIONS_DIR": self.cache} | variables
        return run(sys.executable, "-c", code, cwd=self.folder, check=False, **variables)
