# Every target does its own set-up on a fresh machine: a virtual environment with pinned packages.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: quickstart test check test-slurm

quickstart: .venv/installed  ## train a ladder of small GPTs, fit the law, write the report
	$(PY) -m experiments.sweep run configs/quick.toml || [ $$? -eq 1 ]  # 1: a run failed; report it
	$(PY) -m experiments.circuits runs/quick
	$(PY) -m experiments.samples runs/quick || [ $$? -eq 1 ]  # 1: some weights are missing
	$(PY) -m analysis.report runs/quick

test: .venv/installed  ## the tests that need neither a cluster nor a GPU
	$(PY) -m pytest -n 2 -m "not slow and not gpu and not slurm and not small_slurm"

check: .venv/installed  ## lint, format, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

test-slurm: .venv/installed  ## a real Slurm on this machine (Debian, root): start, test, stop
	$(PY) tests/slurm/cluster.py start
	$(PY) -m pytest tests/slurm -n 3 -m slurm; code=$$?; \
	  $(PY) tests/slurm/cluster.py start --max-array 4 --no-accounting && \
	  $(PY) -m pytest tests/slurm -n 3 -m small_slurm; code=$$((code + $$?)); \
	  $(PY) tests/slurm/cluster.py stop --purge && exit $$code

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
