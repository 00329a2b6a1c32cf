#!/usr/bin/env bash
# pyarrow 26.0.1: ParquetFile.iter_batches holds the bytes of the whole file, not of one row group.
#
# pre_buffer is True by default: all row groups are read ahead at once, and their buffers stay until the iterator ends.
# A loop over small batches therefore needs memory for the whole (compressed) column. With pre_buffer=False it needs
# one row group.
#
# Output seen (Python 3.11; a file of 64.0 MB in 80 row groups, batches of 1,000 rows):
#   default: at most 64.0 MB allocated
#   pre_buffer=False: at most 0.8 MB allocated
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyarrow==26.0.1 numpy==2.4.6
venv/bin/python - <<'EOF'
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

numbers = np.random.default_rng(0).integers(0, 2**62, 8_000_000)
table = pa.table({"number": numbers})
pq.write_table(table, "numbers.parquet", row_group_size=100_000, compression="none", use_dictionary=False)
del table, numbers
size = os.path.getsize("numbers.parquet")
highest = {}
for name, options in (("default", {}), ("pre_buffer=False", {"pre_buffer": False})):
    before = pa.total_allocated_bytes()
    highest[name] = 0
    for batch in pq.ParquetFile("numbers.parquet", **options).iter_batches(batch_size=1000):
        highest[name] = max(highest[name], pa.total_allocated_bytes() - before)
    del batch
    print(f"{name}: at most {highest[name] / 1e6:.1f} MB allocated")
assert highest["default"] > 0.9 * size
assert highest["pre_buffer=False"] < 0.1 * size
EOF
