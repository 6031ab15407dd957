# Every target makes the virtual environment it needs. `make demo` and `make test` are all that a fresh machine has to run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo docs test test-slow lint bench clean
.SECONDARY:
.DELETE_ON_ERROR:

# All methods, one after another, then one page. A method that is done leaves NAME.done, so that `make demo` again goes on after the last;
# the one that was interrupted goes on from its newest checkpoint.
METHODS := fira kpod freekd otgnet av_odyssey
DEMO := $(CURDIR)/runs/demo
demo-fira := experiment=quickstart

demo: $(METHODS:%=$(DEMO)/%.done)
	$(BIN)/fivefold report $(DEMO) to=$(DEMO)

$(DEMO)/%.done: | $(VENV)/ready
	@echo "demo: $*"
	@grep -qs '"status": "finished"' $(DEMO)/$*/run.json || $(BIN)/fivefold train $(or $(demo-$*),method=$*) logger=csv run.root=$(DEMO) run.name=$* run.resume=auto \
		|| { echo "demo: $* stopped, for the reason above; make demo goes on with it" >&2; exit 1; }
	@touch $@

docs: $(VENV)/ready-docs
	$(BIN)/mkdocs build --strict

# One thread a process: tests start several processes, and more threads than cores would wait for each other.
test test-slow: export OMP_NUM_THREADS ?= 1
test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations 15

# The tests that take minutes: whole trainings, and a Slurm of several nodes.
test-slow: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow --durations 15

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/ready-bench
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/kpod.py
	$(BIN)/python benchmarks/freekd.py
	$(BIN)/python benchmarks/otgnet.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed, and $(PYTHON) is another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch goes first: DeepSpeed's set-up needs it, and its pin takes the CPU build where one is offered and the CUDA build elsewhere.
$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch setuptools wheel ninja
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) --no-build-isolation -e .[dev]
	$(PIP) --no-deps sweeps==0.3.0  # W&B's schema of sweep files: it asks for an older numpy than it needs
	$(PIP) --no-deps --upgrade --target $(VENV)/seeing torchvision timm  # for one test's own process: PyPI builds torchvision for CUDA alone
	touch $@

$(VENV)/ready-bench: $(VENV)/ready-dev
	$(PIP) --no-build-isolation -e .[bench]
	touch $@

# The pages alone need neither torch nor this package.
$(VENV)/ready-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) mkdocs mkdocs-material  # the extra `docs`
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
