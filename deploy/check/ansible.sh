#!/bin/bash
# ansible.sh PACKAGE: applies the Ansible role (../ansible) to a temporary copy of this host's root folder, without starting
# the service: what --check announces is what it does, a second run changes nothing, and a wrong configuration is refused. As
# root. ansible-core is installed in the copy if the host has none. Exits with 77 if this host cannot do that.
set -euo pipefail
PACKAGE=$(realpath "$1") SELF=$(realpath "$0") HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
unable() { echo "$*"; exit 77; }

# play OPTION...: sets OUTPUT; fails if a task fails.
play() {
  local status=0
  OUTPUT=$(cd /tmp/ansible && ANSIBLE_NOCOLOR=1 ANSIBLE_LOCALHOST_WARNING=false ansible-playbook --inventory /tmp/hosts.yml site.yml "$@" 2>&1) || status=$?
  return "$status"
}
# count NAME: a number of the last recap.
count() { printf '%s\n' "$OUTPUT" | sed -n "s/^host .*\b$1=\([0-9]*\).*/\1/p"; }
expect() { local what=$1; shift; "$@" || { echo "not so: $what"; printf '%s\n' "$OUTPUT"; exit 1; }; }

inside() {
  id libvirt-qemu > /dev/null 2>&1 || useradd --system libvirt-qemu
  cat > /tmp/hosts.yml <<'YAML'
switches:
  hosts:
    host:
      ansible_connection: local
      ansible_python_interpreter: /usr/bin/python3
      crosspoint_start: false
      crosspoint_package: /tmp/crosspoint.deb
      crosspoint_guest_users: [libvirt-qemu]
      crosspoint_cores: [0]
      crosspoint_cpu_affinity: 0-1
      crosspoint_groups: [kvm]
      crosspoint_huge_pages: 16
      crosspoint_libvirt_hook: true
      crosspoint_uplinks: [{ name: up0, interface: enp1s0f0, vlan: "{ trunk = [100, 200], native = 10 }" }]
YAML
  OUTPUT=''
  expect "the role's syntax" play --syntax-check
  # The package and the folder first: a host without them cannot announce what comes of them.
  mkdir -p /etc/libvirt/hooks/qemu.d
  dpkg --install /tmp/crosspoint.deb > /dev/null
  expect "--check runs" play --check --diff
  local announced
  announced=$(count changed)
  expect "--check changes nothing" test ! -e /etc/systemd/system/crosspoint.service.d/host.conf
  expect "it is applied" play
  [ "$(count changed)" = "$announced" ] || { echo "--check announced $announced changes, and $(count changed) were made"; exit 1; }
  expect "a second run" play
  expect "it changes nothing" test "$(count changed)" = 0
  crosspoint check --config /etc/crosspoint/crosspoint.toml > /dev/null
  grep -qx 'cores = \[0\]' /etc/crosspoint/crosspoint.toml
  grep -qx 'vlan = { trunk = \[100, 200\], native = 10 }' /etc/crosspoint/crosspoint.toml
  id -nG libvirt-qemu | grep -qw crosspoint-guests
  cmp /etc/libvirt/hooks/qemu.d/crosspoint /usr/share/doc/crosspoint/examples/libvirt/hooks/qemu
  [ -x /etc/libvirt/hooks/qemu.d/crosspoint ]
  said=$(systemd-analyze verify --man=no crosspoint.service crosspoint-huge-pages.service 2>&1 | grep crosspoint || true)
  [ -z "$said" ] || { echo "$said"; exit 1; }
  cp /etc/crosspoint/crosspoint.toml /tmp/before
  if play --extra-vars '{"crosspoint_poll": "sometimes"}'; then echo "a wrong configuration is written"; exit 1; fi
  printf '%s\n' "$OUTPUT" | grep -q sometimes || { echo "the mistake is not named"; printf '%s\n' "$OUTPUT"; exit 1; }
  cmp /tmp/before /etc/crosspoint/crosspoint.toml
  OUTPUT=$(ansible-playbook --version)
  echo "$announced changes, and none in a second run, by ${OUTPUT%%$'\n'*}"
}

case ${CROSSPOINT_ANSIBLE:-} in
  install)
    command -v ansible-playbook > /dev/null && exit
    DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends ansible-core > /tmp/apt 2>&1 ||
      { tail -n 3 /tmp/apt; unable "ansible-core could not be installed"; } ;;
  inside)
    set +e
    (set -eE; trap 'echo "line $LINENO fails: $BASH_COMMAND"' ERR; inside)
    exit ;;
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
    install -m 644 "$PACKAGE" "$root/tmp/crosspoint.deb"
    install -m 755 "$SELF" "$root/tmp/check.sh"
    cp -r "$HERE/../ansible" "$root/tmp/ansible"
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp
    CROSSPOINT_ANSIBLE=install chroot "$root" /tmp/check.sh /tmp/crosspoint.deb || exit
    CROSSPOINT_ANSIBLE=inside exec unshare --net -- chroot "$root" /tmp/check.sh /tmp/crosspoint.deb ;;
  *)
    command -v apt-get > /dev/null || command -v ansible-playbook > /dev/null || unable "there is no Ansible"
    WORK=$(mktemp -d)
    export WORK
    # Its mounts are gone by then.
    trap 'rmdir "$WORK"' EXIT
    CROSSPOINT_ANSIBLE=copy unshare --mount --pid --fork --kill-child --propagation private -- "$SELF" "$PACKAGE" ;;
esac
