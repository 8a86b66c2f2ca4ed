# make quickstart | test | lint | types | clean
#
# PYTHON=python3.12 uses that interpreter in an environment of its own (.venv-3.12); without it the first of python3.11,
# python3, python3.12 that works is used, in .venv. Nothing is installed twice: stamps in the environment say what is there.

works = $(shell $(1) -c 'import sys, ensurepip, venv; print("%d.%d" % sys.version_info[:2]) if sys.version_info >= (3, 11) else None' 2>/dev/null)
ifeq ($(origin PYTHON), undefined)
  PYTHON := $(or $(if $(call works,python3.11),python3.11),$(if $(call works,python3),python3),$(if $(call works,python3.12),python3.12))
  VENV ?= .venv
endif
VERSION := $(if $(PYTHON),$(call works,$(PYTHON)))
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
CONSTRAINTS := $(wildcard constraints/constraints-$(VERSION).txt)
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))

# torch only checks our numbers. It is installed alone and first, as its CPU build, where this interpreter has one; without
# it the parity tests are skipped and say so. Never let another package choose the build.
TORCH := $(if $(filter 3.11,$(VERSION)),torch==2.13.0)

WORKERS ?= 2
TESTS ?= tests
PYTEST_ARGS ?=
RUN ?= runs/quickstart

.PHONY: quickstart test smoke lint types install dev clean python
.DELETE_ON_ERROR:

quickstart: install
	$(BIN)/gramjax train --config=quickstart --workdir=$(RUN) $(ARGS)

test: dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS) $(TESTS)

smoke: dev
	$(BIN)/python -m pytest -m smoke $(PYTEST_ARGS) $(TESTS)

lint: dev
	$(BIN)/ruff check .

types: dev
	$(BIN)/mypy

install: $(VENV)/.installed
dev: $(VENV)/.dev

python:
	@test -n "$(VERSION)" || { echo "gramjax needs Python 3.11 or newer with venv; give one: make PYTHON=python3.12" >&2; exit 2; }

$(BIN)/python: | python
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) -e ".[plot]"
	touch $@

$(VENV)/.torch: $(CONSTRAINTS) | $(BIN)/python
	$(if $(TORCH),$(PIP) --only-binary :all: $(TORCH) || echo "no CPU build of $(TORCH) here: parity tests will be skipped")
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info .cache .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
