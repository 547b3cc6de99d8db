# `make quickstart` and `make test` need nothing but Python, pip's package index and this folder: they set up $(VENV).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
PYTEST_ARGS ?=
OUTPUT ?= quickstart-output
THREADS ?= 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Folders count as sources too: a file that is gone changes its folder.
SOURCES := $(shell find src -name __pycache__ -prune -o -print) pyproject.toml README.md LICENSE

CXX_FOUND := $(shell command -v g++ 2>/dev/null)
COMPARE := $(BIN)/python benchmarks/compare.py --threads $(THREADS) $(if $(CXX_FOUND),,--no_compile)
define SMALL_BENCHMARKS
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/full_depth.py --pooling mean --batch_sizes 1 32 --repeats 10
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/compaction.py --batch_sizes 32 --repeats 3
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/sweep.py
endef

# An environment that no longer runs (its Python is gone) counts as not made.
$(shell $(BIN)/python -c '' 2>/dev/null || rm -f $(VENV)/.usable $(VENV)/.installed-*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-slow test-gpu test-min quality style benchmark benchmark-full card clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) OUTPUT=$(OUTPUT) THREADS=$(THREADS) PYTEST_ARGS= can be set."

quickstart: $(VENV)/.installed-examples ## Fine-tune, save, load and classify with early exit, on real text (to OUTPUT)
	$(BIN)/python examples/quickstart.py --output_dir $(OUTPUT)

test: $(VENV)/.installed-dev ## Build the wheel, install it and run the fast tests on it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev ## Run the slow tests
	$(BIN)/python -m pytest -m "slow and not gpu" $(PYTEST_ARGS)

test-gpu: $(VENV)/.installed-dev ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-min: ## Run the fast tests with the lowest versions declared, in an environment of their own
	$(MAKE) test VENV=.venv-min CONSTRAINTS=constraints-min.txt

quality: $(VENV)/.installed-dev ## Check lint, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

style: $(VENV)/.installed-dev ## Mend lint and format
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

benchmark: $(VENV)/.installed-dev ## Measure a little of everything, in minutes (the quickstart's model if it is in OUTPUT)
	rm -f benchmarks/results/benchmark.json
	if [ -f $(OUTPUT)/numbers.json ]; then set -- --parts text --model $(OUTPUT) --rows 64 --seconds 0.5; \
		else set -- --parts shapes --shapes minilm --lengths 32; fi; \
		$(COMPARE) "$$@" --batch_sizes 1 32 --output benchmarks/results/benchmark.json
	$(SMALL_BENCHMARKS)

benchmark-full: $(OUTPUT)/numbers.json ## Measure everything, in tens of minutes (to benchmarks/results)
	$(COMPARE) --model $(OUTPUT) $(if $(CXX_FOUND),--aot) --resume --output benchmarks/results/benchmark-full.json
	$(SMALL_BENCHMARKS)

$(OUTPUT)/numbers.json: | $(VENV)/.installed-dev
	$(BIN)/python examples/quickstart.py --full --output_dir $(OUTPUT)

card: $(VENV)/.installed-examples ## Write MODEL_CARD.md again from the stored numbers
	$(BIN)/python -m transformers_deebert.hub.model_card docs/quickstart_numbers.json MODEL_CARD.md \
		--picture docs/quickstart_trade_off.png --model_id quickstart-output

clean: ## Remove what was built and cached (environments stay)
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.usable:
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

build/.wheel: $(SOURCES) | $(VENV)/.usable
	rm -rf build/wheel
	$(PIP) wheel --quiet --no-deps --wheel-dir build/wheel .
	@touch $@

# The wheel, never the sources: package data that is missing from it shows in the tests.
$(VENV)/.installed-%: build/.wheel $(CONSTRAINTS) | $(VENV)/.usable
	$(PIP) install --quiet --no-deps --force-reinstall build/wheel/*.whl
	$(PIP) install --quiet --constraint $(CONSTRAINTS) "$$(echo build/wheel/*.whl)[$*]"
	@touch $@
