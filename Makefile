# `make demo` and `make test` need nothing but make and Python; both install into .venv what they need, once.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
CORE := packages/esbnn-core/pyproject.toml packages/esbnn-cls/pyproject.toml
ALL := $(CORE) packages/esbnn-det/pyproject.toml packages/esbnn-sr/pyproject.toml
TOOLS := pytest pytest-xdist pytest-timeout hypothesis ruff mypy build hatchling types-PyYAML tensorboard

NATIVE := build/native/libesbnn.so
# Tests use the native kernels where `make native` has built them.
export ESBNN_LIBRARY ?= $(realpath $(NATIVE))

.PHONY: help demo test test-slow native golden lint format types bench results clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	@$(PY) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v.major}.{v.minor}; say make PY=python3.11 ...")'
	$(PY) -m venv $(VENV)
	@touch $@

# torch first and by its pin: nothing else may choose another build of it.
$(VENV)/.core: constraints.txt $(CORE) | $(VENV)/.made
	@echo "installing esbnn-core and esbnn-cls into $(VENV), about two minutes the first time"
	$(PIP) torch torchvision
	$(PIP) -e packages/esbnn-core -e "packages/esbnn-cls[demo]"
	@touch $@

$(VENV)/.all: constraints.txt $(ALL) $(VENV)/.core
	@echo "installing all four packages and the test tools into $(VENV), about two minutes the first time"
	$(PIP) -e packages/esbnn-core -e "packages/esbnn-cls[demo,tensorboard]" -e packages/esbnn-det -e packages/esbnn-sr $(TOOLS)
	@touch $@

demo: $(VENV)/.core ## train plain and expanded networks on scikit-learn's digits, write build/demo/index.html
	$(BIN)/python -m esbnn_cls.demo --out build/demo

test: $(VENV)/.all ## the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.all ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

native: ## build the packed kernels of esbnn-core into build/native (needs cmake and a C++17 compiler)
	cmake -S packages/esbnn-core/csrc -B build/native -DCMAKE_BUILD_TYPE=Release
	cmake --build build/native --parallel 2

golden: $(VENV)/.all ## the golden vectors alone
	$(BIN)/python -m pytest -n 2 -m golden

lint: $(VENV)/.all ## ruff
	$(BIN)/ruff check packages tests tools
	$(BIN)/ruff format --check packages tests tools

format: $(VENV)/.all ## let ruff mend what it can
	$(BIN)/ruff check --fix packages tests tools
	$(BIN)/ruff format packages tests tools

types: $(VENV)/.all ## mypy
	$(BIN)/mypy -p esbnn_core -p esbnn_cls -m esbnn_cls_catalog -m esbnn_cls_cli -p esbnn_det -p esbnn_sr

bench: $(VENV)/.all ## time of training steps, as ratios
	$(BIN)/python tools/bench.py

results: $(VENV)/.all ## make docs/results.md again from docs/runs
	$(BIN)/python tools/results.py

clean: ## everything that was made here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
