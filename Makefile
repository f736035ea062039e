# Two commands matter: `make demo` and `make test`. Each makes its own environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NETWORK ?= net
SEEDS ?= 200
FIRST_SEED ?= 1
MINUTES ?= 10
CYCLES ?= 100
FRAMES ?= 200000
CALLS ?= 50000
SEED ?= 1
VALIDATORS ?= 4
ROUNDS ?= 5
EVERY ?= 1
STORE ?= embedded
HISTORIES ?= 10000

.PHONY: help setup demo test quick lint up down sim sim-long kill-loop chaos rights-faults agency-faults settlement-faults settlement-histories payee-faults stream-faults fuzz mutants bench lock clean

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make the environment in .venv from the locked versions

$(READY): requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## a network of four nodes, real work, a card
	$(BIN)/hansa demo all

test: lint ## everything that CI runs
	$(BIN)/python -m tests

quick: $(READY) ## the tests that take moments
	$(BIN)/python -m pytest -m "not slow and not network"

lint: $(READY) ## format, rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

up: $(READY) ## leave a network running in ./net
	$(BIN)/hansa network init $(NETWORK)
	$(BIN)/hansa network up $(NETWORK)

down: $(READY) ## stop it
	$(BIN)/hansa network down $(NETWORK)

sim: $(READY) ## more of the seeded simulation: make sim SEEDS=2000 FIRST_SEED=1
	$(BIN)/python -m tests.sim --seeds $(SEEDS) --first-seed $(FIRST_SEED)

kill-loop: $(READY) ## kill -9 under load: make kill-loop CYCLES=100 SEED=1 VALIDATORS=4
	$(BIN)/python -m tests.network.kill_loop --cycles $(CYCLES) --seed $(SEED) --validators $(VALIDATORS)

chaos: $(READY) ## kill -9, partitions and bad wires together, as root: make chaos CYCLES=100 SEED=1
	$(BIN)/python -m tests.network.chaos --cycles $(CYCLES) --seed $(SEED)

rights-faults: $(READY) ## kill -9, 30 s without a chain, a Redis that dies: make rights-faults ROUNDS=5 SEED=1 STORE=redis
	$(BIN)/python -m tests.network.rights_faults --rounds $(ROUNDS) --seed $(SEED) --store $(STORE)

agency-faults: $(READY) ## everything of agency sale killed in the middle of packages: make agency-faults ROUNDS=20 SEED=1
	$(BIN)/python -m tests.network.agency_faults --rounds $(ROUNDS) --seed $(SEED)

payee-faults: $(READY) ## orders paid from all sides while everything of payee codes is killed: make payee-faults ROUNDS=10 SEED=1
	$(BIN)/python -m tests.network.payee_faults --rounds $(ROUNDS) --seed $(SEED)

stream-faults: $(READY) ## cars charged while payers, service party, watcher and a node are killed: make stream-faults ROUNDS=5 SEED=1
	$(BIN)/python -m tests.network.stream_faults --rounds $(ROUNDS) --seed $(SEED)

settlement-histories: $(READY) ## random histories of settlement: make settlement-histories HISTORIES=10000 FIRST_SEED=1
	$(BIN)/python -m tests.settlement.histories --count $(HISTORIES) --seed $(FIRST_SEED)

settlement-faults: $(READY) ## kill -9 at every step between two programs of settlement: make settlement-faults EVERY=1
	$(BIN)/python -m tests.network.settlement_faults --every $(EVERY)

sim-long: $(READY) ## the same through the night: make sim-long MINUTES=480
	$(BIN)/python -m tests.sim --minutes $(MINUTES) $(if $(filter command environment,$(origin FIRST_SEED)),--first-seed $(FIRST_SEED))

fuzz: $(READY) ## broken frames, calls and bytes: make fuzz FRAMES=200000 CALLS=50000 SEED=1
	$(BIN)/python -m tests.fuzz --frames $(FRAMES) --calls $(CALLS) --seed $(SEED)

mutants: $(READY) ## break the product in named ways; each must be caught by its test
	$(BIN)/python -m tests.mutants

bench: $(READY) ## what a network on this machine does
	$(BIN)/hansa bench throughput

lock: ## write requirements.lock anew from setup.cfg
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[test]' 'setuptools>=80'
	.venv-lock/bin/python -m pip freeze --all --exclude hansa --exclude pip > requirements.lock
	rm -rf .venv-lock build

clean: ## remove what was made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
