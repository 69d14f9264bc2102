#!/usr/bin/env bash
# Makes the environments of the engine servers that `make test-engines` starts: .engines/sglang and .engines/vllm, for a CPU.
# `scripts/engines.sh` makes both, `scripts/engines.sh vllm` one. Pins: scripts/engines/*.txt. A second call does nothing.
# Torch comes first, from what TORCH names (default: torch==2.13.0; see scripts/install.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
torch="${TORCH:-torch==2.13.0}"
stubs="scripts/engines/stubs.py"

environment() {
  local name="$1" folder=".engines/$1" pins="scripts/engines/$1.txt" stamp
  stamp="$(printf '%s\n' "$torch" "$("$python" --version)" | cat - "$pins" "$stubs" "$0" | sha256sum)"
  if [ "$(cat "$folder/.stamp" 2>/dev/null || true)" = "$stamp" ]; then return; fi
  echo "making $folder (two minutes, 1.7 to 2.5 GB)"
  rm -rf "$folder"
  "$python" -m venv "$folder"
  # shellcheck disable=SC2086  # TORCH may hold options
  install "$folder" $torch
  install "$folder" --no-deps --requirement "$pins"
  if [ "$name" = sglang ]; then
    local packages
    packages="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    cp "$stubs" "$packages/engine_stubs.py"
    echo "import engine_stubs" >"$packages/engine_stubs.pth"
  fi
  echo "$stamp" >"$folder/.stamp"
}

install() {
  local folder="$1"
  shift
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2)
}

for name in ${*:-sglang vllm}; do environment "$name"; done
