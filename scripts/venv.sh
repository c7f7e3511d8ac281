#!/bin/sh
# Makes the virtual environment that the Makefile works in: sh scripts/venv.sh folder python torch
# Whatever the machine lacks is named first, all of it, before anything is created.
set -eu
folder=$1 python=$2 torch=$3

complete=yes
missing() {
    printf 'powergrad_ext: %s\n' "$1" >&2
    complete=no
}
asks_python() {
    "$python" -c "$1" >/dev/null 2>&1
}

if ! command -v "$python" >/dev/null; then
    missing "$python is not found. Install Python 3.10 or later (on Debian and Ubuntu: apt-get install python3 python3-venv python3-dev), or name one: make PYTHON=/path/to/python3 ..."
elif ! asks_python 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    missing "$python is older than Python 3.10. Install a later one and name it: make PYTHON=/path/to/python3 ..."
else
    asks_python 'import ensurepip, venv' ||
        missing "$python has no venv module. Install it (on Debian and Ubuntu: apt-get install python3-venv)."
    asks_python 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' ||
        missing "$python has no headers to compile against. Install them (on Debian and Ubuntu: apt-get install python3-dev)."
fi
command -v "${CXX:-c++}" >/dev/null ||
    missing "there is no C++ compiler (${CXX:-c++}). Install g++ (on Debian and Ubuntu: apt-get install g++), or name one: make CXX=clang++ ..."
[ "$complete" = yes ] || exit 1

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
python=$folder/bin/python
asks_python 'import torch, re; assert [int(n) for n in re.findall(r"\d+", torch.__version__)[:2]] >= [2, 11]' ||
    # Unquoted: the requirement may be followed by options for pip.
    # shellcheck disable=SC2086
    "$python" -m pip install $torch
# What pyproject.toml needs to build, as torch is used from here and not from an isolated build; torch
# is named since it may not go with the newest setuptools (2.11.0 does not).
"$python" -m pip install --quiet torch 'setuptools>=77.0.3' ninja
