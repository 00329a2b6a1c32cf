# What a developer types. Each target uses the environment that is active, or .venv where there is one.
BIN := $(if $(wildcard .venv/bin/python),.venv/bin/,)

# The vector widths to compile for: this processor's and, on x86-64, AVX2's.
TARGETS := native $(if $(filter x86_64,$(shell uname -m)),x86-64-v3)
NATIVE := microgpt_cli/engines/cpu

.PHONY: check check-c sanitize test test-oldest test-slow stress test-gpu cover bench bench-loss bench-peers bench-growth docs

check: check-c
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)mypy

# Every C file for each element type, with warnings as errors; skipped where there is no compiler.
check-c:
	@command -v $(firstword $(CC)) >/dev/null || { echo "check-c: skipped, no C compiler ($(CC))"; exit 0; }; \
	compile() { $(CC) -O1 -fopenmp -Wall -Wextra -Wshadow -Wvla -Werror -c -o /dev/null "$$@"; }; \
	for target in $(TARGETS); do \
	  for file in $(NATIVE)/*.c; do \
	    for type in FLOAT32 BFLOAT16; do compile -march=$$target -D$$type $$file || exit 1; done; done; \
	  for file in layer_ops decode; do compile -march=$$target -DFLOAT16 $(NATIVE)/$$file.c || exit 1; done; done

# The tests of the C code with AddressSanitizer and UndefinedBehaviorSanitizer, with GCC. A violation ends the tests.
# ASan's runtime must be loaded before Python. Leaks are not checked, for Python and torch free little at exit. The
# sanitized libraries stay in the cache under hashes of their own.
sanitize: export MICROGPT_CFLAGS = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover
sanitize: export ASAN_OPTIONS = detect_leaks=0:allocator_may_return_null=1
sanitize: export CC = gcc
sanitize:
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" $(BIN)python -m pytest -n 0 \
	  tests/test_native.py tests/test_native_decoding.py tests/test_cpu_engine.py tests/test_optimizers.py $(ARGS)

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

# The site in site/; its pages open from the disk
docs:
	$(BIN)mkdocs build --strict
