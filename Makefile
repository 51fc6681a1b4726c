# Two commands for a newcomer: `make demo` trains CartPole, `make test` passes the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch comes first and pinned, so that nothing else decides which build is taken.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo test coverage test-slow test-faults test-sim lint setup setup-dev clean

demo: setup
	$(BIN)/qfleet train CartPole-v1

test: setup-dev lint
	$(BIN)/python -m pytest -n 2 --ray without
	$(BIN)/python -m pytest --ray only

coverage: setup-dev
	$(BIN)/python -m pytest --cov=qfleet --cov-report=term

test-slow: setup-dev
	$(BIN)/python -m pytest -m slow

test-faults: setup-dev
	$(BIN)/python -m pytest -m faults

test-sim: setup-dev
	$(BIN)/python tests/simulation/trial.py --first 0 --count 10000 --processes 2

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qfleet needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,box2d]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
