#!/usr/bin/env bash
# safetensors 0.8.0: saving the same tensors and the same metadata twice gives different bytes.
#
# `save` writes the keys of `metadata` in the order of a hash map with a random seed, not in the order of the dict.
# With one key, or none, every file is equal; with several, a digest of the file is no name for its content. Tensors
# have a fixed order.
#
# Output seen (Python 3.11; the second count differs from run to run):
#   1 key: 1 different digest(s) in 200 saves
#   5 keys: 98 different digest(s) in 200 saves (of 120 orders)
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import hashlib

import numpy as np
from safetensors.numpy import save

tensors = {"b": np.zeros(2, np.float32), "a": np.ones(3, np.float32)}


def digests(metadata):
    return len({hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(200)})


one, five = digests({"step": "1"}), digests({key: "1" for key in "vwxyz"})
print(f"1 key: {one} different digest(s) in 200 saves")
print(f"5 keys: {five} different digest(s) in 200 saves (of 120 orders)")
assert one == 1
assert five > 1
EOF
