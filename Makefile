# Everything runs from the repository root with the Python of .venv.
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench serve clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 16

setup: $(STAMP)  ## create .venv and install what pyproject.toml asks for, at the versions of constraints.txt

# torch first and by its plain version, so that an index with a CPU build can offer that one.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## from raw text to a chat model, about 15 minutes on two cores; the same command continues
	$(BIN)/python -m cluster.pipeline preset=demo

serve: setup  ## answer on http://127.0.0.1:8000 with the demo's model
	$(BIN)/python -m serving.serve run.name=demo

check: setup  ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_arrows.py

test: setup  ## every test but the benchmarks
	$(BIN)/pytest -m "not bench and not gpu"

bench: setup  ## measure against other systems
	$(BIN)/pytest -q -s -m bench tests/bench

clean:  ## remove caches and build leftovers; keeps runs/ and .venv
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
