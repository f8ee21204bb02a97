# Everything here needs make and Python 3.11 or newer, nothing else. `make` alone lists what there is.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
# What an installation follows from: when one of these changes, the next command that needs it installs again.
PROJECT := pyproject.toml requirements.lock
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check -c requirements.lock

# ONNX Runtime's official builds report sessions and models to their maker unless this is set before it is imported.
export ORT_DISABLE_TELEMETRY := 1

.DELETE_ON_ERROR:
.PHONY: help install demo test lint format bench bench-catalogue schema lock images clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Longwave needs Python 3.11 or newer, and "$(PYTHON)" is not that. Name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.installed: $(PROJECT) | $(BIN)/pip
	$(PIP_INSTALL) -e '.[cpu,train,demo]'
	@touch $@

.venv/dev.installed: .venv/demo.installed
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

install: .venv/dev.installed ## Everything, into .venv (PYTHON=... chooses the interpreter)

demo: .venv/demo.installed ## Train on real data, serve, replay customers; stays up (ARGS=--once: exits)
	$(BIN)/longwave demo $(ARGS)

test: lint ## Lint, then all tests (ARGS='-k words' picks some)
	$(BIN)/pytest -n 2 $(ARGS)

lint: .venv/dev.installed ## Style, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.installed ## Format the code and apply ruff's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/demo.installed ## Measure the service; writes loadtests/results/latest.json
	$(BIN)/python -m loadtests.bench $(ARGS)

bench-catalogue: .venv/demo.installed ## Measure large catalogues; writes loadtests/results/catalogue.json
	$(BIN)/python -m loadtests.catalogue $(ARGS)

schema: .venv/demo.installed ## Write again what is generated from the code: schema/*.json, docs/settings.md
	$(BIN)/python -m app.runtime.manifest
	$(BIN)/python -m app.main
	$(BIN)/python -m app.settings

# A resolution from scratch. Build tags such as +cpu are cut off: which build of a version to take is the machine's matter.
lock: | $(BIN)/pip ## Write requirements.lock again, with the newest releases that pyproject.toml allows
	mkdir -p build
	$(BIN)/pip install --quiet --dry-run --ignore-installed --report build/lock.json -e '.[cpu,gpu,train,demo,dev]'
	$(BIN)/python -c 'import json; found = [p["metadata"] for p in json.load(open("build/lock.json"))["install"]]; \
	  pins = [p["name"] + "==" + p["version"].split("+")[0] for p in found if p["name"] != "longwave"]; \
	  print(*sorted(pins, key=str.lower), sep="\n")' > build/requirements.lock
	mv build/requirements.lock requirements.lock

images: ## Build the images longwave:serve, :archive and :train (ARGS are docker build's)
	docker build $(ARGS) --target serve --tag longwave:serve .
	docker build $(ARGS) --target archive --tag longwave:archive .
	docker build $(ARGS) --target train --tag longwave:train .

clean: ## Remove .venv and everything that the tools left, but no data and no bundles
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
