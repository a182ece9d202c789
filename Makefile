# Every target sets up what it needs: on a fresh machine `make demo` or `make test` is all there is to type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d ' ' -f 1)
# PyPI's torch for Linux carries CUDA (gigabytes). For the small CPU build, where your index has none:
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help install demo test test-fast mutants mutants-ci lint types security bench docs clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with everything

# The stamp carries the checksum of pyproject.toml: a changed file installs again, a touched one does not.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..."; exit 2; }
	@echo "installing into $(VENV) (a minute or two, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@$(PIP) install --editable '.[dev]'
	@rm -f $(VENV)/.installed-* && touch $@

demo: install ## a backdoored model, protected and served; ends with Ctrl-C
	@$(BIN)/detrigger demo

# Tests that start a service wait for it with time limits: they run alone, the others side by side.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile

test: test-fast ## all tests
	@$(BIN)/pytest $(SIDE_BY_SIDE) -m "slow and not process"
	@$(BIN)/pytest -m process

test-fast: install ## tests of a few seconds each: what to run while working
	@$(LIMITED) $(BIN)/pytest $(SIDE_BY_SIDE) -m "not slow and not process"

mutants: install ## do the tests notice changed numerics? goes on where it ended; results in benchmarks/results
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks.mutants

mutants-ci: install ## the same for twenty changes, and those made by hand
	@PYTHONPATH=$(CURDIR) $(BIN)/python -m benchmarks.mutants --check 20

lint: install ## ruff: rules and formatting; import-linter: layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONPATH=$(CURDIR) $(BIN)/lint-imports --no-logo --no-cache

types: install ## mypy, strict
	@$(BIN)/mypy

security: install ## bill of materials and known vulnerabilities, in build/
	@.ci/security

bench: install ## the benchmarks; results go to benchmarks/results
	@$(PIP) install --editable '.[dev,bench]'
	@DETRIGGER_STORES=$${DETRIGGER_STORES:-build/bench-stores} $(BIN)/python -m benchmarks

docs: install ## picture and figures of the documents, from the last `make demo`
	@$(BIN)/python -m benchmarks.pages.update --demo

clean: ## remove caches and the demo's files, keep .venv
	rm -rf demo-run .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
