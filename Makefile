# EditScope. `make run` starts the page, `make test` runs every test, `make check` is what a change must pass,
# `make bench` times the engine against the plain loop.
# Everything is installed into .venv, and again only when a requirement file changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
# Where torch comes from when not from the default index,
# e.g. make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
SOURCES := editing_core benchmarks components scripts tests app.py

OFFLINE := GRADIO_ANALYTICS_ENABLED=False HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One thread each: several processes with threads of their own keep each other waiting.
TEST_ENV := $(OFFLINE) OMP_NUM_THREADS=1

.PHONY: run test check fix slow bench screenshot clean
.DEFAULT_GOAL := run
.DELETE_ON_ERROR:

run: $(VENV)/runtime.stamp
	$(BIN)/python app.py

# Side by side, because a browser waits for much of its time; the other tests leave it the processor when it does not.
test: $(VENV)/dev.stamp
	@$(TEST_ENV) $(BIN)/python -m pytest -x -q tests -m "browser and not slow" > $(VENV)/browser.log 2>&1 & browser=$$!; \
	  $(TEST_ENV) nice -n 10 $(BIN)/python -m pytest -x -q -n 2 --dist loadfile tests -m "not slow and not browser"; \
	  fast=$$?; wait $$browser; shown=$$?; \
	  echo "In the browser:"; cat $(VENV)/browser.log; \
	  exit $$((fast || shown))

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(TEST_ENV) $(BIN)/python -m pytest -x -q tests/unit

fix: $(VENV)/dev.stamp
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/dev.stamp
	$(OFFLINE) $(BIN)/python -m benchmarks.speed

screenshot: $(VENV)/dev.stamp
	$(BIN)/python -m scripts.screenshot

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "EditScope needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1); name another one, e.g. make PYTHON=python3.12." >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: it is by far the largest, and the one whose build one may want to choose.
$(VENV)/torch.stamp: constraints.txt | $(VENV)/bin/python
	$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) -c constraints.txt torch
	@touch $@

$(VENV)/runtime.stamp: requirements.txt constraints.txt $(VENV)/torch.stamp
	$(PIP) -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/runtime.stamp
	$(PIP) -r requirements-dev.txt -c constraints.txt
	@touch $@
