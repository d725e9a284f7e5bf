# The one door: what people type is what CI runs. `make` alone prints this list.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# A process for each core. A file stays in one of them, so that what its tests share is made once; the slow end-to-end tests come first.
PACKAGES := ifed/messages ifed/tensors ifed/server ifed/clients ifed/cli ifed/modeling services/aggregator services/client_agent services/inference ifed services
PARALLEL ?= --numprocesses auto --dist loadfile --no-loadscope-reorder
SECRETS ?= secrets
COMPOSE ?= docker compose
AS_IFED := sh -c 'export PGHOST=127.0.0.1 PGUSER=ifed PGDATABASE=ifed PGPASSWORD="$$(cat /run/secrets/postgres-password)"; exec "$$@"' sh
TABLES := SELECT count(*) FROM pg_tables WHERE schemaname = 'public'
# `up --wait` takes an agent that ends with its task for one that failed.
STAYING := grep -qs '^STAY=' .env || export STAY="$${STAY:-true}";
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Without compiled modules each process of a test run compiles a thousand of them again, half a minute on two cores.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-faults test-benchmarks test-compose lint format docs task-reference coverage audit clean secrets up down logs ps backup restore enroll

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(VENV)/.demo-ready ## four organisations train one classifier together, here, with a real model (ARGS="--exit --compare-local")
	@$(BIN)/ifed demo $(ARGS)

test: $(VENV)/.dev-ready ## run every test, against SQLite and a real Postgres and a real Redis (ARGS="-k name")
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: $(VENV)/.dev-ready ## run the tests that need no server and no real model, in under a minute
	@$(BIN)/python -m pytest $(PARALLEL) -p no:schemathesis -m 'not model and not slow' --hypothesis-profile fast tests/unit tests/house $(ARGS)

test-benchmarks: $(VENV)/.dev-ready ## run the benchmarks' own tests
	@$(BIN)/python -m pytest $(PARALLEL) benchmarks/tests $(ARGS)

coverage: $(VENV)/.dev-ready ## run every test and print the branch coverage of each package
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest $(ARGS)
	@for package in $(PACKAGES); do printf '%-40s %s %%\n' "$$package" "$$($(BIN)/python -m coverage report --include="$$package/*" --precision=1 --format=total)"; done

test-faults: $(VENV)/.dev-ready ## run the fault tests alone: servers killed and restarted, clients that misbehave
	@$(BIN)/python -m pytest -m faults $(ARGS)

test-compose: $(VENV)/.dev-ready ## start docker-compose.yml from nothing, use it and break it, with the Docker Engine that `docker` reaches
	@$(BIN)/python -m pytest -m compose tests/compose $(ARGS)

lint: $(VENV)/.dev-ready ## check style, format, who imports what, and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

format: $(VENV)/.dev-ready ## put the code into its format and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.dev-ready ## build the documentation as a site with search, in site/
	@$(BIN)/mkdocs build --strict --quiet && echo 'site/index.html is the first page'

task-reference: $(VENV)/.dev-ready ## write docs/ref-task.md from the code, after a field of a task has changed
	@$(BIN)/python -m tests.house.task_reference

audit: $(VENV)/.audit-ready ## look the pinned dependencies up in a database of vulnerabilities (ARGS="--vulnerability-service osv")
	@$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off $(ARGS)

secrets: ## make the secret files that are missing, random, in a folder that only you can enter
	@install -d -m 700 '$(SECRETS)' && install -d '$(SECRETS)/tls'
	@for name in admin-token postgres-password redis-password grafana-password; do \
	  [ -s "$(SECRETS)/$$name" ] && continue; \
	  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$(SECRETS)/$$name" && chmod 444 "$(SECRETS)/$$name" && echo "made $(SECRETS)/$$name"; \
	done

up: secrets ## build and start the services of docker-compose.yml (COMPOSE_PROFILES=demo,monitoring,gpu for more)
	@$(STAYING) $(COMPOSE) up --build --detach --wait $(ARGS)

down: ## stop the services and remove their containers; volumes stay (ARGS=--volumes removes them)
	@$(COMPOSE) --profile '*' down $(ARGS)

logs: ## follow the services' logs (ARGS="aggregator inference" for some)
	@$(COMPOSE) --profile '*' logs --follow --tail 100 $(ARGS) || [ $$? -eq 130 ]

ps: ## list the services' containers and their health
	@$(COMPOSE) --profile '*' ps --all $(ARGS)

backup: FILE := backups/$(shell date -u +%Y%m%dT%H%M%SZ).dump
backup: ## write Postgres' data to a file, while everything runs (FILE=backups/….dump)
	@umask 077; mkdir -p "$(dir $(FILE))" && $(COMPOSE) exec -T postgres $(AS_IFED) pg_dump --format custom > '$(FILE).part' || { rm -f '$(FILE).part'; exit 1; }
	@mv '$(FILE).part' '$(FILE)' && echo "$(FILE) holds the database"

restore: ## put a backup into an empty Postgres and start everything again: make restore FILE=backups/….dump
	@[ -n '$(FILE)' ] || { echo 'Say which: make restore FILE=backups/….dump'; exit 1; }
	@[ -s '$(FILE)' ] || { echo 'There is no backup in $(FILE), or an empty one'; exit 1; }
	@$(COMPOSE) up --detach --wait postgres
	@[ "$$($(COMPOSE) exec -T postgres $(AS_IFED) psql --dbname ifed --tuples-only --no-align --command "$(TABLES)")" = 0 ] || { \
	  echo 'This Postgres is not empty, and nothing was changed. To replace what it holds: make down; docker volume rm ifed_postgres; make restore FILE=$(FILE)'; exit 1; }
	@$(COMPOSE) stop aggregator proxy
	@$(COMPOSE) exec -T postgres $(AS_IFED) pg_restore --dbname ifed --exit-on-error --no-owner < '$(FILE)'
	@$(STAYING) $(COMPOSE) up --detach --wait $(ARGS)

enroll: ## enrol an organisation and print its token, this once: make enroll CLIENT=hospital-a (ARGS="--role reader --quiet")
	@[ -n '$(CLIENT)' ] || { echo 'Say whom: make enroll CLIENT=hospital-a'; exit 1; }
	@$(COMPOSE) --profile tools run --rm --no-TTY --no-deps ifed client enrol '$(CLIENT)' $(ARGS)

clean: ## remove the environment, caches and what a demo left here
	@rm -rf $(VENV) .demo site .coverage .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

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
