# Each target does its own set-up in .venv, once; `make` alone lists them.
PYTHON ?= python3
WORKERS ?= 2
DEMO_OUT ?= demo-out

VENV := .venv
BIN := $(VENV)/bin
SOURCE := autorep_fx passes runtime models_zoo tests docs examples benchmarks
# Modules are compiled to bytecode when they are first imported, not all of torch's at once.
INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=python3.12 chooses the interpreter (3.11 or newer), WORKERS=4 the test processes."

demo: $(VENV)/.runtime ## train, compile and check small networks on real digits, into demo-out/
	@$(BIN)/autorep-fx demo --out $(DEMO_OUT)

test: $(VENV)/.test ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/.check ## lint, types, layers; build the wheel and use it in an empty environment
	@echo "ruff check"
	@$(BIN)/ruff check -q .
	@echo "ruff format --check"
	@$(BIN)/ruff format -q --check . || { $(BIN)/ruff format --check .; exit 1; }
	@echo "mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "import-linter"
	@log=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$log"; exit 1; }
	@sh tests/packaging/smoke.sh $(BIN)/python

clean: ## remove .venv and everything that is made
	rm -rf $(VENV) $(DEMO_OUT) build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCE) -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || { \
		echo "There is no '$(PYTHON)'. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "autorep-fx needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." \
			"Name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "'$(PYTHON)' comes without venv or pip; on Debian and Ubuntu, install python3-venv." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing autorep-fx and what it needs into $(VENV) (about a minute, once)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing autorep-fx with its test tools into $(VENV) (about a minute, once)"
	@$(INSTALL) -e '.[test,parquet,secure]'
	@touch $(VENV)/.runtime $@

$(VENV)/.check: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing autorep-fx with its development tools into $(VENV) (about a minute, once)"
	@$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.runtime $@
