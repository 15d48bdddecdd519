.DEFAULT_GOAL := help
.PHONY: help demo test quick oldest integrations lint types bench docs figures mutate clean

PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check -c
INSTALL := $(BIN)/python $(PIP) constraints.txt
# A file's tests stay in one process: they share what is expensive.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Other frameworks ask their hubs and trackers for nothing here, and take no part of a graphics card.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES= WANDB_MODE=offline MLFLOW_DISABLE_TELEMETRY=true
LIBRARY := --ignore=tests/lab --ignore=tests/test_cli.py --ignore=src/edgewise/lab --ignore=src/edgewise/cli.py
CONCEPTS := $(wildcard docs/concepts/*.py)
TORCH = $(shell sed -n 's/^torch==//p' constraints.txt)
OLDEST_TORCH = $(shell sed -n 's/^dependencies = .*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: .venv/.lab ## the paper's main findings on this machine, in three minutes: runs/demo/report.html
	$(BIN)/edgewise demo

test: .venv/.dev ## all tests and the examples in the docstrings
	$(BIN)/pytest $(PARALLEL)

quick: .venv/.dev ## the tests that train nothing in the laboratory and start no process, in less than a minute
	$(BIN)/pytest $(PARALLEL) -m "not slow and not processes and not training"

oldest: .venv-oldest/.dev ## the library's tests with the oldest torch that pyproject.toml promises, in 8 GB of their own
	.venv-oldest/bin/pytest $(PARALLEL) $(LIBRARY)

integrations: .venv-integrations/.dev ## the tests with other frameworks, and the examples, in 6 GB of their own
	$(OFFLINE) .venv-integrations/bin/pytest $(PARALLEL) tests/integrations src/edgewise/integrations

lint: .venv/.dev ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.dev ## type annotations, strictly
	$(BIN)/mypy

bench: .venv/.bench ## what measurements cost, into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

docs: .venv/.docs $(CONCEPTS:.py=.md) ## the documentation, into site/, with a link to REPOSITORY_URL if that is set
	$(BIN)/zensical build --strict

# A page of docs/concepts is its script, executed, with what it printed and drew.
docs/concepts/%.md: docs/concepts/%.py | .venv/.docs
	$(BIN)/jupytext --quiet --to ipynb --output - $< | OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --stdin --execute --to markdown \
		--log-level WARN --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=remove_input \
		--TagRemovePreprocessor.remove_cell_tags=remove_cell --MarkdownExporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor \
		--KernelManager.transport=ipc --output-dir docs/concepts --output $*

figures: .venv/.lab ## every figure there is a recipe for, at embedded scale: runs/all-embedded; fails if a finding stopped holding
	$(BIN)/edgewise figure all
	$(BIN)/python docs/studies/claims.py --check runs/all-embedded

mutate: .venv/.dev ## plant faults and see that the tests notice
	$(BIN)/python tests/mutate.py

clean: ## remove the environments, caches and builds; results in runs/ stay
	rm -rf .venv .venv-oldest .venv-integrations site .cache docs/concepts/*.md docs/concepts/*_files dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
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

# Pins that belong to the newest torch are left out: the oldest brings its own.
.venv-oldest/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oldest
	grep -vE '^(torch|torchvision|setuptools|sympy)==' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python $(PIP) .venv-oldest/constraints.txt 'torch==$(OLDEST_TORCH)' -e '.[lab,dev]'
	touch $@

# torchvision, which timm needs, fits the index's torch and no local build of it ("==2.13.0" would take 2.13.0+cpu too);
# trackio does not take Pillow 13 yet, nor MLflow PyArrow 26.
.venv-integrations/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-integrations
	sed 's/^pillow==.*/pillow==12.3.0/; s/^pyarrow==.*/pyarrow==25.0.1/' constraints.txt > .venv-integrations/constraints.txt
	.venv-integrations/bin/python $(PIP) .venv-integrations/constraints.txt 'torch===$(TORCH)' \
		-e '.[lab,accelerate,lightning,timm,trackers,transformers,trl]' hypothesis pytest pytest-xdist
	touch $@

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[lab,docs]'
	touch $@ .venv/.lab
