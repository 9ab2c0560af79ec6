# make train: pre-train the smoke model. make test: pass the tests. Both set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test lint format setup clean

train: .venv/.core
	$(BIN)/isthmus train experiment=smoke

test: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p isthmus
	$(BIN)/lint-imports --no-cache

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/.dev
	$(BIN)/pre-commit install

# torch comes first and by its exact version, so that nothing after it can pull another build of it.
.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

.venv/.test: .venv/.core
	$(PIP) --editable '.[test]'
	touch $@

.venv/.dev: .venv/.test
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv
