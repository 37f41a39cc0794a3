# Two commands on a fresh machine: `make run` and `make test`. Needs Python 3.11+ with venv, and make.
# `make run` installs what running needs; `make test` adds what tests need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
# What runs models: cpu or gpu.
FLAVOUR ?= cpu
EXTRAS = all,cluster,$(FLAVOUR),dev
# Every plug-in of this repository; the example is for tests and for copying.
PLUGINS := $(filter-out plugins/example/,$(sort $(dir $(wildcard plugins/*/pyproject.toml))))
WORKERS ?= 3
# Services to install and to start, with commas between; empty means all.
SERVICES ?=
# Index (URL, or a folder of wheels) of torch's CPU builds, used where no NVIDIA device is found; `none`: PyPI.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
comma := ,
RUNNABLE := $(VENV)/.runnable-$(if $(SERVICES),$(subst $(comma),-,$(SERVICES)),all)
# Seconds for each decoder: with 24 of them ten minutes in all; 600 is ten minutes each.
FUZZ_S ?= 25
SHELL  := /bin/bash
# A run of tests starts hundreds of processes: without kept bytecode each compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check test-all lint format setup bench gpu scale chaos rehearse fuzz weight leaks mutants gallery images release generate clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

run: $(RUNNABLE)  ## start everything, one real request to each service, serve until Ctrl-C (ONCE=1: stop after the requests; SERVICES=medical-seg,detection)
	@$(if $(SERVICES),FOVEA_ENABLED_SERVICES=$(SERVICES)) $(BIN)/fovea up $(if $(ONCE),--once)

test: setup  ## the whole suite, on three workers: half of their time they wait (WORKERS=0: in one process; ARGS=--durations=20: the slowest tests)
	@$(BIN)/python -m tests.browser
	@MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not release" $(ARGS)

check: setup  ## the quick suite: without slow tests and those that start the product
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not e2e and not browser and not release" $(ARGS)

test-all: setup  ## before a release: also what needs other programs or long runs, and fuzzing; writes docs/test-report.md
	@$(BIN)/python -m tests.browser
	@rm -rf build/tests; failed=0; \
	  MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "" --hypothesis-profile=deep \
	    --phases=build/tests/all.phases $(ARGS) || failed=1; \
	  $(BIN)/python -m tests.fuzz $(FUZZ_S) --out build/tests/fuzz.jsonl || failed=1; \
	  $(BIN)/python -m tests.report build/tests/all.phases --fuzz build/tests/fuzz.jsonl || failed=1; \
	  exit $$failed

lint: setup  ## ruff, mypy strict, import rules, names, circles, lines per package, devices of tensors, drift, sparsity claims
	@$(BIN)/python -m tests.lint

format: setup  ## format and fix what ruff can
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

setup: $(STAMP) $(KERNELS)  ## .venv with everything that running and testing need

REQUIREMENTS := pyproject.toml fovea/pyproject.toml $(PLUGINS:%=%pyproject.toml) constraints.txt requirements-data.txt deploy/install.py
INSTALL = $(BIN)/python deploy/install.py --torch-index "$(TORCH_INDEX)" --flavour $(FLAVOUR)

$(RUNNABLE): $(REQUIREMENTS) | $(BIN)/python
	@$(INSTALL) --services "$(SERVICES)"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Fovea needs Python 3.11 or newer; $$($(PYTHON) --version) is here. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing. Try: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) …"

$(STAMP): $(REQUIREMENTS) requirements-tools.txt | $(BIN)/python
	@$(INSTALL) --test
	@touch $@

# C++ attention kernels, where a compiler is there; without one nothing is missing but speed.
$(KERNELS): $(STAMP) $(wildcard services/llm_longctx/kernels/*/*.cpp services/llm_longctx/kernels/*/*.h)
	@$(BIN)/fovea build-kernels && touch $@

bench: setup  ## ratios against the baselines, as JSON and a table in docs/benchmarks.md
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),bench]'
	@$(BIN)/python -m loadtests.bench $(ARGS)

gpu: FLAVOUR := gpu
gpu: setup  ## the first ten minutes of a card: suites marked gpu, kernels, decode and vision; a report in docs/gpu-reports
	@if $(BIN)/python -m pip show --quiet onnxruntime 2>/dev/null; then \
	  $(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu; fi  # both own the same files
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/python -m loadtests.gpu $(ARGS)

scale: setup  ## measure unit costs and a cluster, and simulate 1 to 2,000 replicas and three days (ARGS="grid days": parts)
	@$(BIN)/python -m loadtests.simulation $(ARGS)

chaos: setup  ## kill -9 of workers, replicas and Redis under load
	@$(BIN)/python -m loadtests.chaos $(ARGS)

rehearse: setup  ## ten minutes of production traffic with restarts and a kill, held against SLOs (ARGS="--minutes 1")
	@$(BIN)/python -m loadtests.rehearsal $(ARGS)

fuzz: setup  ## fuzz each decoder of bytes from outside for a minute (ARGS=600 for ten)
	@$(BIN)/python -m tests.fuzz $(ARGS)

weight: setup  ## seconds until each service answers, then memory and processor of each idle process (ARGS="--services detection")
	@$(BIN)/python -m loadtests.weight $(ARGS)

leaks: setup  ## memory of each process over ten minutes of mixed load and broken requests (ARGS="--services detection")
	@$(BIN)/python -m loadtests.leaks $(ARGS)

mutants: setup  ## mutation testing of ten core modules, into docs/mutation.md (ARGS=scheduler for one)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),mutants]'
	@$(BIN)/python -m tests.mutation $(ARGS)

gallery: setup  ## the pictures of docs/gallery.md again, by its own commands (`make run` beside it)
	@$(BIN)/python -m loadtests.gallery

release: setup  ## wheels, source archives, chart, images, SBOM, checksums and provenance of this version, in out/release (ARGS=--tag)
	@$(BIN)/python deploy/release.py $(ARGS)

images: setup  ## build one service's image with buildah and run it (BASE=… names a local base image)
	@deploy/images.sh $(ARGS)

generate: setup  ## everything that is generated and committed: gRPC stubs, model pages, values schema
	@$(BIN)/python -m tests.drift --write

clean:  ## remove what setup and runs leave behind
	@rm -rf $(VENV) .fovea out {,fovea/,weights/*/,plugins/*/}{build,*.egg-info}
