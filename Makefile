# A fresh machine needs Python 3.11 or newer and make; targets that need .venv create it first.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOCKS := infra/locks
PEERS := tests/benchmarks/peers
FOREIGN := tests/foreign
UV := $(BIN)/uv --quiet
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command "make lock" $(ARGS)

.PHONY: help install run test test-more faults faults-full faults-tools pooler mutants bench bench-growth bench-peers check prose references format lock build release clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed ## Create .venv with all extras and tools; PYTHON=python3.13 chooses the interpreter

# exec: signals to make reach the command itself. After Ctrl-C make waits until the command has
# stopped, and then ends by SIGINT too, exit code 130.
run: install ## Run Kafka, PostgreSQL and all services on this machine, data in .data; ARGS=--help
	@exec $(BIN)/execution-events dev --data-dir .data $(ARGS)

test: install ## Run all tests; ARGS="tests/unit -k fold"
	@exec $(BIN)/pytest $(ARGS)

test-more: install ## Run the tests marked "more", those of SQL on PostgreSQL 15 to 17, and the long faults
	$(BIN)/pytest -m more $(ARGS)
	for version in 15 16 17; do \
		EXECUTION_EVENTS_TEST_POSTGRESQL=$$version $(BIN)/pytest tests/integration || exit; \
	done
	$(BIN)/python -m tests.faults run --long

faults: install ## Run each short row of the fault matrix once, on the real servers; ARGS="--row scale --seed 5"
	@exec $(BIN)/python -m tests.faults run --short $(ARGS)

faults-full: install ## Run the whole fault matrix in about three hours, resumable; then write the report
	$(BIN)/python -m tests.faults run --full
	$(BIN)/python -m tests.faults report

faults-tools: ## Install tools that shift a clock and slow a disk (Debian, root); without them their rows are skipped
	apt-get install -y -qq faketime gcc libc6-dev

pooler: ## Install PgBouncer, for its tests in make test-more (Debian, root); without it they are skipped
	apt-get install -y -qq pgbouncer

mutants: install ## Break each guarantee on purpose; the fault matrix must detect it
	@exec $(BIN)/python -m tests.faults mutants

bench: install ## Run all benchmarks with their references, about ten minutes; ARGS="read --seconds 5" runs one
	@exec $(BIN)/python -m tests.benchmarks $(or $(ARGS),all)

bench-growth: install ## Measure rates with up to ten million stored events, crash loops and more consumers
	@exec $(BIN)/python -m tests.benchmarks growth $(ARGS)

bench-peers: install ## Compare one consumer with other tools, which the first run downloads; ARGS=--kill
	@exec $(BIN)/python -m tests.benchmarks peers $(ARGS)

check: install ## Check format, lint, strict types, import rules and prose
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.prose

prose: install ## Check docstrings, names, texts and log events
	@$(BIN)/python -m tests.prose $(ARGS)

references: install ## Generate the references in schemas/ that come from the code
	@$(BIN)/python -m tests.support.references

format: install ## Format, and apply the linter's fixes
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(VENV)/made ## Lock the dependencies in pyproject.toml; ARGS=--upgrade moves to the newest versions
	$(COMPILE) pyproject.toml $(LOCKS)/build.in --all-extras --group dev -o $(LOCKS)/all.txt
	$(COMPILE) pyproject.toml -c $(LOCKS)/all.txt -o $(LOCKS)/base.txt
	$(COMPILE) pyproject.toml --extra consumer --extra reader -c $(LOCKS)/all.txt -o $(LOCKS)/services.txt
	$(COMPILE) $(LOCKS)/build.in -c $(LOCKS)/all.txt -o $(LOCKS)/build.txt
	$(COMPILE) $(PEERS)/requirements.in -o $(PEERS)/requirements.txt
	$(COMPILE) $(FOREIGN)/requirements.in -o $(FOREIGN)/requirements.txt

build: install ## Build the wheel in dist/
	$(UV) build --wheel --no-build-isolation --python $(BIN)/python

release: install ## Build, check and tag the version in pyproject.toml; ARGS=--dry-run does not tag
	@$(BIN)/python infra/release.py $(ARGS)

clean: ## Remove .venv, dist/ and the tools' caches; keep .data
	rm -rf $(VENV) dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/made: $(LOCKS)/build.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("execution-events needs Python 3.11 \
or newer; $(PYTHON) is %d.%d. Choose another: make PYTHON=python3.13" % sys.version_info[:2])'
	@echo "Creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r $<
	@touch $@

# uv is several times faster than pip, but ignores pip's configuration (mirrors, certificates).
$(VENV)/locked: $(VENV)/made $(LOCKS)/all.txt
	@echo "Installing $(LOCKS)/all.txt"
	@$(UV) pip sync --python $(BIN)/python --require-hashes $(LOCKS)/all.txt || { \
		echo "uv failed; trying pip"; $(PIP) install --require-hashes -r $(LOCKS)/all.txt; }
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml
	@echo "Installing execution-events from this tree"
	@$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
