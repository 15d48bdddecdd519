.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench docs figures mutate clean

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

demo: .venv/.lab ## the paper's main findings on this machine, in two and a half minutes: runs/demo/report.html
	$(BIN)/edgewise demo

test: .venv/.dev ## all tests and the examples in the docstrings
	$(BIN)/pytest

lint: .venv/.dev ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.dev ## type annotations, strictly
	$(BIN)/mypy

bench: .venv/.bench ## what measurements cost, into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

docs: .venv/.docs ## the documentation, into site/
	$(BIN)/mkdocs build --strict --quiet

figures: .venv/.lab ## every figure there is a recipe for, at embedded scale: runs/all-embedded
	$(BIN)/edgewise figure all

mutate: .venv/.dev ## plant faults and see that the tests notice
	$(BIN)/python tests/mutate.py

clean: ## remove the environment, caches and builds; results in runs/ stay
	rm -rf .venv site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; a stamp for each set of dependencies, so that a second call installs nothing.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.lab: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[lab]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[lab,dev]'
	touch $@ .venv/.lab

.venv/.bench: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[lab,dev,bench]'
	touch $@ .venv/.dev .venv/.lab

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[docs]'
	touch $@
