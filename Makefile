# What can be done here; `make` alone lists it.
#   PYTHON  the Python that the virtual environment is made with, and that `make gpu` runs
#   VENV    the folder of that environment
#   OUT     the folder for what `make gpu` finds
#   TORCH   what pip installs there if it holds no torch >= 2.11; options for pip may follow
PYTHON = python3
VENV = .venv
TORCH = torch==2.13.0

export PATH := $(abspath $(VENV))/bin:$(PATH)
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml powergrad_ext/_build.py
CXX_FILES = $(shell find $(wildcard csrc tests bench examples) -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.NOTPARALLEL:
.PHONY: help demo test build lint format core-test bench gpu clean

help: ## list what can be done
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F': *' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo ## install, build and train on real data with cross-entropy and with PGT
	python -m examples.digits

test: lint core-test ## install, build and run every check
	python -m pytest

build: $(VENV)/.test ## compile what has changed

lint: $(VENV)/.test ## check style and types
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.test ## put everything into style
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

core-test: build/core build/address build/thread ## test the kernels without torch, plain and under the sanitizers

build/core: OPTIONS = -DPOWERGRAD_CUDA=OFF
build/address build/thread: OPTIONS = -DPOWERGRAD_SANITIZE=$(notdir $@)
.PHONY: build/core build/address build/thread
build/core build/address build/thread: $(VENV)/.test
	cmake -S . -B $@ -G Ninja -DPOWERGRAD_TORCH=OFF $(OPTIONS)
	cmake --build $@
	ctest --test-dir $@ --output-on-failure --parallel 2

bench: $(VENV)/.demo ## compare speed with F.cross_entropy
	python bench/run.py

gpu: ## on a machine with a GPU, installing nothing: build, test, sanitize, benchmark (PART=one)
	$(PYTHON) scripts/gpu.py $(PART)

clean: ## remove all that was built; the virtual environment stays
	rm -rf build dist demo *.egg-info powergrad_ext/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.demo $(VENV)/.test

# The package in the environment, in place, with what a task needs. Compiles what has changed.
$(VENV)/.demo: NEEDS = demo
$(VENV)/.test: NEEDS = demo,lint,test
$(VENV)/.demo $(VENV)/.test: $(VENV)/.torch $(SOURCES)
	@echo 'Installing what is needed and compiling the extension: about a minute or two'
	python -m pip install --quiet --no-build-isolation --editable '.[$(NEEDS)]'
	@touch $@

$(VENV)/.torch: scripts/venv.sh
	@sh scripts/venv.sh '$(VENV)' '$(PYTHON)' '$(TORCH)'
	@touch $@
