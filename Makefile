# The commands of this repository. Each sets up what it needs in .venv (see .ci/bootstrap.py).

PYTHON ?= python3
UV ?= uv
BIN := .venv/bin
BOOTSTRAP := $(PYTHON) .ci/bootstrap.py
# A worker starts a PostgreSQL of its own: past some number they only wait for the disk. More of
# them than cores gain nothing: tried.
PYTEST_WORKERS ?= --numprocesses auto --maxprocesses 8 --dist loadfile --max-worker-restart 0
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate

.PHONY: help
help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

.PHONY: run
run:  ## a daemon with its own database and authorization server, ready to click through
	@$(BOOTSTRAP) run
	@$(BIN)/tokenward demo

.PHONY: test
test:  ## all tests (one file: make test TESTS=tests/unit/...)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m pytest $(PYTEST_WORKERS) $(TESTS)

.PHONY: check
check: lint test  ## what must hold before a commit: lint, types, imports, tests

.PHONY: lint
lint:  ## everything of check but the tests
	@$(BOOTSTRAP) dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format:  ## format the code and repair what ruff can
	@$(BOOTSTRAP) dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: bench
bench:  ## the measurements of bench/, on this machine
	@$(BOOTSTRAP) dev
	$(BIN)/python -m bench

.PHONY: kill-test
kill-test: KILLS ?= 300
kill-test:  ## kill the daemon at named moments and at random, account for every token (KILLS=300)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns kill --kills $(KILLS)

.PHONY: simulate
simulate: SEEDS ?= 10000
simulate: FIRST ?= 0
simulate:  ## the refresh protocol on a simulated fleet, one run a seed (SEEDS=10000 FIRST=0)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS)

.PHONY: simulate-crashes
simulate-crashes:  ## one refresh, cut at every await in turn, and at every pair of awaits
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.simulation --crashes

.PHONY: simulate-mutants
simulate-mutants:  ## the first seed that catches each known-bad protocol
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.simulation --mutants

.PHONY: race-test
race-test: REPLICAS ?= 10
race-test: CONNECTIONS ?= 200
race-test: ROUNDS ?= 10
race-test: PAUSED ?= 0
race-test:  ## replicas that refresh the same at once (REPLICAS=10 CONNECTIONS=200 ROUNDS=10 PAUSED=0)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns race --replicas $(REPLICAS) --connections $(CONNECTIONS) \
		--rounds $(ROUNDS) --paused $(PAUSED) $(if $(filter-out 0,$(PAUSED)),--request-timeout 5)

.PHONY: database-test
database-test: STEP ?= 1
database-test: FAILOVERS ?= 5
database-test:  ## outages, failovers, and every request to the database failed once (STEP=1 FAILOVERS=5)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns database --step $(STEP) --failovers $(FAILOVERS)

.PHONY: herd-test
herd-test: CONNECTIONS ?= 10000
herd-test: RATE ?= 200
herd-test:  ## tokens that all end at one moment, an outage, a crowd (CONNECTIONS=10000 RATE=200)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns herd --connections $(CONNECTIONS) --rate $(RATE)

.PHONY: rolling-test
rolling-test: ROUNDS ?= 5
rolling-test:  ## replace three replicas one by one while callers read (ROUNDS=5)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns rolling --rounds $(ROUNDS)

.PHONY: stop-test
stop-test: STOPS ?= 200
stop-test:  ## SIGTERM in the middle of refreshes, again and again (STOPS=200)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns stops --stops $(STOPS)

.PHONY: key-test
key-test: CONNECTIONS ?= 1000
key-test:  ## a new encryption key for two replicas that refresh all the time (CONNECTIONS=1000)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns keys --connections $(CONNECTIONS)

.PHONY: slow-test
slow-test: SOCKETS ?= 2000
slow-test: ROUNDS ?= 3
slow-test:  ## slow and half-open sockets at every listener, beside healthy callers (SOCKETS=2000)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.campaigns slow --sockets $(SOCKETS) --rounds $(ROUNDS)

.PHONY: fuzz
fuzz: TARGET ?= all
fuzz: SECONDS ?= 60
fuzz:  ## fuzz what reads foreign bytes, guided by coverage (TARGET=token_reply SECONDS=60)
	@$(BOOTSTRAP) fuzz
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS)

.PHONY: drill
drill:  ## 24 minutes of outages, watched by Prometheus: which alerts fire, which clear
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.deploy.drill

.PHONY: resting
resting: SECONDS ?= 60
resting:  ## memory and CPU of each role while nothing is asked of it (SECONDS=60)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.deploy.resting --seconds $(SECONDS)

.PHONY: image-replay
image-replay: SECONDS ?= 60
image-replay:  ## what the Dockerfile says, without Docker: build, run, measure (root; SECONDS=60)
	@$(BOOTSTRAP) dev
	$(BIN)/python -m tests.deploy.image --seconds $(SECONDS)

.PHONY: lock
lock:  ## newest versions into requirements/*.lock (needs uv)
	$(COMPILE) --upgrade --extra demo --group build pyproject.toml -o requirements/run.lock
	$(COMPILE) --upgrade --extra demo --extra tracing --group build --group test --group check \
		--constraint requirements/run.lock pyproject.toml -o requirements/dev.lock
	$(COMPILE) --upgrade --extra demo --extra tracing --group build --group test --group check --group fuzz \
		--constraint requirements/dev.lock pyproject.toml -o requirements/fuzz.lock
	$(COMPILE) --constraint requirements/run.lock pyproject.toml -o requirements/image.lock
	$(COMPILE) --constraint requirements/run.lock --group build -o requirements/build.lock

.PHONY: clean
clean:  ## remove everything that the commands above have made here (not the demonstration's data)
	rm -rf .venv .cache .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
