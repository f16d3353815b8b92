# What can be done with Postage; `make` or `make help` lists it. Needs Python 3.11 or later and a package index.

PYTHON = python3
UV = uv>=0.13.6,<0.14
JOBS = 5
BIN = .venv/bin
READY = .venv/.ready

# What Python compiles is kept, even where it may write no bytecode otherwise: hundreds of processes import it again.
export PYTHONDONTWRITEBYTECODE =

# The steps of `make test` run one after another, whatever -j says.
.NOTPARALLEL:
.PHONY: help setup run test unit lint format types imports tests chaos fuzz bench docs image clean

help: ## List what can be done
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Build .venv with the exact packages of uv.lock (PYTHON=python3.12 picks another interpreter)

# uv comes from the package index too, into the same .venv, and uses the interpreter that is here. Everything is
# compiled in advance: otherwise a process takes seconds to start if Python may not write bytecode. The stamp is written
# by the last line, so only if everything before it succeeded; when the lock changes, all of it runs again.
$(READY): pyproject.toml uv.lock
	@echo '== Setup: .venv'
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Postage needs Python 3.11 or later, and " \
		+ sys.executable + " is " + sys.version.split()[0] + ". Name another: make setup PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV)'
	@UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 $(BIN)/uv sync --frozen --quiet \
		--compile-bytecode
	@touch $(READY)

run: $(READY) ## Run everything on this machine, and the example; Ctrl-C ends it (ONCE=1: ends when done)
	@exec $(BIN)/postage up examples/john-peter-mary.jsonl $${ONCE:+--exit}

# pytest compiles the tests in a way of its own, and does so while mypy uses one core; otherwise each of its processes
# would do it for itself. Only the time depends on that: what is wrong with the tests is said once they are run.
test: lint ## Check and test everything, stopping at the first failure
	@$(BIN)/pytest --collect-only -qq >/dev/null 2>&1 & \
		$(MAKE) --no-print-directory types imports && wait && $(MAKE) --no-print-directory tests
	@echo '== All of it passed.'

unit: lint types imports ## Check what can be checked without servers, for the loop of writing: under a minute
	@echo '== Unit tests: pytest'
	@$(BIN)/pytest -n $(JOBS) tests/unit

lint: $(READY) ## Check style and format
	@echo '== Style: ruff check'
	@$(BIN)/ruff check
	@echo '== Format: ruff format --check'
	@$(BIN)/ruff format --check

format: $(READY) ## Format, and fix what can be fixed automatically
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(READY) ## Check types
	@echo '== Types: mypy'
	@$(BIN)/mypy

imports: $(READY) ## Check which package may import which
	@echo '== Imports: lint-imports'
	@$(BIN)/lint-imports

tests: $(READY) ## Run only the tests (JOBS=2: in two processes)
	@echo '== Tests: pytest'
	@$(BIN)/python -m compileall -q worker tasks models tests bench
	@$(BIN)/pytest -n $(JOBS) --dist loadgroup

chaos: $(READY) ## Kill, stop and cut off everything under load, and count what was lost (CHAOS='--jobs 2000 --seed 1')
	@exec $(BIN)/python -m tests.chaos $(CHAOS)

fuzz: $(READY) ## Put 20,000 messages with anything in them on the queues of a worker (FUZZ=2000)
	@FUZZ=$${FUZZ:-20000} exec $(BIN)/pytest -q -s tests/flows/test_any_message.py

bench: $(READY) ## Measure how fast it is beside others (BENCH='--only hot --rounds 2', BENCH=--help)
	@exec $(BIN)/python -m bench $(BENCH)

docs: $(READY) ## Build the site of the documentation in dist/docs; a warning is an error
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs dist/docs
	@echo 'Open dist/docs/index.html.'

image: ## Build the container image `postage`, with Docker or Podman
	@engine=$$(command -v docker || command -v podman) || { echo 'There is neither Docker nor Podman here. `make tests` runs' \
		'the steps of the Dockerfile without them (tests/flows/test_image.py).' >&2; exit 1; }; \
		exec "$$engine" build --tag postage .

clean: ## Remove .venv and every cache, but not var/, which holds messages and money
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find worker tasks models bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
