#!/usr/bin/env bash
# torch 2.13.0, CPU: the bits of a Linear's weight gradient depend on the number of threads; its output's bits don't.
#
# For many rows, the product dy.T @ x, which sums over the rows, gives different bits for different numbers of
# threads: the matrix library divides the sum among them. x @ w.T of the same matrices has equal bits. So the loss at
# step 1 can be equal for any number of threads and the runs still drift apart; a test of the forward pass can't see
# it, nor can a test with a small batch. torch.use_deterministic_algorithms(True), set here, changes nothing.
#
# Where it begins depends on the shapes and the processor: here float32 (MKL) is equal for 512 rows and differs for
# 4,096; bfloat16 (oneDNN) is equal for 512 and differs for 8,192. Without AVX512-BF16 the bfloat16 part is
# skipped.
#
# Output seen (Linux x86-64, an Intel Xeon with AVX-512 and AMX; Python 3.11; x of 64 columns, dy of 256):
#   float32: 512 rows: 1 result(s) for dy.T @ x, 1 for x @ w.T with 1 to 4 threads
#   float32: 4096 rows: 4 result(s) for dy.T @ x, 1 for x @ w.T with 1 to 4 threads
#   bfloat16: 512 rows: 1 result(s) for dy.T @ x, 1 for x @ w.T with 1 to 4 threads
#   bfloat16: 8192 rows: 3 result(s) for dy.T @ x, 1 for x @ w.T with 1 to 4 threads
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import torch

torch.use_deterministic_algorithms(True)


def results(product):
    seen = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        result = product()
        if not any(torch.equal(result, earlier) for earlier in seen):
            seen.append(result)
    return len(seen)


def check(dtype, rows, differs):
    torch.manual_seed(0)
    x, w, dy = (torch.randn(shape).to(dtype) for shape in ((rows, 64), (256, 64), (rows, 256)))
    gradient, output = results(lambda: dy.T @ x), results(lambda: x @ w.T)
    name = str(dtype).removeprefix("torch.")
    print(f"{name}: {rows} rows: {gradient} result(s) for dy.T @ x, {output} for x @ w.T with 1 to 4 threads")
    assert output == 1
    assert (gradient > 1) == differs


check(torch.float32, 512, differs=False)
check(torch.float32, 4096, differs=True)
if torch.cpu._is_avx512_bf16_supported():
    check(torch.bfloat16, 512, differs=False)
    check(torch.bfloat16, 8192, differs=True)
else:
    print("bfloat16: skipped, not in this processor's hardware")
EOF
