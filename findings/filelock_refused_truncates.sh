#!/usr/bin/env bash
# filelock 3.25.0: a refused acquire(timeout=0) empties the lock file of the process that holds the lock.
#
# A second FileLock opens the file with O_TRUNC before it asks for the lock. So an attempt that fails with Timeout
# sets the modification time, and erases what the holder wrote there, for example its process id. Release then
# deletes the file. filelock 4.3.1 does none of the three.
#
# Output seen (Linux, Python 3.11):
#   3.25.0 Timeout; content '' modified; after release: deleted
#   4.3.1 Timeout; content 'holder 42' unmodified; after release: kept
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
cat >attempt.py <<'EOF'
import os

import filelock

lock = filelock.FileLock("run.lock")
with lock:
    with open("run.lock", "r+") as file:
        file.write("holder 42")
    os.utime("run.lock", (1, 1))
    try:
        filelock.FileLock("run.lock").acquire(timeout=0)
        outcome = "acquired"
    except filelock.Timeout:
        outcome = "Timeout"
    modified = "unmodified" if os.stat("run.lock").st_mtime == 1 else "modified"
    with open("run.lock") as file:
        content = file.read()
left = "kept" if os.path.exists("run.lock") else "deleted"
print(f"{filelock.__version__} {outcome}; content {content!r} {modified}; after release: {left}")
EOF
for version in 3.25.0 4.3.1; do
  python3 -m venv "venv-$version"
  "venv-$version/bin/pip" install --quiet --disable-pip-version-check "filelock==$version"
  "venv-$version/bin/python" attempt.py
  rm -f run.lock
done | tee seen
diff seen - <<'EOF'
3.25.0 Timeout; content '' modified; after release: deleted
4.3.1 Timeout; content 'holder 42' unmodified; after release: kept
EOF
