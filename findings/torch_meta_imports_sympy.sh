#!/usr/bin/env bash
# torch 2.13.0: the first operation on a tensor of the "meta" device imports sympy and torch._dynamo.
#
# A meta tensor has a shape and no data, so a forward pass on it looks like the cheapest way to count parameters or
# find shapes. But its first arithmetic operation, even a multiplication by 2, imports some 800 modules, more than a
# second of processor time. Making meta tensors and modules imports none, and the same pass on the CPU imports none.
# (Making an optimizer imports them too.)
#
# Output seen (Python 3.11; sympy 1.14.0, mpmath 1.3.0; the totals depend on the versions):
#   import torch: sympy 0, mpmath 0, torch._dynamo 0 modules
#   forward pass on cpu: sympy 0, mpmath 0, torch._dynamo 0 modules
#   module and input on meta: sympy 0, mpmath 0, torch._dynamo 0 modules
#   multiplication on meta: sympy 419, mpmath 51, torch._dynamo 93 modules
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import sys

import torch
from torch import nn
from torch.nn import functional as F


def report(after):
    counts = {
        package: sum(name == package or name.startswith(package + ".") for name in sys.modules)
        for package in ("sympy", "mpmath", "torch._dynamo")
    }
    print(f"{after}:", ", ".join(f"{name} {count}" for name, count in counts.items()), "modules")
    return counts


nothing = {"sympy": 0, "mpmath": 0, "torch._dynamo": 0}
assert report("import torch") == nothing
F.gelu(nn.LayerNorm(8)(torch.ones(2, 8))) * 2
assert report("forward pass on cpu") == nothing
nn.LayerNorm(8, device="meta")
x = torch.ones(2, 8, device="meta")
assert report("module and input on meta") == nothing
x * 2
assert min(report("multiplication on meta").values()) > 10
EOF
