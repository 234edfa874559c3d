# `make demo` and `make test` need nothing but Python 3.11 to 3.14, or uv. `make help` lists the targets.

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
# Two tests at once, as most of them wait for processes; WORKERS= runs one after the other.
WORKERS ?= -n 2 --dist worksteal
SEEDS ?= 1000
KILLS ?= 1000
# Programs that tests talk to.
PROGRAMS := curl redis-server rabbitmq-server iproute2

.DEFAULT_GOAL := help
.PHONY: help setup venv programs agents suite beside demo test check format cover kills night-kills model-kills
.PHONY: relay-kills cable scenarios sim conformance bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## what omnid needs to run, in .venv
	@python=$$(sh scripts/python.sh) && $$python scripts/setup.py runtime

venv: ## what its tests and checks need too
	@python=$$(sh scripts/python.sh) && $$python scripts/setup.py dev

programs:
	@sh scripts/packages.sh $(PROGRAMS) || echo "The tests that need them will fail." >&2

agents: venv
	@sh scripts/agents.sh || echo "The tests that need them will fail." >&2

suite:
	@sh scripts/conformance.sh || echo "The test that needs it will fail." >&2

demo: setup ## twelve real tasks, a killed daemon, and a count of what was lost
	@.venv/bin/omnictl demo

test: venv programs agents suite ## all tests, with the gate on coverage
	@rm -rf .coverage
	@mkdir -p .coverage
	@$(PY) -m coverage run -m pytest $(WORKERS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report --format=total >/dev/null || { $(PY) -m coverage report; exit 1; }

check: venv ## lint, format, types, floors, tidiness
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/pyright --warnings
	@.venv/bin/lint-imports
	@$(PYTEST) tests/test_tidy.py

format: venv ## lets ruff format and mend what it can
	@.venv/bin/ruff format
	@.venv/bin/ruff check --fix

cover: venv agents suite ## all tests, then what they don't reach
	@rm -rf .coverage
	@mkdir -p .coverage
	@$(PY) -m coverage run -m pytest $(WORKERS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report

kills: venv ## the kill test at length: KILLS=1000
	@OMNID_KILLS=$(KILLS) $(PYTEST) -s -p no:cacheprovider --timeout=3600 tests/e2e/test_kill.py

night-kills: KILLS = 100
night-kills: venv ## the kill test of agents at length: KILLS=100
	@OMNID_NIGHT_KILLS=$(KILLS) $(PYTEST) -s -p no:cacheprovider --timeout=3600 tests/e2e/test_night_kills.py

model-kills: KILLS = 100
model-kills: venv ## the kill test of models at length: KILLS=100
	@OMNID_MODEL_KILLS=$(KILLS) $(PYTEST) -s -p no:cacheprovider --timeout=3600 tests/e2e/test_model_kills.py

cable: venv programs ## a pulled cable by the times of the default config, which takes four minutes
	@OMNID_CABLE_SCALE=1 $(PYTEST) -s -p no:cacheprovider tests/e2e/test_cable.py

relay-kills: KILLS = 500
relay-kills: venv ## the daemon killed in the middle of what MCP clients ask: KILLS=500
	@OMNID_RELAY_KILLS=$(KILLS) $(PYTEST) -s -p no:cacheprovider --timeout=7200 tests/e2e/test_relay_kills.py

scenarios: venv programs ## the four ways to be offline on both brokers, 2,000 commands each: SEED=n to repeat
	@$(PY) -m tests.scenarios $(if $(SEED),--seed $(SEED))

sim: venv ## the simulation: SEEDS=1000, or SEED=n to replay one
	@$(PY) -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

conformance: venv suite ## the public conformance suite of MCP against /mcp of a daemon
	@$(PY) -m tests.conformance

beside: venv
	@sh scripts/beside.sh proxy || echo "The bench of models will break off." >&2
	@sh scripts/beside.sh celery || echo "The bench of links will break off." >&2

bench: venv programs beside ## the figures of docs/
	@$(PY) -m bench

LOCK := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command "make lock" pyproject.toml

lock: ## newest versions into the locks, for all platforms (needs uv)
	@$(LOCK) -o requirements.txt
	@$(LOCK) --extra models -c requirements.txt -o requirements-models.txt
	@$(LOCK) --extra models --extra local --extra redis --extra rabbitmq --group dev -c requirements-models.txt -o requirements-dev.txt
	@$(LOCK) --extra local -c requirements-dev.txt -o requirements-local.txt
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --custom-compile-command "make lock" --group build -c requirements-dev.txt \
		-o requirements-build.txt
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --no-strip-extras --custom-compile-command "make lock" tests/agents/requirements.in \
		-o tests/agents/requirements.txt
	@echo 'litellm[proxy]>=1.106,<2' | uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" - \
		-o bench/requirements-proxy.txt
	@printf 'celery[redis]>=5.5,<6\nredis[hiredis]\n' | uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" - \
		-o bench/requirements-celery.txt

clean: ## removes all that the targets above made
	rm -rf tests/agents/node_modules tests/conformance/node_modules
	rm -rf .venv .venv.lock .venv-clients .venv-proxy .venv-celery .coverage .hypothesis .import_linter_cache .pytest_cache .ruff_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
