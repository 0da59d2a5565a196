# `make run` and `make test` set up a virtual environment on first use; later calls reuse it.
PYTHON ?= python3
VENV   ?= .venv

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run run-all test test-slow test-all test-real lint notebooks refresh bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## create the virtual environment (run and test do it by themselves)

$(READY): requirements.txt pyproject.toml
	@echo "Setting up $(VENV) (once; about a minute with a fast connection) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

run: $(READY)  ## the main job: execute the notebooks in order, print the result
	@$(BIN)/python -m spamgpt run

run-all: $(READY)  ## the same with the notebooks of other methods and tasks
	@$(BIN)/python -m spamgpt run --all

test: $(READY)  ## all fast tests, and every notebook by nbval
	@$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)  ## only the slow tests
	@$(BIN)/python -m pytest -m slow

test-all: $(READY)  ## fast and slow tests, and every notebook
	@$(BIN)/python -m pytest

test-real: $(READY)  ## what `make test` leaves out: slow tests, and all on the files in SPAMGPT_MIRROR
	@$(BIN)/python -m pytest -m "slow or published" tests
	@$(BIN)/python -m pytest notebooks

lint: $(READY)  ## ruff: errors and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

notebooks: $(READY)  ## open JupyterLab on the notebooks
	@GOMP_SPINCOUNT=1000 $(BIN)/jupyter lab notebooks/00_finetuning_approaches.ipynb

refresh: $(READY)  ## execute the notebooks and store their outputs in place (maintainers)
	@SPAMGPT_BASE=pocket $(BIN)/python scripts/refresh_notebooks.py

bench: $(READY)  ## time training and inference against other libraries (about 45 minutes)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	@$(BIN)/python scripts/benchmark.py

clean:  ## remove what was made or trained (downloads and your own data stay)
	@test ! -x $(BIN)/python || $(BIN)/python -m spamgpt clean
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
