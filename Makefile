# Maskwright. `make` lists what there is; `make demo` and `make test` each work as the first command after a clone.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= deberta-tiny-encyclopedia-wwm
PROFILE ?=
ARGS ?=
DEVICES ?= 1
SMALL := canine-tiny-domains-char deberta-tiny-encyclopedia-wwm
HARDWARE := paleobert-11gb paleobert-11gb-offload canine-a100 canine-a100-80gb h100 cpu
RECIPES := $(basename $(notdir $(wildcard recipes/*.yaml)))
PROFILE_FLAG = $(if $(PROFILE),--profile $(PROFILE),)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-long test-mutations check format bench golden train scale clean $(HARDWARE) $(RECIPES:%=plan-%)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-zA-Z0-9_%-]+:.*## / {printf "  %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  plan-RECIPE              plan one of: $(RECIPES)"

setup: $(VENV)/.ready  ## make .venv with an editable install, and fetch the small recipes' data
	@for recipe in $(SMALL); do $(BIN)/maskwright data prepare $$recipe > /dev/null || exit 1; done

# DeepSpeed builds against the torch that is there, so it comes last and without build isolation.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch ninja setuptools wheel
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev,tensorboard]'
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[deepspeed]'
	touch $@

demo: setup  ## train both small recipes, compare with yardsticks, fill before and after (about ten minutes)
	$(BIN)/python -m launch.demo

# Tests share the cores, one thread each; those with runs of their own come last, as these use two themselves.
# ARGS may leave either part without a test (5).
test: setup  ## the tests: what runs without a GPU in some ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not gpu and not slow and not long and not ranks" $(ARGS) || test $$? -eq 5
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not slow and not long and ranks" $(ARGS) || test $$? -eq 5

test-slow: setup  ## more of what takes long: CI runs these too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not long and not gpu" $(ARGS)

test-long: setup  ## every further way and signal (half an hour), not in CI
	$(BIN)/python -m pytest -m "long and not gpu" $(ARGS)

test-mutations: setup  ## take guards away one by one (ARGS="PATTERN... -j 2"): their tests must turn red
	$(BIN)/python -m tests.mutate $(ARGS)

check: setup  ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(MAKE) test

format: setup  ## put the code in its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## measure the data pipes and the models against named peers
	$(BIN)/python -m benchmarks.run $(ARGS)

golden: setup  ## record the golden losses anew; say in docs/decisions.md why they moved
	$(BIN)/python -m tests.golden.record

$(RECIPES:%=plan-%): plan-%: setup
	$(BIN)/maskwright plan $* $(PROFILE_FLAG) $(ARGS)

train: setup  ## train RECIPE= on PROFILE= with ARGS=
	$(BIN)/maskwright run $(RECIPE) $(PROFILE_FLAG) $(ARGS)

scale: setup  ## train RECIPE= on DEVICES= GPUs of this machine
	$(BIN)/maskwright run $(RECIPE) $(PROFILE_FLAG) --devices $(DEVICES) $(ARGS)

# `run` prints its plan first and starts nothing that cannot work.
paleobert-11gb: setup  ## DeBERTa-v3-base on Cambrian literature, one card of 11 GB
	$(BIN)/maskwright run deberta-v3-base-paleo-wwm --profile rtx2080ti-11gb $(ARGS)

paleobert-11gb-offload: setup  ## the same with the optimizer in CPU memory (ZeRO-2)
	$(BIN)/maskwright run deberta-v3-base-paleo-wwm --profile rtx2080ti-11gb-offload $(ARGS)

canine-a100: setup  ## CANINE-C on registered domain names, one A100 of 40 GB
	$(BIN)/maskwright run canine-c-domains-char --profile a100-40gb $(ARGS)

canine-a100-80gb: setup  ## the same, 80 GB
	$(BIN)/maskwright run canine-c-domains-char --profile a100-80gb $(ARGS)

h100: setup  ## train RECIPE= on one H100
	$(BIN)/maskwright run $(RECIPE) --profile h100-80gb $(ARGS)

cpu: setup  ## train RECIPE= on the CPU
	$(BIN)/maskwright run $(RECIPE) --profile cpu $(ARGS)

clean:  ## remove runs, caches and the virtual environment
	rm -rf runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
