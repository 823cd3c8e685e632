BIN := .venv/bin
INSTALLED := .venv/.installed
# Two at a time: much of a test is waiting. A file's tests share what they start, so that one process runs them all.
# Files keep their order: the long ones come first, and short ones fill the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.NOTPARALLEL:
.PHONY: help setup demo real test unit style bars elsewhere clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: $(INSTALLED)  ## install everything into .venv (a second run does nothing)

$(INSTALLED): pyproject.toml .ci/setup
	@.ci/setup
	@touch $@

demo: setup  ## teach a tiny model to add, and measure it
	@$(BIN)/python examples/demo.py

real: setup  ## train two real models, SmolLM2 and MiniLM, and measure them: half an hour; PARTS="ppo tool": those
	@$(BIN)/python examples/real.py $(PARTS)

test: style  ## style and all tests: what CI runs
	$(PYTEST) tests/ray tests/unit

unit: setup  ## the tests that need no Ray
	$(PYTEST) tests/unit

style: setup  ## lint, format, types, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell

bars: setup  ## the large matrices, by hand
	$(BIN)/python -m pytest tests/bars

elsewhere: setup  ## the demo and all tests with the arithmetic of other CPUs, by hand: hours
	@.ci/elsewhere

clean:  ## remove .venv, runs and caches
	rm -rf .venv runs build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
