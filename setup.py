"""Builds the libraries of powergrad_ext; all that is fixed stands in pyproject.toml."""

import importlib.util
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
CSRC = HERE / "csrc"
# Without its package, which needs the binding built here.
sys.path.append(str(HERE / "powergrad_ext"))
import _build  # noqa: E402
from _build import commit, tools  # noqa: E402

sys.path.pop()

# Without isolation pip does not look at what pyproject.toml asks for.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        "powergrad_ext is built with setuptools 77.0.3 or later: pip install --upgrade setuptools"
    )


class BuildLibraries(build_ext):
    """Compiles them by ninja, in one folder that keeps all object files; or takes them ready."""

    user_options = [*build_ext.user_options, ("built=", None, "folder of libraries to take")]  # noqa: RUF012

    def initialize_options(self):
        super().initialize_options()
        self.built = None

    def run(self):
        package = HERE if self.inplace or self.editable_mode else Path(self.build_lib)
        output = package / "powergrad_ext" / _build.NATIVE
        if self.built is not None:
            self.copy_tree(self.built, str(output))
            return
        if importlib.util.find_spec("torch") is None:
            sys.exit(
                "powergrad_ext is compiled against the PyTorch that it will run with, and there is "
                "none here. If the environment has torch 2.11 or later, pip's build isolation "
                "hides it; else install it first. Then run  pip install --no-build-isolation ."
            )
        if missing := tools.missing_tool():
            sys.exit(f"powergrad_ext has to be compiled, which needs {missing}")
        libraries = _build.libraries(CSRC, in_place=self.inplace)
        try:
            _build.build(libraries, CSRC, HERE / "build" / "objects", output)
        except _build.ninja.BuildError:
            sys.exit("powergrad_ext could not be compiled: see above")

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class TaggedWheel(bdist_wheel):
    """A wheel of libraries that are built already may be for another Python."""

    user_options = [*bdist_wheel.user_options, ("tag=", None, "python-abi-platform")]  # noqa: RUF012

    def initialize_options(self):
        super().initialize_options()
        self.tag = None

    def get_tag(self):
        return tuple(self.tag.split("-")) if self.tag else super().get_tag()


class BuildPackage(build_py):
    """Packs with the Python files what commit they are of; files installed in place need not.

    It runs first, and clears the folder: all that lies there is packed, of an earlier build too.
    """

    def run(self):
        package = Path(self.build_lib, "powergrad_ext")
        if not self.editable_mode:
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            commit.record_commit(package)


class RecordCommitInSources(sdist):
    """The same, for who builds from a source distribution."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        commit.record_commit(Path(base_dir, "powergrad_ext"))


setuptools.setup(
    # Only tells that there is something compiled.
    ext_modules=[setuptools.Extension("powergrad_ext._C", [])],
    cmdclass={
        "bdist_wheel": TaggedWheel,
        "build_ext": BuildLibraries,
        "build_py": BuildPackage,
        "sdist": RecordCommitInSources,
    },
)
