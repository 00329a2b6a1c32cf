# What a developer types. Each target uses the environment that is active, or .venv where there is one.
BIN := $(if $(wildcard .venv/bin/python),.venv/bin/,)

.PHONY: check test test-slow stress test-gpu cover

check:
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)mypy

test:
	$(BIN)python -m pytest

test-slow:
	$(BIN)python -m pytest -n 0 -m slow

stress:
	$(BIN)python -m pytest -m 'stress or promise'

test-gpu:
	$(BIN)python -m pytest -n 0 -m gpu

cover:
	$(BIN)python -m pytest --cov --cov-report=term-missing:skip-covered
