"""Finds the compiled module powergrad_ext._C, or builds it on first import.

An installed module is taken as it is. From a source tree, or from an installation without a
compiled module, the sources are compiled once into torch's cache of extensions, in a folder named
after torch's version and a hash of everything that decides the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from powergrad_ext import _build

MODULE = "powergrad_ext._C"
OLDEST_TORCH = (2, 11)
PACKAGE = Path(__file__).resolve().parent


def _find() -> ModuleType:
    """The compiled module, with its operators registered.

    Raises:
        ImportError: one sentence that says what is missing and what to do.
    """
    _require_torch()
    import torch

    if MODULE in sys.modules:
        return sys.modules[MODULE]
    # A second registration of the operators would abort the process from inside the linker.
    if hasattr(torch.ops.powergrad, "cross_entropy"):
        raise ImportError(
            "another library in this process has already registered torch.ops.powergrad, which can "
            "be done only once: use that library or powergrad_ext, each in a process of its own"
        )
    # Looked for by its path: by its name, one would be found that belongs to another copy of the
    # package, installed in place.
    for installed in (PACKAGE / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES):
        if installed.exists():
            return _load_installed(installed, torch.__version__)
    return _build_once(_build.source_folder(), torch.__version__)


def _require_torch() -> None:
    needed = "powergrad_ext needs PyTorch {}.{} or later".format(*OLDEST_TORCH)
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{needed}, which is not installed: pip install torch") from None
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise ImportError(f"{needed}, this is {torch.__version__}: pip install --upgrade torch")


def _load_installed(library: Path, torch_version: str) -> ModuleType:
    try:
        return _load(library)
    except ImportError as error:
        if "undefined symbol" not in str(error):
            raise
        raise ImportError(
            f"{library.name} was built for another PyTorch than {torch_version} ({error}): install "
            "powergrad_ext again, with pip install --no-build-isolation --force-reinstall"
        ) from None


def _build_once(csrc: Path, torch_version: str) -> ModuleType:
    """The module from the cache; compiled first if no process has done so yet.

    A finished module appears under its name by one rename, so whoever sees it may load it without a
    lock. Compiling is done under a lock that the system releases when its holder ends, however it
    ends.
    """
    recipe = _build.recipe(csrc)
    folder = _cache_folder() / f"torch-{torch_version}-{_fingerprint(recipe)}"
    library = folder / f"_C{EXTENSION_SUFFIXES[0]}"
    if library.exists():
        return _load(library)
    if missing := _build.missing_tool():
        raise ImportError(f"powergrad_ext has to be compiled, which needs {missing}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "in_use").open("w")
    except OSError as error:
        raise ImportError(
            f"powergrad_ext has to be compiled, but {folder} cannot be written ({error.strerror}): "
            "set TORCH_EXTENSIONS_DIR to a folder that can"
        ) from None
    with lock:
        _wait_for(lock.fileno(), folder)
        if library.exists():
            return _load(library)
        with _build.environment_of(recipe):
            return _compile(recipe, library)


def _compile(recipe: _build.Recipe, library: Path) -> ModuleType:
    _say(
        "compiling its C++ sources, which is done once and takes a minute or two "
        f"(MAX_JOBS=n limits the compilers at work), into {library.parent}"
    )
    from torch.utils import cpp_extension

    folder = library.parent / "build"
    folder.mkdir(exist_ok=True)
    # torch's own lock outlives a build that was killed; ours is held, so no build is running.
    (folder / "lock").unlink(missing_ok=True)
    try:
        built = cpp_extension.load(
            name="powergrad_ext",
            sources=[str(source) for source in recipe.sources],
            # torch names the module after the folder; ours is named as the installed one is.
            extra_cflags=[
                *recipe.cxx_flags,
                *_build.openmp_flags(),
                "-UTORCH_EXTENSION_NAME",
                "-DTORCH_EXTENSION_NAME=_C",
            ],
            extra_cuda_cflags=recipe.nvcc_flags,
            extra_include_paths=[str(recipe.include_folder)],
            build_directory=str(folder),
            with_cuda=recipe.with_cuda,
            is_python_module=False,
        )
    except RuntimeError as error:
        lines = str(error).splitlines()
        errors = [line for line in lines if "error:" in line] or lines
        raise ImportError(
            "\n".join([f"powergrad_ext could not be compiled in {folder}:", *errors])
        ) from None
    module = _load(Path(built))
    os.replace(built, library)
    module.__file__ = str(library)
    shutil.rmtree(folder)
    return module


def _load(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[MODULE] = module
    return module


def _cache_folder() -> Path:
    """powergrad_ext's folder in the place where torch keeps compiled extensions."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache, "torch_extensions", "powergrad_ext")
    return Path(root, "powergrad_ext")


def _fingerprint(recipe: _build.Recipe) -> str:
    """A short hash of all sources, and of the compiler and the flags they are compiled with."""
    import torch

    digest = hashlib.sha256()
    csrc = recipe.include_folder
    for path in sorted(path for path in csrc.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(csrc)}\0".encode() + path.read_bytes() + b"\0")
    flags = [*_build.compiler(), *recipe.cxx_flags, *recipe.nvcc_flags]
    settings = [*flags, str(torch.version.git_version)]
    digest.update("\0".join(settings).encode())
    return digest.hexdigest()[:12]


def _wait_for(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"waiting for another process that is compiling in {folder}")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _say(what: str) -> None:
    print(f"powergrad_ext: {what}", file=sys.stderr, flush=True)


if TYPE_CHECKING:
    from powergrad_ext import _C as _C
else:
    _C = _find()

#: Whether the module was installed; otherwise it was compiled on first import.
INSTALLED = Path(str(_C.__file__)).parent == PACKAGE
