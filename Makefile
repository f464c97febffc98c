# `make demo` and `make test` set up everything they need; only Python 3.11, git and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: site help install lock wheel demo test test-empty test-hostile test-gpu lint format docs bench bench-gpu architectures clean

help:
	@echo "make demo     find and damage the critical weights of a real 135M model"
	@echo "make test     run the tests"
	@echo "make test-empty    the same in an environment that holds nothing"
	@echo "make test-hostile  all but the engine's tests in an environment full of odd values"
	@echo "make test-gpu  what holds on a GPU, where there is one"
	@echo "make lint     ruff, codespell, mypy and the import contracts"
	@echo "make install  make $(VENV) with everything for development"
	@echo "make lock     write the hashes of requirements*.txt anew from constraints*.txt; needs uv"
	@echo "make wheel    build dist/cwtool-*.whl and its bill of materials"
	@echo "make docs     write the tables in docs/ anew from the registries"
	@echo "make bench    measure speed and memory, and write benchmarks/RESULTS.md"
	@echo "make bench-gpu  measure a GPU in ten minutes, and write benchmarks/RESULTS-gpu.md"
	@echo "make architectures  write docs/architectures.md anew, by trying each"
	@echo "make clean    remove $(VENV) and caches"

install: $(INSTALLED)

# Every package, pip and setuptools too, is the very file that a requirements file has the hash of; nothing is resolved, so
# nothing else comes along. Which file of torch is taken is left to the index, as for `pip install torch==...`: any that PyPI
# has, or the build without CUDA. The former needs libraries of CUDA on Linux, gigabytes that come only with it.
LOCKED := -m pip install --quiet --require-hashes --no-deps
define NEEDS_CUDA
from importlib.metadata import requires; from packaging.requirements import Requirement; \
needed = [r for r in map(Requirement, requires("torch")) if r.marker is None or r.marker.evaluate({"extra": ""})]; \
raise SystemExit(not any(r.name == "cuda-toolkit" for r in needed))
endef

$(INSTALLED): pyproject.toml requirements.txt requirements-torch.txt requirements-cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(LOCKED) --requirement requirements.txt
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/torch $$(grep -o '^torch==[0-9.]*' requirements-torch.txt)
	$(BIN)/python $(LOCKED) --no-index --find-links $(VENV)/torch --requirement requirements-torch.txt
	rm -r $(VENV)/torch
	if $(BIN)/python -c '$(NEEDS_CUDA)'; then $(BIN)/python $(LOCKED) --requirement requirements-cuda.txt; fi
	$(BIN)/python -m pip install --quiet --no-deps --no-index --no-build-isolation --editable .
	touch $@

# sha256 of torch-2.13.0+cpu for Python 3.11 on x86-64 Linux, the build without CUDA.
TORCH_CPU := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
HASHED := uv pip compile --quiet --generate-hashes --no-deps --universal --python-version 3.11 --no-header --no-annotate

lock:
	grep -v '^torch==' constraints.txt | $(HASHED) - --output-file requirements.txt
	rm -f requirements-torch.txt  # uv keeps the hashes that are there, and the line below adds one
	grep '^torch==' constraints.txt | $(HASHED) - --output-file requirements-torch.txt
	sed -i 's|^torch==.*|&\n    --hash=sha256:$(TORCH_CPU) \\|' requirements-torch.txt
	$(HASHED) constraints-cuda.txt --output-file requirements-cuda.txt

# The wheel, and beside it what it needs: a bill of materials in the format of CycloneDX.
wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir dist .
	$(BIN)/python tools/sbom.py dist

demo: install
	$(BIN)/python examples/demo.py

# A process for each processor, with one thread each, for the models of the tests are too small for more; and one process
# besides, for tests of the daemon wait for about half of their time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($$(env -u OMP_NUM_THREADS nproc) + 1)) --dist worksteal

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

# A login of systemd has an XDG_RUNTIME_DIR that no other user can enter. tests/engine computes what no variable can reach.
test-hostile: install
	private=$$(mktemp -d /tmp/private-XXXXXX) && trap "rm -rf $$private" EXIT && umask 077 && \
	env $(HOSTILE) XDG_RUNTIME_DIR=$$private $(PYTEST) --ignore tests/engine

# One process: several would share the device's memory, which tests fill.
test-gpu: install
	$(BIN)/python -m pytest tests/gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python -m docs.generate

site: install
	$(BIN)/zensical build --clean --strict

bench: install
	$(BIN)/python -m benchmarks

bench-gpu: install
	$(BIN)/python -m benchmarks.gpu

architectures: install
	$(BIN)/python -m docs.architectures

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
