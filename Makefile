# What a developer types. Each target uses the environment that is active, or .venv where there is one.
BIN := $(if $(wildcard .venv/bin/python),.venv/bin/,)

.PHONY: check test test-oldest test-slow stress test-gpu cover bench bench-loss bench-peers bench-growth

check:
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)mypy

test:
	$(BIN)python -m pytest

# The lowest versions that pyproject.toml allows, in an environment of their own
test-oldest:
	python3 -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --resolution lowest-direct --python .venv-oldest/bin/python -e '.[dev]'
	.venv-oldest/bin/python -m pytest $(ARGS)

test-slow:
	$(BIN)python -m pytest -n 0 -m slow

stress:
	$(BIN)python -m pytest -m 'stress or promise'

test-gpu:
	$(BIN)python -m pytest -n 0 -m gpu

cover:
	$(BIN)python -m pytest --cov --cov-report=term-missing:skip-covered

# The table of every figure and its goal, about five minutes; make bench ARGS="only=sampling threads=2"
bench:
	$(BIN)python benchmarks/bench.py $(ARGS)

bench-loss:
	$(BIN)python benchmarks/bench.py only=loss $(ARGS)

# make bench-peers ARGS="nanogpt=../nanoGPT"
bench-peers:
	$(BIN)python benchmarks/peers.py $(ARGS)

bench-growth:
	$(BIN)python benchmarks/growth.py $(ARGS)
