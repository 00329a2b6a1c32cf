#!/usr/bin/env bash
# mkdocs 1.6.1: `mkdocs build --quiet --strict` succeeds where `mkdocs build --strict` fails.
#
# --strict counts the warnings that reach its log handler, and --quiet raises the level of the logger above WARNING.
# So a job that adds --quiet for a shorter log accepts broken links: exit status 0, no output. A config file with
# `strict: true` behaves the same.
#
# Output seen (Python 3.11):
#   --strict: exit status 1
#   --strict --quiet: exit status 0
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mkdocs==1.6.1
mkdir docs
echo 'site_name: example' >mkdocs.yml
echo '[a page that does not exist](nowhere.md)' >docs/index.md
for flags in '--strict' '--strict --quiet'; do
  status=0
  # shellcheck disable=SC2086  # two flags
  venv/bin/mkdocs build $flags >log 2>&1 || status=$?
  echo "$flags: exit status $status"
done | tee seen
diff seen - <<'EOF'
--strict: exit status 1
--strict --quiet: exit status 0
EOF
