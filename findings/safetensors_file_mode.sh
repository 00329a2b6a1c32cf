#!/usr/bin/env bash
# safetensors 0.8.0: save_file gives every file mode 0600, whatever the umask and whatever mode the file had.
#
# It writes a temporary file, which is private, and renames it. So a model saved on a shared disk can't be read by the
# group, though open() with the same umask makes files of mode 0644, and saving over a file of mode 0644 takes the
# permission away again.
#
# Output seen (Linux, Python 3.11, umask 022):
#   open(): 0o644
#   save_file, new file: 0o600
#   save_file over a file of mode 0o644: 0o600
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
umask 022
venv/bin/python - >seen <<'EOF'
import os
import stat

import numpy as np
from safetensors.numpy import save_file


def mode(path):
    return oct(stat.S_IMODE(os.stat(path).st_mode))


tensors = {"w": np.zeros(2, np.float32)}
open("plain", "w").close()
print("open():", mode("plain"))
save_file(tensors, "new.safetensors")
print("save_file, new file:", mode("new.safetensors"))
save_file(tensors, "plain")
print("save_file over a file of mode 0o644:", mode("plain"))
EOF
cat seen
diff seen - <<'EOF'
open(): 0o644
save_file, new file: 0o600
save_file over a file of mode 0o644: 0o600
EOF
