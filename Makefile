# make demo   environment, install, the main job on real images; ends by naming its report
# make test   environment, install, linter, type checker, the whole suite
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint types nightly mutations compat clean

demo: $(VENV)/.demo
	$(BIN)/torchslim demo

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

# What `make test` leaves out: further cases of each kind, and the property tests with many more random networks.
nightly: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m nightly
	$(BIN)/python -m pytest -n 2 tests/property -m '' --hypothesis-profile=nightly

# Breaks every rule in turn and expects a test to fail.
mutations: $(VENV)/.dev
	$(BIN)/python tests/mutations.py

# The tests that depend on torch's version, on each version of the table in tests/compat.py.
compat: | $(BIN)/python
	$(BIN)/python tests/compat.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .venv-compat .pytest_cache .mypy_cache .ruff_cache .hypothesis
