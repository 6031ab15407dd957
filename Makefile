# Every target makes the virtual environment it needs. `make demo` and `make test` are all that a fresh machine has to run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench clean

demo: $(VENV)/ready
	$(BIN)/fivefold train experiment=quickstart run.root=$(CURDIR)/runs

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/ready-bench
	$(BIN)/python benchmarks/optimizer_step.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first: DeepSpeed's set-up needs it, and its pin decides between the CPU and the CUDA build.
$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools wheel ninja
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e .[dev]
	touch $@

$(VENV)/ready-bench: $(VENV)/ready-dev
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps fira galore-torch pytorch-optimizer apollo-torch
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
