# Every target sets itself up: a machine needs Python 3.11 or newer and make, nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench format docs clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Plan and train a small GPT on 8 emulated devices, checked against one device
	$(BIN)/autopar train gpt:tiny --devices 8 --steps 60 --check

test: lint ## Lint, then every test but the slow ones
	$(BIN)/pytest -q -n 2 -m "not slow"

test-slow: $(READY) ## The slow tests, then the three long runs of tests/fuzz, which go on where they were
	$(BIN)/pytest -q -n 2 -m slow
	$(BIN)/python tests/fuzz/sweep.py build/fuzz/catalogue.jsonl
	$(BIN)/python tests/fuzz/sweep_composed.py build/fuzz/composed.jsonl
	$(BIN)/python tests/fuzz/sweep_strategies.py build/fuzz/strategies.jsonl

lint: $(READY) ## Formatting, lint, types and the layers between modules
	$(BIN)/ruff format --check --output-format concise .
	$(BIN)/ruff check --output-format concise .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY) ## Run every program in benchmarks/, one by one; fail at the end if one did
	@failed=; for program in $(sort $(wildcard benchmarks/[!_]*.py)); do \
		echo "== $$program"; $(BIN)/python $$program || failed="$$failed $$program"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

format: $(READY) ## Rewrite the code as the formatter and the linter's fixes want it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## Write docs/operations.md anew from the rules
	$(BIN)/python docs/generate_operations.py

clean: ## Remove what is built and cached (the virtual environment stays)
	rm -rf build dist docs/_build .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

$(READY): pyproject.toml
	@echo "Setting up .venv (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autopar needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
