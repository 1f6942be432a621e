# A fresh machine needs Python 3.11 or newer and make; whatever needs .venv makes it first.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOCKS := infra/locks
PEERS := tests/benchmarks/peers
UV := $(BIN)/uv --quiet
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command "make lock" $(ARGS)

.PHONY: help install run test test-more faults faults-full faults-tools mutants bench bench-growth bench-peers check format lock build clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed ## Make .venv with every extra and the tools; PYTHON=python3.13 chooses the interpreter

# exec: make signals the command itself. After Ctrl-C make waits until the command has stopped in
# order; then it ends by SIGINT too, which a shell shows as 130.
run: install ## Kafka, PostgreSQL and all services on this machine, data in .data; ARGS=--help
	@exec $(BIN)/execution-events dev --data-dir .data $(ARGS)

test: install ## All tests; ARGS="tests/unit -k fold"
	@exec $(BIN)/pytest $(ARGS)

test-more: install ## What is too long for every merge: the tests marked "more", the long faults
	$(BIN)/pytest -m more $(ARGS)
	$(BIN)/python -m tests.faults run --long

faults: install ## Each fault of the matrix once, less the long ones, against the real servers; ARGS="--row scale --seed 5"
	@exec $(BIN)/python -m tests.faults run --short $(ARGS)

faults-full: install ## The whole matrix: about three hours, and goes on where it was stopped; then the report
	$(BIN)/python -m tests.faults run --full
	$(BIN)/python -m tests.faults report

faults-tools: ## On Debian, as root: what moves a worker's clock and slows its disk; rows without it are left out
	apt-get install -y -qq faketime gcc libc6-dev

mutants: install ## Break each guarantee on purpose: the matrix must notice
	@exec $(BIN)/python -m tests.faults mutants

bench: install ## Figures against references, about ten minutes; ARGS="read --seconds 5" runs one of them
	@exec $(BIN)/python -m tests.benchmarks $(or $(ARGS),all)

bench-growth: install ## The rates with up to ten million events stored, in crash loops, with more consumers
	@exec $(BIN)/python -m tests.benchmarks growth $(ARGS)

bench-peers: install ## One consumer beside what others use, which the first run downloads; ARGS=--kill
	@exec $(BIN)/python -m tests.benchmarks peers $(ARGS)

check: install ## Format, lint, strict types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Format, and repair what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(VENV)/made ## Lock what pyproject.toml asks for; ARGS=--upgrade moves to the newest versions
	$(COMPILE) pyproject.toml $(LOCKS)/build.in --all-extras --group dev -o $(LOCKS)/all.txt
	$(COMPILE) pyproject.toml -c $(LOCKS)/all.txt -o $(LOCKS)/base.txt
	$(COMPILE) pyproject.toml --extra consumer --extra reader -c $(LOCKS)/all.txt -o $(LOCKS)/services.txt
	$(COMPILE) $(LOCKS)/build.in -c $(LOCKS)/all.txt -o $(LOCKS)/build.txt
	$(COMPILE) $(PEERS)/requirements.in -o $(PEERS)/requirements.txt

build: install ## The wheel, in dist/
	$(UV) build --wheel --no-build-isolation --python $(BIN)/python

clean: ## Remove .venv, dist/ and the tools' caches; .data stays
	rm -rf $(VENV) dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/made: $(LOCKS)/build.txt
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("execution-events needs Python 3.11 \
or newer, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.13" % sys.version_info[:2])'
	@echo "Making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r $<
	@touch $@

# uv is several times faster than pip, but reads none of pip's configuration: mirrors, certificates.
$(VENV)/locked: $(VENV)/made $(LOCKS)/all.txt
	@echo "Installing $(LOCKS)/all.txt"
	@$(UV) pip sync --python $(BIN)/python --require-hashes $(LOCKS)/all.txt || { \
		echo "uv could not install it; trying pip"; $(PIP) install --require-hashes -r $(LOCKS)/all.txt; }
	@touch $@

$(VENV)/installed: $(VENV)/locked pyproject.toml
	@echo "Installing execution-events from this tree"
	@$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
