PYTHON ?= python
export PYTHONDONTWRITEBYTECODE =

.PHONY: check test sim bench docs fix lint

lint:
	ruff format --check .
	ruff check .
	$(PYTHON) -m mypy
	lint-imports

check: lint            ## under a minute: style, types, contracts, fast tests, fixed simulator seeds
	$(PYTHON) -m pytest -q -n 3 -m "not slow"

test:                  ## everything
	$(PYTHON) -m pytest -q -n 2

sim:                   ## fresh seeds; SEED=… replays one, RUNS=… sets how many
	$(PYTHON) -m kedge.sim $(if $(SEED),--seed $(SEED)) $(if $(RUNS),--runs $(RUNS))

bench:                 ## each measurement beside its yardstick, as ratios
	$(PYTHON) -m benchmarks

docs:                  ## the runnable parts of the documents
	$(PYTHON) -m pytest -q tests/test_docs.py tests/docs

fix:
	ruff check --fix .
	ruff format .
