# The two commands of a newcomer are `make demo` and `make test`. Both install what they need into .venv first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo serve test lint types reference bench clean

demo: .venv/installed
	@$(BIN)/ade demo

serve: .venv/installed
	@$(BIN)/ade serve

test: .venv/installed-dev
	@$(BIN)/pytest --numprocesses=2 --dist=loadfile  # each has PostgreSQL servers and a service of its own

lint: .venv/installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/installed-dev
	@$(BIN)/mypy

reference: .venv/installed
	@$(BIN)/ade openapi > docs/reference/openapi.json
	@$(BIN)/ade openapi --markdown > docs/reference/http.md

bench: .venv/installed-dev
	@$(BIN)/python -m benchmarks $(ROUND)

clean:
	rm -rf .venv data

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'ADE Runs needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 demo'; exit 1; }
	@echo 'Installing into .venv (the first time only) ...'
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@NODE_OPTIONS=--use-system-ca $(BIN)/npm install --prefix .venv/node --no-save --no-audit --no-fund --loglevel=error \
	  eventsource@4 openapi-typescript@7 typescript@5 || \
	  echo 'LOUD: no npm registry can be reached: not tested with its EventSource and its generator of clients'
	@touch $@
