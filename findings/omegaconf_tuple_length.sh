#!/usr/bin/env bash
# omegaconf 2.3.1: a field of type Tuple[float, float] accepts lists of any length, and comes back as a list.
#
# A structured config refuses a wrong type (betas=[x]) and an unknown key, but of Tuple[float, float] it keeps only the
# first element type: one value, none and three are accepted, and OmegaConf.to_object gives a list, not a tuple.
#
# Output seen (Python 3.11):
#   [0.9]: [0.9]
#   []: []
#   [0.9, 0.95, 1.0]: [0.9, 0.95, 1.0]
#   ['x', 0.95]: ValidationError
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check omegaconf==2.3.1
venv/bin/python - >seen <<'EOF'
from dataclasses import dataclass
from typing import Tuple

from omegaconf import OmegaConf
from omegaconf.errors import ValidationError


@dataclass
class Optimizer:
    betas: Tuple[float, float] = (0.9, 0.95)


for value in ([0.9], [], [0.9, 0.95, 1.0], ["x", 0.95]):
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Optimizer), {"betas": value})
        print(f"{value}: {OmegaConf.to_object(merged).betas}")
    except ValidationError:
        print(f"{value}: ValidationError")
EOF
cat seen
diff seen - <<'EOF'
[0.9]: [0.9]
[]: []
[0.9, 0.95, 1.0]: [0.9, 0.95, 1.0]
['x', 0.95]: ValidationError
EOF
