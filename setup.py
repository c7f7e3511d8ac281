"""Compiles powergrad_ext._C; all that is fixed stands in pyproject.toml."""

import importlib.util
import os
import sys
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent


def load_build_settings():
    """powergrad_ext/_build.py without its package, which needs the module built here."""
    spec = importlib.util.spec_from_file_location("_build", HERE / "powergrad_ext" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Without isolation pip does not look at what pyproject.toml asks for.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        "powergrad_ext is built with setuptools 77.0.3 or later: pip install --upgrade setuptools"
    )
if importlib.util.find_spec("torch") is None:
    sys.exit(
        "powergrad_ext is compiled against the PyTorch that it will run with, and there is none "
        "here. If the environment has torch 2.11 or later, pip's build isolation hides it; else "
        "install it first. Then run  pip install --no-build-isolation ."
    )

build = load_build_settings()
recipe = build.recipe(HERE / "csrc")
if missing := build.missing_tool():
    sys.exit(f"powergrad_ext has to be compiled, which needs {missing}")

# Importing torch's part reads the environment.
os.environ.update(recipe.environment)
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


class BuildIncrementally(BuildExtension):
    """Keeps all object files in one folder, where ninja finds which are up to date."""

    def finalize_options(self):
        self.build_temp = "build/objects"
        super().finalize_options()


class RecordCommit(build_py):
    """Packs with the Python files what commit they are of; files installed in place need not."""

    def run(self):
        super().run()
        if not self.editable_mode:
            build.record_commit(Path(self.build_lib, "powergrad_ext"))


class RecordCommitInSources(sdist):
    """The same, for who builds from a source distribution."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        build.record_commit(Path(base_dir, "powergrad_ext"))


extension_type = CUDAExtension if recipe.with_cuda else CppExtension
extension = extension_type(
    name="powergrad_ext._C",
    sources=[os.path.relpath(source, HERE) for source in recipe.sources],
    include_dirs=[str(recipe.include_folder)],
    extra_compile_args={
        "cxx": [*recipe.cxx_flags, *build.openmp_flags()],
        "nvcc": recipe.nvcc_flags,
    },
)

setuptools.setup(
    ext_modules=[extension],
    cmdclass={
        "build_ext": BuildIncrementally,
        "build_py": RecordCommit,
        "sdist": RecordCommitInSources,
    },
)
