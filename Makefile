# The commands that stay stable; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
STACK ?= local
export STACK

BOOTSTRAP = $(PYTHON) -m fleetfoot.host.bootstrap
BIN = .venv/bin

.PHONY: help up down check-host lint test test-long venv host

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

check-host: ## Tell whether this host can run the local stack, and what would change; changes nothing
	@$(BOOTSTRAP) --check-only

venv:
	@$(BOOTSTRAP) --venv-only

host:
	@$(BOOTSTRAP)
	@$(BIN)/ansible-playbook -i localhost, playbooks/host.yml
	@touch $(BIN)/../fleetfoot-host

up: host ## Bring up the stack (host set-up included); running it again continues or changes nothing
	@$(BIN)/fleetfoot up --stack $(STACK)

down: venv ## Remove the stack and what it left on this host; packages and caches stay
	@$(BIN)/fleetfoot down --stack $(STACK) --yes

lint: venv ## Lint all there is
	@$(BIN)/pytest tests/lint

test: host ## The whole test suite, as CI runs it
	@$(BIN)/pytest -m "not long" --numprocesses 3 --durations 25

test-long: host ## Soak and rehearsals at large counts
	@$(BIN)/pytest -m long
