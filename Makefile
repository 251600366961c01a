# What one can do here. `make` alone lists it; hack/testbed/README.md tells more about the testbed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TESTBED := $(PY) -m hack.testbed
# the folders with tests that are there
TESTS := $(wildcard tests model-servers/*/tests)
SERVERS := $(wildcard model-servers/*/pyproject.toml)
CONSTRAINTS := $(wildcard constraints.txt model-servers/*/constraints.txt)
EDITABLE := -e '.[dev,demo]' $(foreach server,$(SERVERS),-e $(dir $(server)))

.PHONY: help
help:  ## list what one can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/stamp: Makefile pyproject.toml $(SERVERS) $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	    && { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3-venv; } >&2 \
	    && $(PYTHON) -m venv --clear $(VENV); } || { echo "next: install Python's venv module (Debian: python3-venv)" >&2; exit 1; }
	@echo "installing Python packages into $(VENV)" >&2
	@flock $(VENV) $(PY) -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS)) $(EDITABLE) >&2
	@touch $@

.PHONY: venv
venv: $(VENV)/stamp  ## the virtual environment with everything that development needs

.PHONY: up
up: venv  ## bring up the testbed: a cluster with Knative, Kourier, KServe, Prometheus, a model store and Tidegate
	@$(TESTBED) up

.PHONY: deploy
deploy: venv  ## bring this working tree's code into the running testbed
	@$(TESTBED) deploy

.PHONY: status
status: venv  ## say what the testbed has and whether it is well
	@$(TESTBED) status

.PHONY: env
env: venv  ## print what a shell needs to use it: eval "$(make -s env)"
	@$(TESTBED) env

.PHONY: dump
dump: venv  ## collect objects, events and logs of the testbed into a folder
	@$(TESTBED) dump

.PHONY: down
down: venv  ## remove all that `make up` started; caches stay
	@$(TESTBED) down

.PHONY: clean-cache
clean-cache: venv  ## remove what the testbed has built and downloaded
	@$(TESTBED) clean-cache

.PHONY: demo
demo: up  ## rollouts and an A/B/n test from beginning to end, as a user would see them
	@eval "$$($(TESTBED) env)" && $(PY) -m hack.demo

.PHONY: unit
unit: venv  ## the tests that need no cluster
	@$(PY) -m pytest -q -m 'not cluster and not e2e' $(TESTS)

.PHONY: test
test: up  ## all tests, against the testbed
	@eval "$$($(TESTBED) env)" && $(PY) -m pytest $(TESTS)

.PHONY: bench-rollout
bench-rollout: venv  ## rules for rollouts side by side, on simulated requests: 10 minutes of one core
	@$(PY) -m hack.bench.rollout

.PHONY: bench-experiments
bench-experiments: venv  ## tests of several versions side by side, on simulated rewards: 5 minutes of one core
	@$(PY) -m hack.bench.experiments

.PHONY: bench-operator
bench-operator: venv  ## what judging 200 rollouts at once costs the operator: 3 minutes of one core
	@$(PY) -m hack.bench.operator

.PHONY: lint
lint: venv  ## style, types, layers
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m mypy --explicit-package-bases --exclude storage-initializer hack/testbed
	@$(PY) -m mypy --explicit-package-bases hack/chart
	@$(VENV)/bin/lint-imports

.PHONY: constraints
constraints:  ## pin the newest versions that pyproject.toml allows
	@rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	@.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(wildcard model-servers/*/constraints.txt)) $(EDITABLE)
	@{ echo '# Exact versions of everything that is installed from pyproject.toml, extras included. Made by `make constraints`.'; \
	  .venv-constraints/bin/python -m pip freeze --exclude-editable; } > constraints.txt
	@rm -rf .venv-constraints

.PHONY: crds
crds: venv  ## write crds/ from the types of the API, and the chart's copy
	@$(VENV)/bin/tidegate crds --output crds
	@$(PY) -m hack.chart

.PHONY: chart
chart: venv  ## write what is generated in charts/: definitions, dashboards, the table of values
	@$(PY) -m hack.chart

.PHONY: docs
docs: venv  ## write docs/reference.md from the types of the API and the commands
	@$(PY) -m hack.docs
