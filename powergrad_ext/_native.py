"""Finds the compiled module powergrad_ext._C, or builds it on first import.

The folder `native` of an installed package has the kernels and, for each minor version of torch
known when it was built, a module that opens them, the binding. For another torch only a binding is
compiled; from a source tree without that folder, everything. Compiled files are kept in torch's
cache of extensions, in a folder named after torch's version and a hash of everything that decides
the result.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from powergrad_ext import _build
from powergrad_ext._build import elf, ninja, tools

MODULE = "powergrad_ext._C"
OLDEST_TORCH = (2, 11)
PACKAGE = Path(__file__).resolve().parent
NATIVE = PACKAGE / _build.NATIVE


def _find() -> ModuleType:
    """The compiled module, with its operators registered.

    Raises:
        ImportError: one sentence that says what is missing and what to do.
    """
    _require_torch()
    import torch

    if MODULE in sys.modules:
        return sys.modules[MODULE]
    # Registering the operators twice would abort the process while the library is loaded.
    if hasattr(torch.ops.powergrad, "cross_entropy"):
        raise ImportError(
            "another library in this process has already registered torch.ops.powergrad, which can "
            "be done only once: use that library or powergrad_ext, each in a process of its own"
        )
    # By its path: a search by name could find that of another copy of the package, installed in
    # place.
    installed = NATIVE / _build.binding_name(
        _build.minor_version(torch.__version__), _build.running_python().suffix
    )
    if installed.exists():
        return _load(installed, torch.__version__)
    csrc = _build.source_folder()
    if not csrc.is_dir():  # as in a kernel of the Hugging Face hub
        raise ImportError(
            f"{PACKAGE} has no {installed.name}, and no sources to compile it from: "
            "pip install powergrad_ext"
        )
    return _load(_built_once(csrc, torch.__version__), torch.__version__)


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


def _load(binding: Path, torch_version: str) -> ModuleType:
    """The binding as a module, once the files that it opens are checked.

    Raises:
        ImportError: one of them is missing, incomplete or of another build.
    """
    folder = binding.parent
    optional = [path] if (path := folder / _build.CUDA_LIBRARY).exists() else []
    for library in (binding, folder / _build.CPU_LIBRARY, *optional):
        if (fault := elf.fault(library)) is not None:
            raise ImportError(f"{library} {fault}: {_again(library)}")
    # The linker writes a library's name into it. Not every two torches differ in their symbols.
    if f"\0{binding.name}\0".encode() not in binding.read_bytes():
        raise ImportError(
            f"{binding.name} was built for another PyTorch than {torch_version} or another Python, "
            f"and renamed: {_again(binding)}"
        )
    spec = importlib.util.spec_from_file_location(MODULE, binding)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        if "undefined symbol" not in str(error):
            raise
        raise ImportError(
            f"{binding.name} was built for another PyTorch than {torch_version} ({error}): "
            f"{_again(binding)}"
        ) from None
    sys.modules[MODULE] = module
    return module


def _again(library: Path) -> str:
    if library.parent == NATIVE:
        return "install powergrad_ext again, with pip install --force-reinstall --no-deps"
    return f"remove {library.parent}, and it will be compiled again"


def _built_once(csrc: Path, torch_version: str) -> Path:
    """The binding in the cache; compiled first if no process has done so yet.

    A finished binding is renamed into place after everything it needs, so a process that finds it
    may load it without a lock. Compiling takes a lock, which the system releases when its holder
    ends, in any way.
    """
    torch, python = _build.installed_torch(), _build.running_python()
    # The kernels of an installed package serve any torch.
    kernels = NATIVE if csrc.parent == PACKAGE and NATIVE.is_dir() else None
    folder = _cache_folder() / f"torch-{torch_version}-{_fingerprint(csrc, kernels)}"
    binding = folder / _build.binding_name(torch.minor, python.suffix)
    if binding.exists():
        return binding
    need = _need(kernels, torch.minor)
    if missing := tools.missing_tool():
        raise ImportError(f"{need}, which needs {missing}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "in_use").open("w")
    except OSError as error:
        raise ImportError(
            f"{need}, but {folder} cannot be written ({error.strerror}): "
            "set TORCH_EXTENSIONS_DIR to a folder that can"
        ) from None
    with lock:
        _wait_for(lock.fileno(), folder)
        if not binding.exists():
            _say(
                f"{need}, which is done once and takes a minute or two (MAX_JOBS=n limits the "
                f"compilers at work), in {folder}"
            )
            _compile(csrc, folder, kernels)
    return binding


def _need(kernels: Path | None, torch_minor: str) -> str:
    """Why there is something to compile."""
    if kernels is None:
        return "powergrad_ext has to be compiled"
    there = {match[1] for path in kernels.iterdir() if (match := _build.BINDING.match(path.name))}
    versions = ", ".join(sorted(there)) or "none"
    return (
        f"powergrad_ext was installed with bindings for torch {versions}; "
        f"that for torch {torch_minor} has to be compiled"
    )


def _compile(csrc: Path, folder: Path, kernels: Path | None) -> None:
    if kernels is None:
        libraries = _build.libraries(csrc, in_place=False)
    else:
        torch, python = _build.installed_torch(), _build.running_python()
        libraries = [_build.binding(csrc, torch, python)]
    scratch = folder / "build"
    try:
        _build.build(libraries, csrc, scratch, scratch / "made", quiet=True)
    except ninja.BuildError as error:
        lines = str(error).splitlines()
        errors = [line for line in lines if "error:" in line] or lines
        raise ImportError(
            "\n".join([f"powergrad_ext could not be compiled in {scratch}:", *errors])
        ) from None
    if kernels is not None:
        for library in (_build.CPU_LIBRARY, _build.CUDA_LIBRARY):
            (folder / library).unlink(missing_ok=True)
            (folder / library).symlink_to(kernels / library)
    for made in sorted((scratch / "made").iterdir(), key=lambda path: path.name.startswith("_C")):
        os.replace(made, folder / made.name)
    shutil.rmtree(scratch)


def _cache_folder() -> Path:
    """powergrad_ext's folder in the place where torch keeps compiled extensions."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache, "torch_extensions", "powergrad_ext")
    return Path(root, "powergrad_ext")


def _fingerprint(csrc: Path, kernels: Path | None) -> str:
    """A short hash of all sources and of how they are compiled, wherever they lie."""
    import torch

    settings = [
        _build.hash_of_files(csrc),
        _build.hash_of_files(PACKAGE / "_build"),
        *tools.compiler(),
        str(torch.version.git_version),
        str(kernels),
        str(_build.wanted_toolkit()),
        os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
    ]
    return hashlib.sha256("\0".join(settings).encode()).hexdigest()[:12]


def _wait_for(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say(f"powergrad_ext waits for another process that is compiling in {folder}")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if TYPE_CHECKING:
    from powergrad_ext import _C as _C
else:
    _C = _find()

#: Whether the module was installed; otherwise it was compiled on first import.
INSTALLED = Path(str(_C.__file__)).parent == NATIVE
