# Needs an environment with `pip install -e '.[dev]'`. `make check` is what CI runs.
.PHONY: check lint format types test

check:
	@.ci/check

lint:
	ruff check .

format:
	ruff format .

types:
	mypy

test:
	OMP_NUM_THREADS=1 python -m pytest -n 2
