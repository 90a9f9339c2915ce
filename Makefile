# Every target works as the first command on a machine with Python 3.11 or newer, pip and make.
PYTHON ?= python3
WORKERS = 2
DATA = wine
BUDGET = 2m
SYSTEMS =
SEED = 58f92be
SAMPLE = 300

export OMP_NUM_THREADS = 1
# each worker, and each process that a test starts, would compile all modules again
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help compare test test-slow test-all durations mutants bench docs picture lint

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

compare: .venv/.installed-run  ## compare objectives on DATA (wine) within BUDGET (2m)
	$(BIN)/steepest compare $(DATA) --budget $(BUDGET)

test: .venv/.installed-test  ## the tests that take seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not browser" -q

test-slow: .venv/.installed-test  ## the others
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow or browser" -q

test-all: .venv/.installed-test  ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) -q

durations: .venv/.installed-test  ## processor seconds of the tests of each system, or of SYSTEMS, into tests/durations.json
	$(BIN)/python tests/durations.py $(SYSTEMS)

mutants: .venv/.installed-test .venv/.installed-mutants  ## which of SAMPLE (300) small wrong changes, drawn by SEED, no test sees
	$(BIN)/python tests/mutants.py --seed $(SEED) --sample $(SAMPLE)

bench: .venv/.installed-run  ## all benchmarks, one after the other
	set -e; for file in $(sort $(wildcard benchmarks/*.py)); do echo "$$file"; $(BIN)/python "$$file"; done

docs: .venv/.installed-docs  ## the documentation, into site/
	$(BIN)/python docs/systems.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

picture: .venv/.installed-test  ## pictures: of a report in the README, of a comparison like that of make compare, and of a run that is watched
	$(BIN)/steepest compare $(DATA) --budget $(BUDGET)
	$(BIN)/python docs/picture.py
	$(BIN)/python docs/watched.py build/watched
	$(BIN)/python docs/picture.py build/watched/run.html docs/run.png 1100 1300
	$(BIN)/python docs/picture.py build/watched/run.html docs/run-phone.png 390 844

lint: .venv/.installed-lint  ## style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed-run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt -e '.[$*]'
	touch $@
