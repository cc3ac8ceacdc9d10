# Everything from a fresh clone: `make demo`, `make test`. Needs python3 with venv, g++ or clang++, and make.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
# ARGS: additional arguments of the program that demo, test, bench or gpu runs
# STEPS: those of gpu, by default all: STEPS=test,bench

py     := $(VENV)/bin/python
# One stamp for the tools and torch (another TORCH is another stamp), one for each set of extras.
tools  := $(VENV)/.stamp-$(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.' -)
extras  = $(VENV)/.stamp-extra-$(1)
weights := build/weights/realesr-animevideov3-x4.bin
clients := build/clients/venv/bin/python
# A process of pytest for each core; who is done takes tests from the others. ARGS="-n 0" runs all in one.
workers := -n auto --dist worksteal
cuda_library := $(wildcard fused_subpixel/fused_subpixel_cuda.so)

.DEFAULT_GOAL := help
.PHONY: help venv build compile demo test test-full test-clients test-aarch64 mutants mutants-smoke lint lint-workflows format docs docs-links \
        bench bench-clients bench-networks gpu wheel release hub-kernel clean
.NOTPARALLEL: # pip must not run twice at once; ninja uses all cores anyway

# pip would compile every file of torch to bytecode, half a minute. Python compiles what it imports, and keeps it.
pip := $(py) -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 23

venv: $(tools)  ## make .venv with torch and the build tools

$(tools):
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python 3.10 or newer (apt install python3), or say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is too old: Python 3.10 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: install it (apt install python3-venv)"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || command -v clang++ >/dev/null || { echo "No C++ compiler: install g++ (apt install g++) or clang++"; exit 1; }
	test -x $(py) || $(PYTHON) -m venv $(VENV)
	$(pip) "$(TORCH)" "setuptools>=77" "ninja>=1.11" "pybind11>=2.12"
	rm -f $(VENV)/.stamp-*
	touch $@

# The install is editable: Python files count as they are, C++ files after the next `build`.
$(VENV)/.stamp-extra-%: $(tools) pyproject.toml
	$(pip) --no-build-isolation --editable "$(if $(filter none,$*),.,.[$*])"
	touch $@

build: compile $(call extras,none)  ## compile what has changed

# Before the extras: pip compiles too, but shows no progress. Where there is no nvcc, it is fetched first.
compile: $(tools)
	$(py) setup.py --quiet fetch_cuda_toolkit build_ext --inplace

demo: compile $(call extras,examples) $(weights)  ## upscale a photograph: examples/upscale.py
	$(py) examples/upscale.py $(ARGS)

$(weights):
	$(py) examples/fetch_weights.py

# The modules of the tests are compiled with the libraries. A CUDA library is built where there is one already, or
# where FUSED_SUBPIXEL_CUDA asks for it; test-full builds it, for the architectures whose machine code it reads.
test test-full: export FUSED_SUBPIXEL_BUILD_TESTS := 1
test mutants mutants-smoke: export FUSED_SUBPIXEL_CUDA ?= $(if $(cuda_library),auto,0)
test-full: export FUSED_SUBPIXEL_CUDA_ARCHS ?= $(if $(cuda_library),,80;90a)

# Threads of a process that spin while they wait keep the other processes from computing.
test test-full test-clients: export OMP_WAIT_POLICY ?= PASSIVE

test: compile $(call extras,test)  ## pytest: the fast tests, which catch every mutant
	$(py) -m pytest $(workers) $(ARGS)

test-full: compile $(call extras,test) $(weights)  ## pytest: the tests that `test` leaves out
	$(py) -m pytest $(workers) -m full $(ARGS)

mutants: compile $(call extras,test)  ## make mistakes in copies of the sources, which `test` must notice
	$(py) tools/mutants.py $(ARGS)

mutants-smoke: compile $(call extras,test)  ## a few of these, of Python, in a minute
	$(py) tools/mutants.py --smoke $(ARGS)

# In an environment of their own, on top of .venv.
test-clients: compile $(clients) $(weights)  ## pytest on models of other packages, downloaded first
	$(py) tools/hub_kernel.py
	$(clients) -m pytest $(workers) tests/clients $(ARGS)

.PHONY: $(clients) # looks each time whether something is still missing
$(clients): $(call extras,test)
	$(py) tests/clients/install.py

lint: $(call extras,dev)  ## ruff, mypy, clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -r $(VENV)/bin/clang-format --dry-run -Werror

lint-workflows: $(call extras,workflows)  ## actionlint, zizmor
	$(VENV)/bin/actionlint
	$(VENV)/bin/zizmor --offline --no-progress --quiet .github

format: $(call extras,dev)  ## let ruff and clang-format rewrite
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files -co --exclude-standard '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -r $(VENV)/bin/clang-format -i

docs: compile $(call extras,docs)  ## the documentation as a site: build/docs/index.html
	$(py) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "written: build/docs/index.html"

docs-links: compile $(call extras,docs)  ## follow the external links of the documentation (needs a network)
	$(py) -m sphinx -q -b linkcheck docs build/docs-links

bench: compile $(call extras,bench)  ## measure against PyTorch
	$(py) -m bench.run --peers all $(ARGS)
	$(if $(findstring --only,$(ARGS)),,$(py) -m bench.run --growth $(ARGS))

bench-clients: compile $(clients)  ## measure models of other packages, before and after
	$(clients) -m bench.clients $(ARGS)

bench-networks: compile $(clients) $(weights)  ## measure whole networks: as they are, accelerated, by other programs
	$(clients) -m bench.networks $(ARGS)

# Installs nothing. PYTHON if it is given, else .venv's, else python3: one with a CUDA build of torch.
gpu:  ## build, test, sanitize and measure on a CUDA GPU
	@$(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(py)) $(PYTHON)),$(PYTHON)) tools/gpu.py --steps "$(STEPS)" $(ARGS)

test-aarch64: compile  ## the fast tests of tests/kernels on aarch64, under qemu
	$(py) -m tools.aarch64 -n auto --dist worksteal $(ARGS)

release: compile $(call extras,release)  ## what a release consists of, checked and tried: dist/
	$(py) -m tools.release --torch "$(TORCH)" $(ARGS)

wheel: compile  ## dist/*.whl, for any Python and torch it supports
	$(py) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

hub-kernel: compile  ## build/hub: a kernel for the Hugging Face Hub
	$(py) tools/hub_kernel.py $(ARGS)

clean:  ## remove all that was built; .venv and downloads stay
	rm -rf build/demo build/hub build/mutants build/ninja build/tests build/lib* build/bdist* build/__editable__* build/ninja-* build/release dist *.egg-info fused_subpixel/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
