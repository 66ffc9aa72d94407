# Every command does its own set-up first (scripts/setup), which takes no time once it is done.
# ARGS is passed on: make demo ARGS=--exit, make test ARGS="-k experiments".
PYTHON := .venv/bin/python
ARGS ?=
BENCH_bench-router := load_tests.serving.bench_router
BENCH_bench-ranking := load_tests.serving.bench_ranking
BENCH_bench-e2e := load_tests.serving.bench_e2e
BENCH_bench-overload := load_tests.serving.bench_overload
BENCH_bench-catalogue := load_tests.serving.bench_catalogue
BENCH_bench-memory := load_tests.serving.bench_memory
BENCH_bench-assignment := load_tests.experiments.bench_assignment
BENCH_bench-experiments := load_tests.experiments.bench_experiments
BENCH_bench-off-policy := load_tests.experiments.bench_off_policy
BENCH_bench-interleaving := load_tests.experiments.bench_interleaving
BENCH_bench-training := load_tests.peers.bench_training
BENCH_bench-models := models.research.bench_models
BENCHES := $(patsubst BENCH_%,%,$(filter BENCH_bench-%,$(.VARIABLES)))

.PHONY: help setup venv demo test lint lines protos constraints figures clean $(BENCHES)
.NOTPARALLEL:

help:  ## this list
	@grep -E '^[a-z$$()A-Z-]+:.*  ## ' $(MAKEFILE_LIST) | sed 's/\$$(BENCHES)/bench-*/; s/:.*  ## /\t/' | expand -t 14

setup:  ## install everything that demo and test need
	@scripts/setup test

venv:  ## install what is needed to use it
	@scripts/setup demo

demo: venv  ## train, serve and measure an experiment on real data; ARGS=--exit ends by itself
	@$(PYTHON) -m load_tests.demo $(ARGS)

test: setup lint  ## lint, then every test with coverage; ARGS goes to pytest
	@scripts/test $(ARGS)

lint: venv  ## ruff, mypy and the import rule
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo --no-cache

lines:  ## lines of code by folder, product and tests apart
	@python3 scripts/lines.py

protos: venv  ## generate the Python modules of protos/ anew
	@$(PYTHON) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		protos/tandem/v1/*.proto

constraints: venv  ## pin the newest versions of the whole dependency closure
	@echo uv | .venv/bin/uv pip compile --quiet --upgrade --no-annotate --no-header --extra dev \
		pyproject.toml - --output-file constraints.txt

$(BENCHES): venv  ## a benchmark, as ratios measured in one run
	@$(PYTHON) -m $(BENCH_$@) $(ARGS)

figures: venv  ## docs/figures.md, from what the benchmarks have saved
	@$(PYTHON) -m load_tests.figures_page

clean:  ## delete caches and everything that runs have written; .venv stays
	@rm -rf run load_tests/results .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
