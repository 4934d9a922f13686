# Everything runs in .venv, made on first use from PyPI alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The index of CPU builds is not needed: the pinned torch is the CPU build or the platform's default one.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test lowest lint format bench clean

help:  ## list what can be done
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## make .venv with the package, its tests and its checks

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(VENV)/.installed  ## pack, cache and verify the demo's images, and draw a contact sheet
	$(BIN)/inpaint-data demo --out demo_out

test: $(VENV)/.installed  ## run the linters and all tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest

lowest:  ## run all tests with the oldest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip --disable-pip-version-check install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[test]'
	.venv-lowest/bin/python -m pytest

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## print the table of docs/performance.md, in five minutes; FULL=--full for the long one
	$(BIN)/python benchmarks/bench.py $(FULL)

clean:  ## remove .venv and what the demo made
	rm -rf $(VENV) .venv-lowest demo_out
