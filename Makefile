# make quickstart | test | smoke | chaos | lint | types | docs | clean
#
# PYTHON=python3.12 uses that interpreter in an environment of its own (.venv-3.12); without it the first of python3.11,
# python3, python3.12 that works is used, in .venv. Stamps in the environment say what is installed already.

ifeq ($(origin PYTHON), undefined)
  VENV ?= .venv
endif
INTERPRETER := $(shell bash .ci/find_python $(PYTHON))
VERSION := $(if $(INTERPRETER),$(shell $(INTERPRETER) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
CONSTRAINTS := $(wildcard constraints/constraints-$(VERSION).txt)
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))

# torch only checks our numbers. Its CPU build is installed alone and first, from a local wheel (PIP_FIND_LINKS) and never
# from an index, which would bring CUDA; where there is no such wheel the parity tests are skipped and say so.
TORCH := $(if $(filter 3.11,$(VERSION)),torch==2.13.0)

WORKERS ?= 2
TESTS ?= tests
PYTEST_ARGS ?=
RUN ?= runs/quickstart

MINUTES ?= 10

.PHONY: quickstart test smoke chaos lint types docs install dev clean python
.DELETE_ON_ERROR:
.NOTPARALLEL:

quickstart: install
	$(BIN)/gramjax train --config=quickstart --workdir=$(RUN) $(ARGS)

test: dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) $(TESTS)

smoke: dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m smoke $(PYTEST_ARGS) $(TESTS)

chaos: dev
	JAX_PLATFORMS=cpu $(BIN)/python tests/faults/chaos.py --minutes $(MINUTES) $(ARGS)

lint: dev
	$(BIN)/ruff check .

types: dev
	$(BIN)/mypy

install: $(VENV)/.installed
dev: $(VENV)/.dev

python:
	@test -n "$(VERSION)" || { echo "no Python 3.11 or newer with venv found ($(PYTHON)): make PYTHON=/path/to/python" >&2; exit 2; }

$(BIN)/python: | python
	$(INTERPRETER) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) -e ".[plot]"
	touch $@

$(VENV)/.torch: $(CONSTRAINTS) | $(BIN)/python
	$(if $(TORCH),@$(PIP) --no-index --no-deps $(TORCH) && $(PIP) $(TORCH) \
	  || echo "no wheel of $(TORCH) at hand: parity tests will be skipped")
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

docs: install
	sed -i.old '/<!-- settings -->/q' docs/configs.md && rm docs/configs.md.old
	echo >> docs/configs.md
	$(BIN)/gramjax configs --settings >> docs/configs.md

clean:
	rm -rf .venv .venv-* build dist *.egg-info .cache .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
