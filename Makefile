# What can be done here; `make` alone lists it.
#   PYTHON  the Python that the virtual environment is made with, and that `make gpu` runs
#   VENV    the folder of that environment
#   OUT     the folder for what `make gpu` finds
#   TORCH   what pip installs there if it holds no torch >= 2.11; options for pip may follow
#   TESTS   which tests test-torch and test-installed run, and other options for pytest
#   WHEEL   the wheel that test-wheel and test-installed test
#   EXTRAS  what test-installed installs beside it, such as docs,evidence,frameworks,test
#   RUN     what each measurement of bench-results is started with, such as taskset or numactl
PYTHON = python3
VENV = .venv
TORCH = torch==2.13.0
TESTS =
DIST = dist
EXTRAS = test
RUN =
RESULTS = bench/results/cpu-emerald-rapids

export PATH := $(abspath $(VENV))/bin:$(PATH)
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml powergrad_ext/_build/*.py
CXX_FILES = $(shell find $(wildcard csrc tests bench examples) -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.NOTPARALLEL:
.PHONY: help demo check test test-all test-rest test-wheel docs pytest test-torch build lint format core-test
.PHONY: bench bench-results gpu clean wheel wheels test-installed

help: ## list what can be done
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /:/' | awk '{ name = $$0; sub(/:.*/, "", name); sub(/^[^:]*:/, ""); printf "  make %-14s %s\n", name, $$0 }'

demo: $(VENV)/.demo ## install, build and train on real data with cross-entropy and with PGT
	python -m examples.digits

# Three levels. Each test runs in a worker with one torch thread.
check: lint build/core ## after a change: style, types, kernels, semantics; at most 3 minutes once built
	$(PYTEST) --level check $(CHECKED)

test: lint build/core docs ## every change: install, build, and test all behaviour; about 15 minutes
	$(PYTEST)

test-all: test test-rest ## before a release: all of that, and what takes long

test-rest: build/address build/thread test-wheel ## sanitizers, builds, other instruction sets and torch
	$(PYTEST) --level rest --dist loadfile
	$(MAKE) --no-print-directory test-torch TORCH='$(VISION_TORCH)' VISION=yes TESTS='$(VISION_TESTS)'

# Of the libraries that the tree has; WHEEL=... names another wheel of this Python and torch.
OF_TREE = --built=powergrad_ext/native bdist_wheel --skip-build --dist-dir=build/wheel
test-wheel: $(VENV)/.frameworks ## pack a wheel, and test what it installs where nothing can be compiled
	$(if $(WHEEL),,rm -rf build/wheel && python setup.py --quiet build --build-base=build/wheel build_ext $(OF_TREE))
	WHEEL="$(or $(WHEEL),$$(echo build/wheel/*.whl))" $(PYTEST) --dist loadfile tests/wheels

WORKERS = 2
REQUIRED = accelerate lightning peft transformers trl
PYTEST = OMP_NUM_THREADS=1 REQUIRED_FRAMEWORKS='$(REQUIRED)' \
    python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal
CHECKED = tests/semantics tests/accuracy/test_sizes.py tests/accuracy/test_special_values.py \
    $(addprefix tests/framework/,test_operator_registration.py test_modules.py test_distributed.py \
    test_functorch.py test_compile.py::test_model_and_both_modules)

docs: $(VENV)/.frameworks ## build the documentation, strictly, into build/docs
	sphinx-build -W --keep-going --quiet --builder html docs build/docs

pytest: REQUIRED = $(if $(VISION),fastai timm torchtitan torchvision)
pytest: $(VENV)/.test $(if $(VISION),$(VENV)/.vision)
	$(PYTEST) $(TESTS)

# A second environment: torchvision, and so timm, does not import beside the CPU build of torch. This
# build is for CUDA, of which the tests here need nothing.
VISION_TORCH = torch==2.14.1 torchvision==0.29.1
# Only what the first environment leaves out, and that the binding for this torch works.
VISION_TESTS = $(patsubst %,tests/integrations/test_%.py,fastai timm torchtitan) tests/examples/test_imagenet.py \
    $(patsubst %,tests/docs/test_guides.py::test_a_guide[%],fastai_learner timm_losses torchtitan_loss) \
    tests/semantics/test_like_torch.py tests/semantics/test_shapes.py

# A copy, since a tree holds one compiled module, which is kept; what is gone here is gone there.
TREE = build/trees/$(subst ==,-,$(firstword $(TORCH)))
test-torch: ## run the tests with another torch, in a copy with an environment of its own (TORCH=...)
	@mkdir -p $(TREE)
	@rm -rf $(addprefix $(TREE)/,bench csrc docs examples tests)
	@git ls-files -z --cached --others --exclude-standard | \
	    xargs -0 cp --parents --update --preserve=timestamps --target-directory=$(TREE)
	@test -e $(TREE)/build/objects || ! test -e build/objects || cp -a --parents build/objects $(TREE)
	$(if $(VISION),POWERGRAD_CUDA=OFF) $(MAKE) --no-print-directory -C $(TREE) \
	    TORCH='$(TORCH)' TESTS='$(TESTS)' VISION='$(VISION)' pytest

build: $(VENV)/.test ## compile what has changed

lint: $(VENV)/.frameworks ## check style and types
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.test ## put everything into style
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

core-test: build/core build/address build/thread ## test the kernels without torch, plain and under the sanitizers

# The kernels that the package has: they are compiled once.
build/core: OPTIONS = -DPOWERGRAD_CUDA=OFF -DPOWERGRAD_OBJECTS=$(abspath build/objects)
build/address build/thread: OPTIONS = -DPOWERGRAD_SANITIZE=$(notdir $@)
.PHONY: build/core build/address build/thread
build/core build/address build/thread: $(VENV)/.test
	cmake -S . -B $@ -G Ninja -DPOWERGRAD_TORCH=OFF $(OPTIONS)
	cmake --build $@
	ctest --test-dir $@ --output-on-failure --parallel 2

bench: $(VENV)/.bench ## measure speed against PyTorch, its compiler and JAX
	python bench/run.py --peer eager compile jax

bench-results: $(VENV)/.bench ## measure all figures anew and write them into bench/results and the README
	$(RUN) python bench/run.py $(COMPILERS) --full --dtype float32 --output $(RESULTS)/float32.jsonl
	$(RUN) python bench/run.py $(COMPILERS) --full --dtype bfloat16 --output $(RESULTS)/bfloat16.jsonl
	$(RUN) python bench/run.py $(KEPT) --dtype float32 --output $(RESULTS)/float32-kept.jsonl
	$(RUN) python bench/run.py $(KEPT) --dtype bfloat16 --output $(RESULTS)/bfloat16-kept.jsonl
	$(RUN) python bench/linear.py --case gpt2 --dtype float32 --output $(RESULTS)/linear-float32.jsonl
	$(RUN) python bench/linear.py $(IN_HALF) --output $(RESULTS)/linear-bfloat16.jsonl
	$(RUN) python bench/run.py --case llama2 --dtype float32 --mode $(ALL_MODES) --output $(RESULTS)/modes.jsonl
	$(RUN) python bench/run.py --memory $(MEMORY) --output $(RESULTS)/memory.jsonl
	$(RUN) python bench/overhead.py --output $(RESULTS)/overhead.jsonl
	$(RUN) python bench/sweep.py --output $(RESULTS)/sweep.jsonl
	python bench/readme.py

COMPILERS = --peer eager compile jax
KEPT = $(COMPILERS) --allocator glibc-kept --full --mode forward+backward
IN_HALF = --case gpt2 --dtype bfloat16 --peer eager compile chunked
ALL_MODES = forward backward forward+backward in-place none probabilities log-softmax
MEMORY = --case llama2 --dtype float32 --mode forward forward+backward in-place --alpha 0.3

wheel: $(VENV)/.test ## make the wheel for this Python and this torch, into dist
	python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir $(DIST) .

wheels: $(VENV)/.wheels ## make the wheels for all Pythons and all torches, into dist, and test them all
	python scripts/wheels.py --test

# A copy without the package, so that what is tested is what the wheel installed.
INSTALLED = build/installed/$(notdir $(PYTHON))-$(subst ~=,-,$(subst ==,-,$(firstword $(TORCH))))
test-installed: ## install WHEEL in a new environment and test it (PYTHON=... TORCH=... TESTS=...)
	@rm -rf $(addprefix $(INSTALLED)/,bench docs examples scripts tests) && mkdir -p $(INSTALLED)
	@git ls-files -z --cached --others --exclude-standard ':!powergrad_ext' ':!csrc' | \
	    xargs -0 cp --parents --target-directory=$(INSTALLED)
	@sh scripts/venv.sh $(INSTALLED)/.venv '$(PYTHON)' '$(TORCH)'
	$(INSTALLED)/.venv/bin/python -m pip install --quiet '$(abspath $(WHEEL))[$(EXTRAS)]'
	$(INSTALLED)/.venv/bin/python -m pip install --quiet --no-deps --force-reinstall $(abspath $(WHEEL))
	cd $(INSTALLED) && WHEEL=$(abspath $(WHEEL)) OMP_NUM_THREADS=1 .venv/bin/python -m pytest --quiet $(or $(TESTS),tests/wheels)

gpu: ## on a machine with a GPU, installing nothing: build, test, sanitize, benchmark (PART=one)
	$(PYTHON) scripts/gpu.py $(PART)

clean: ## remove all that was built; the virtual environment stays
	rm -rf build dist demo *.egg-info powergrad_ext/native .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.bench $(VENV)/.demo $(VENV)/.test $(VENV)/.frameworks $(VENV)/.vision

# The package in the environment, in place, with what a task needs. Compiles what has changed.
$(VENV)/.bench: NEEDS = bench
$(VENV)/.demo: NEEDS = demo
$(VENV)/.test: NEEDS = docs,evidence,lint,test
$(VENV)/.bench $(VENV)/.demo $(VENV)/.test: $(VENV)/.torch $(SOURCES)
	@echo 'Installing what is needed and compiling the extension: about a minute or two'
	python -m pip install --quiet --no-build-isolation --editable '.[$(NEEDS)]'
	@touch $@

# Frameworks for the tests of the integrations, beside the torch that is there.
$(VENV)/.frameworks: NEEDS = frameworks
$(VENV)/.vision: NEEDS = vision
$(VENV)/.wheels: NEEDS = wheels
$(VENV)/.frameworks $(VENV)/.vision $(VENV)/.wheels: $(VENV)/.test pyproject.toml
	python -m pip install --quiet --no-build-isolation --editable '.[$(NEEDS)]' $(TORCH)
	@touch $@

$(VENV)/.torch: scripts/venv.sh
	@sh scripts/venv.sh '$(VENV)' '$(PYTHON)' '$(TORCH)'
	@touch $@
