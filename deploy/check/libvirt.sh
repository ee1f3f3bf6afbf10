#!/bin/bash
# libvirt.sh BINARY: lets a real libvirt start ../libvirt/web-1.xml (without its disk, and emulated), as libvirt's own user,
# at a port of the daemon BINARY whose socket belongs to that user's group; prints the QEMU command line that libvirt made.
# Everything runs in namespaces, over a temporary copy of the root folder, in which libvirt is installed if the host has
# none. The port is made and removed by libvirt's hook (../libvirt/hooks/qemu). As root. Exits with 77 if this host cannot do that.
set -euo pipefail
BINARY=$(realpath "$1") SELF=$(realpath "$0") HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
unable() { echo "$*"; exit 77; }
have_or_install() {
  command -v "$1" > /dev/null && return
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends libvirt-daemon libvirt-daemon-system libvirt-clients \
    > "/tmp/apt" 2>&1 || { tail -n 3 /tmp/apt; unable "libvirt could not be installed"; }
}

# until_so SECONDS WHAT COMMAND...
until_so() {
  local tries=$(($1 * 10)) what=$2; shift 2
  until "$@" > /tmp/until 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ]; then echo "not so: $what"; cat /tmp/until /tmp/log /tmp/libvirtd /var/log/libvirt/qemu/*.log 2> /dev/null; return 1; fi
    sleep 0.1
  done
}

# Runs in the copy, without a network.
inside() {
  cat > /tmp/crosspoint.toml <<'TOML'
version = 1
ports_dir = "/etc/crosspoint/ports.d"
watch_ports = true
[metrics]
listen = "off"
TOML
  # As in the examples, without what this host lacks: KVM, and a disk.
  sed "s/type='kvm'/type='qemu'/; /<cpu /d; /<disk /,/<\\/disk>/d" /tmp/example.xml > /tmp/web-1.xml
  printf '%s\n' 'security_driver = "none"' 'cgroup_controllers = []' 'namespaces = []' 'seccomp_sandbox = 0' 'stdio_handler = "file"' \
    'remember_owner = 0' > /etc/libvirt/qemu.conf
  # As the package's unit does, with another group.
  useradd --system crosspoint-check
  install -d -m 755 -o crosspoint-check /run/crosspoint
  install -d -m 2770 -o crosspoint-check -g libvirt-qemu /run/crosspoint/guests
  install -d -m 755 /etc/crosspoint/ports.d /etc/libvirt/hooks
  rm -f /etc/crosspoint/ports.d/*
  install -m 755 /tmp/hook /etc/libvirt/hooks/qemu
  install -m 755 /tmp/crosspoint /usr/bin/crosspoint
  umask 007
  setpriv --reuid crosspoint-check --regid crosspoint-check --init-groups crosspoint run --config /tmp/crosspoint.toml > /tmp/log 2>&1 &
  until_so 20 "the daemon listens" test -S /run/crosspoint/control.sock
  umask 022
  libvirtd > /tmp/libvirtd 2>&1 &
  until_so 30 "libvirt answers" virsh -q -c qemu:///system version
  virsh -q -c qemu:///system create /tmp/web-1.xml > /tmp/created 2>&1 || { cat /tmp/created /tmp/log /tmp/libvirtd /var/log/libvirt/qemu/*.log; return 1; }
  # The hook has made the port before QEMU started.
  [ "$(stat -c '%a %G' /run/crosspoint/guests/web-1.sock)" = '770 libvirt-qemu' ]
  grep -qx 'queue_pairs = 4' /etc/crosspoint/ports.d/web-1.toml
  until_so 20 "QEMU has connected" grep -q 'front end connected' /tmp/log
  local qemu
  qemu=$(pgrep -f 'guest=web-1' | head -n 1)
  [ "$(stat -c %U "/proc/$qemu")" = libvirt-qemu ]
  tr '\0' '\n' < "/proc/$qemu/cmdline"
  virsh -q -c qemu:///system destroy web-1 > /dev/null
  until_so 20 "QEMU has gone" grep -q 'front end disconnected' /tmp/log
  until_so 20 "the hook has removed the port" test ! -e /etc/crosspoint/ports.d/web-1.toml
  if crosspoint show port web-1 > /dev/null 2>&1; then echo "the port is still there"; return 1; fi
}

case ${CROSSPOINT_LIBVIRT:-} in
  inside)
    status=0
    (set -eE; trap 'echo "line $LINENO fails: $BASH_COMMAND"' ERR; inside) || status=$?
    exit "$status" ;;
  copy)
    mount -t tmpfs tmpfs "$WORK"
    root=$WORK/root
    mkdir "$WORK/upper" "$WORK/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/upper,workdir=$WORK/work" "$root" || unable "no overlay over the root folder"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mkdir "$root/run/lock"
    install -m 755 "$BINARY" "$root/tmp/crosspoint"
    install -m 755 "$SELF" "$root/tmp/check.sh"
    cp "$HERE/../libvirt/web-1.xml" "$root/tmp/example.xml"
    cp "$HERE/../libvirt/hooks/qemu" "$root/tmp/hook"
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
    CROSSPOINT_LIBVIRT=install chroot "$root" /tmp/check.sh /tmp/crosspoint || exit
    CROSSPOINT_LIBVIRT=inside exec unshare --net -- chroot "$root" /tmp/check.sh /tmp/crosspoint ;;
  install) have_or_install libvirtd ;;
  *)
    command -v apt-get > /dev/null || command -v libvirtd > /dev/null || unable "there is no libvirt"
    WORK=$(mktemp -d)
    export WORK
    # Its mounts are gone by then.
    trap 'rmdir "$WORK"' EXIT
    CROSSPOINT_LIBVIRT=copy unshare --mount --pid --fork --kill-child --propagation private -- "$SELF" "$BINARY" ;;
esac
