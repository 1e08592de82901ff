# Everything runs in .venv. A GPU machine: make demo TORCH=torch
PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types tests slow losses-epoch losses-trl eight-bit deepspeed bench bench-quick stability small results audit faults distributed tiny wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv and install dil with its pinned dependencies

# Torch goes first and alone: with one installed, nothing later pulls another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "error: dil needs Python 3.11 to 3.13, $(PYTHON) is $$($(PYTHON) -V)"; \
		     echo "fix:   make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev,eval,judge,serving]'
	@touch $@

demo: $(INSTALLED)  ## train the tiny model on bundled pairs and show where the picture is
	$(BIN)/dil train

test: lint types tests  ## lint, types and the whole test suite, offline on the CPU

lint: $(INSTALLED)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

# Test models are too small for more than a thread each.
tests: $(INSTALLED)  ## pytest, a process a core
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

slow: $(INSTALLED)  ## the tests that make test leaves out for their time: launchers, lm-eval's own command line (some minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n auto --maxprocesses 8

losses-epoch: $(INSTALLED)  ## each loss for an epoch on the tiny model: margin up, nothing non-finite (an hour; goes on)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m epoch -n auto --maxprocesses 8 --timeout 1800 -v tests/train/test_every_loss_for_an_epoch.py

losses-trl: $(INSTALLED)  ## the losses against TRL 1.16, which is installed into .venv for it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev,trl]'
	$(BIN)/pytest tests/losses/test_against_trl.py

eight-bit: $(INSTALLED)  ## optim=adamw_8bit for real, with bitsandbytes, which is installed into .venv for it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev,quant]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/train/test_8bit.py tests/plan -k '8bit or 8_bit'

deepspeed: $(INSTALLED)  ## distributed=zero3 for real, on the CPU, with DeepSpeed, which is installed into .venv for it (minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev,deepspeed]'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/distributed -k zero3 -m 'distributed or not distributed' --timeout 600

# DATA is a folder with hh_harmless.jsonl.gz and alpaca_eval_prefs_train.jsonl.gz; without it the bundled pairs are taken.
DATA ?=
BENCH ?=

bench: $(INSTALLED)  ## dil beside TRL 1.16 and the machine's limit: make bench DATA=DIR (hours, see benchmarks/)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev,trl]'
	DATA='$(DATA)' $(BIN)/python -m benchmarks.vs_trl $(BENCH)
	DATA='$(DATA)' $(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.table outputs/bench/vs_trl.json outputs/bench/scaling.json outputs/bench/gpu.json

bench-quick: $(INSTALLED)  ## the same on a tiny model, to see that it runs (two minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev,trl]'
	$(BIN)/python -m benchmarks.vs_trl --quick --out outputs/bench/quick
	$(BIN)/python -m benchmarks.scaling --quick --out outputs/bench/quick
	$(BIN)/python -m benchmarks.gpu --small --checkpointing on --out outputs/bench/quick

stability: $(INSTALLED)  ## lengths 128 to 2,048 x DIL losses x guards on and off: what is not finite (half an hour; goes on)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.stability
	$(BIN)/python -m benchmarks.stability --table

PAGES ?=

results: $(INSTALLED)  ## the pages of docs/results from nothing: make results [PAGES="noise epochs"] [DATA=DIR] (hours; goes on)
	DATA='$(DATA)' $(BIN)/python -m results $(PAGES)

small: $(INSTALLED)  ## the small model of docs/results, 6 M parameters: make small DATA=DIR (hours; goes on)
	DATA='$(DATA)' $(BIN)/python -m recipes.make_small

audit: $(INSTALLED)  ## known vulnerabilities of the pinned packages; without a network it says "not checked"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[audit]'
	$(BIN)/python -m recipes.audit

faults: $(INSTALLED)  ## runs killed at 50 moments, disks full, states damaged, inputs bad; a sweep killed 20 times (15 minutes)
	DIL_KILLS=50 OMP_NUM_THREADS=1 $(BIN)/pytest tests/reliability -m 'not epoch' -n auto --maxprocesses 8 --timeout 3600
	DIL_KILLS=20 OMP_NUM_THREADS=1 $(BIN)/pytest tests/sweep -k killed -m slow --timeout 3600

distributed: $(INSTALLED)  ## runs of several processes: the same numbers, killed, stopped, resumed (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/distributed -m 'distributed or not distributed' --timeout 600

tiny: $(INSTALLED)  ## make the bundled tiny model from nothing (half an hour)
	$(BIN)/python -m recipes.make_tiny

wheel: $(INSTALLED)  ## build the wheel and the sdist into dist/
	$(BIN)/python -m build

clean:  ## remove .venv and caches (outputs/ stays)
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
