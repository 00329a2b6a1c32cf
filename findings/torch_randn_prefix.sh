#!/usr/bin/env bash
# torch 2.13.0, CPU: with one seed, randn(15) and randn(16) have no number in common; rand(15) is a prefix of rand(16).
#
# From 16 numbers on, normal_ fills a contiguous tensor with uniform numbers first and transforms them in blocks of 16;
# below 16, and for a tensor that is not contiguous, it draws one number after another, and from float64. So the size
# and the memory layout of a tensor, not only the seed, decide its initial values. A last, incomplete block is drawn
# again: the first 24 numbers of randn(24) and randn(32) share 8.
#
# Output seen (Python 3.11, x86-64):
#   rand(15), rand(16): 15 of 15 equal
#   randn(15), randn(16): 0 of 15 equal
#   randn(24), randn(32): 8 of 24 equal
#   randn(32), a column of 32: 0 of 32 equal
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - >seen <<'EOF'
import torch


def compare(name, first, second):
    torch.manual_seed(0)
    a = first()
    torch.manual_seed(0)
    b = second()[: len(a)]
    print(f"{name}: {(a == b).sum().item()} of {len(a)} equal")


compare("rand(15), rand(16)", lambda: torch.rand(15), lambda: torch.rand(16))
compare("randn(15), randn(16)", lambda: torch.randn(15), lambda: torch.randn(16))
compare("randn(24), randn(32)", lambda: torch.randn(24), lambda: torch.randn(32))
compare("randn(32), a column of 32", lambda: torch.randn(32), lambda: torch.empty(32, 2)[:, 0].normal_())
EOF
cat seen
diff seen - <<'EOF'
rand(15), rand(16): 15 of 15 equal
randn(15), randn(16): 0 of 15 equal
randn(24), randn(32): 8 of 24 equal
randn(32), a column of 32: 0 of 32 equal
EOF
