#!/usr/bin/env bash
# As a new user without a clone: builds the wheel, installs it with its extra `demo` into a new environment, runs the demo's smoke there.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
(cd "$root" && .venv/bin/python -m hatchling build -t wheel -d "$place" >/dev/null)
cd "$place"
"${PYTHON:-python3}" -m venv new
# shellcheck disable=SC2086  # TORCH may hold options
new/bin/pip install --quiet --disable-pip-version-check ${TORCH:-torch==2.13.0} 2>&1 | grep -v '^WARNING: Location' || true
new/bin/pip install --quiet --disable-pip-version-check "$(ls ./*.whl)[demo]" 2>&1 | grep -v '^WARNING: Location' || true
new/bin/agentrl demo --out demo --smoke
new/bin/agentrl view demo/rl -n 3
new/bin/agentrl replay demo/rl "$(new/bin/agentrl view demo/rl -n 1 | awk 'NR == 2 { print $1 }')"
