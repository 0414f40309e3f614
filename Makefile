PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart   dump triplets with the mini teacher, train the mini student, stylise: outputs/quickstart/"
	@echo "make test         lint and tests"
	@echo "make clean        remove the environment and the quickstart's output"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[teacher,student,dev]"
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/python scripts/quickstart.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) outputs/quickstart
