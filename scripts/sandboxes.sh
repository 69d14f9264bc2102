#!/usr/bin/env bash
# Makes what `make test-sandboxes` runs on: a Docker engine, gVisor beside it, and the image agentrl-sandbox, made without a
# registry. Where a Docker daemon answers it is used as it is; else Debian's is installed and started (as root), in a way that
# leaves the host's network alone. A second call does nothing. `scripts/sandboxes.sh stop` ends the daemon that this started.
set -euo pipefail
cd "$(dirname "$0")/.."
image="${AGENTRL_SANDBOX_IMAGE:-agentrl-sandbox}"
python="${PYTHON:-.venv/bin/python}"
[ -x "$python" ] || python=python3
state=/run/agentrl-sandboxes
rootfs=sandboxes/images/rootfs.py

if [ "${1:-}" = stop ]; then
  [ -f "$state/dockerd.pid" ] || exit 0
  pid="$(cat "$state/dockerd.pid")"
  kill "$pid" && tail --pid="$pid" -f /dev/null
  rm -rf "$state"
  exit 0
fi

answers() { docker version >/dev/null 2>&1; }

install() {
  [ "$(id -u)" = 0 ] || { echo "no Docker daemon answers, and to install one needs root; start one, or name it by DOCKER_HOST" >&2; exit 1; }
  command -v apt-get >/dev/null || { echo "no Docker daemon answers, and here is no apt-get to install one; start one" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive TMPDIR=/var/tmp
  apt-get update -qq
  command -v dockerd >/dev/null || apt-get install -y -qq --no-install-recommends docker.io >/dev/null
  command -v runsc >/dev/null || apt-get install -y -qq --no-install-recommends runsc >/dev/null || echo "gVisor's runsc does not install here"
}

start() {
  local runtimes=""
  if command -v runsc >/dev/null; then
    runtimes=", \"runtimes\": {\"runsc\": {\"path\": \"$(command -v runsc)\", \"runtimeArgs\": [\"--platform=ptrace\", \"--network=none\"]}}"
  fi
  mkdir -p "$state"
  echo "{\"iptables\": false, \"ip-masq\": false, \"bridge\": \"none\", \"userland-proxy\": false$runtimes}" >"$state/daemon.json"
  setsid dockerd --config-file="$state/daemon.json" --pidfile="$state/dockerd.pid" >"$state/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 150); do
    if answers; then return; fi
    kill -0 $! 2>/dev/null || break
    sleep 0.2
  done
  echo "the Docker daemon did not start: $(tail -n 3 "$state/dockerd.log")" >&2
  exit 1
}

if ! answers; then
  { command -v dockerd && command -v runsc; } >/dev/null || install
  start
fi
stamp="$({ cat "$rootfs"; "$python" --version; "$python" -c 'import sys; print(sys.base_prefix)'; } | sha256sum | cut -c1-16)"
if [ "$(docker image inspect --format '{{index .Config.Labels "agentrl.stamp"}}' "$image" 2>/dev/null || true)" != "$stamp" ]; then
  "$python" "$rootfs" |
    docker import --change "ENV PATH=$("$python" "$rootfs" --path)" --change "LABEL agentrl.stamp=$stamp" - "$image" >/dev/null
fi
echo "$(docker version --format 'Docker {{.Server.Version}}'), image $image: $(docker image inspect --format '{{.Size}}' "$image" | awk '{ printf "%d MB", $1 / 1e6 }'), runtimes: $(docker info --format '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}')"
