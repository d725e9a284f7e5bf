# The one door: what people type is what CI runs. `make` alone prints this list.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults lint format audit clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.demo-ready ## four organisations train one classifier together, here, with a real model (ARGS="--exit --compare-local")
	@$(BIN)/ifed demo $(ARGS)

test: $(VENV)/.dev-ready ## run every test, against SQLite and a real Postgres and a real Redis (ARGS="-k name")
	@$(BIN)/python -m pytest $(ARGS)

test-faults: $(VENV)/.dev-ready ## run the fault tests alone: servers killed and restarted, clients that misbehave
	@$(BIN)/python -m pytest -m faults $(ARGS)

lint: $(VENV)/.dev-ready ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev-ready ## put the code into its format and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

audit: $(VENV)/.audit-ready ## look the pinned dependencies up in a database of vulnerabilities (ARGS="--vulnerability-service osv")
	@$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off $(ARGS)

clean: ## remove the environment, caches and what a demo left here
	@rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "IFed-ICL needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@echo "Making an environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.demo-ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the services into $(VENV); the first time this takes a few minutes …"
	@$(PIP_INSTALL) --editable '.[all]'
	@touch $@

$(VENV)/.audit-ready: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP_INSTALL) --editable '.[audit]'
	@touch $@

$(VENV)/.dev-ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the services and what tests them into $(VENV); the first time this takes a few minutes …"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo-ready
