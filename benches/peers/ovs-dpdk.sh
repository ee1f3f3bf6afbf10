#!/bin/bash
# ovs-dpdk.sh start|stop|restart: Open vSwitch with DPDK as a peer of the bench: one PMD thread on core 1 (PMD_CORE; 1,2 for two), an
# L2 bridge, two ports. As root, with 2 MiB huge pages reserved (`sysctl vm.nr_hugepages=1024`). Needs the package
# openvswitch-switch-dpdk: Debian 12 has 3.1, Debian 13 has 3.5. It runs beside the host's own Open vSwitch, with a separate
# database.
#   NAMES="a b"       (default) the ports' names
#   PORTS=vhost       (default) vhost-user sockets that it listens on, $RUN/a and $RUN/b (RUN, default /run/crosspoint-bench-ovs)
#   PORTS=vhost-client  it connects, and the guests listen; after `restart`, which starts ovs-vswitchd again, it connects anew
#   PORTS=vhost-tso   the same with userspace TSO (its documentation, "Userspace Datapath - TSO"); it connects, and the guests listen
#   PORTS=af_xdp      interfaces sa and sb by DPDK's net_af_xdp, in the network namespace NETNS
#   PORTS=mixed       a vhost-user socket $RUN/a that it listens on, and interface sb
#   ADDRESSES=N       entries of its address table, if the default is too small
#   ACL=stateful      IP passes only if it belongs to a connection, which every port may begin (its documentation, "Connection Tracking")
#   COUNT=N           instead of a and b, N ports: p0, p1 and so on
#   ROOT=DIR          it is installed in DIR, the root of another distribution, for instance one made by debootstrap, with proc, sys and dev
#                     mounted there; DIR$RUN then becomes the same folder as $RUN
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=${RUN:-/run/crosspoint-bench-ovs} PMD_CORE=${PMD_CORE:-1} OTHER_CORE=${OTHER_CORE:-0} PORTS=${PORTS:-vhost} ROOT=${ROOT:-} NETNS=${NETNS:-} COUNT=${COUNT:-} ADDRESSES=${ADDRESSES:-} ACL=${ACL:-}
NAMES=${NAMES:-a b}
VSWITCHD=${VSWITCHD:-/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk}
export OVS_RUNDIR=$RUN OVS_LOGDIR=$RUN OVS_DBDIR=$RUN OVS_SYSCONFDIR=$RUN

# shellcheck source=common.sh
. "$HERE/common.sh"
inside() { if [ -n "$ROOT" ]; then chroot "$ROOT" "$@"; else "$@"; fi; }
vsctl() { inside ovs-vsctl --db="unix:$RUN/db.sock" --timeout=30 "$@"; }

mask() { # CORE[,CORE...]
  local core bits=0
  for core in ${1//,/ }; do bits=$((bits | 1 << core)); done
  printf '0x%x' $bits
}

ports() { # their names
  local number
  if [ -z "$COUNT" ]; then echo a b; return; fi
  for ((number = 0; number < COUNT; number++)); do echo "p$number"; done
}

add_port() { # NAME
  case $PORTS-$1 in
    vhost-tso-* | vhost-client-*) vsctl add-port br0 "$1" -- set Interface "$1" type=dpdkvhostuserclient options:vhost-server-path="$RUN/$1" ;;
    vhost-* | mixed-a) vsctl add-port br0 "$1" -- set Interface "$1" type=dpdkvhostuser ;;
    af_xdp-? | mixed-b) vsctl add-port br0 "$1" -- set Interface "$1" type=dpdk options:dpdk-devargs="net_af_xdp$1,iface=s$1" ;;
    *) die "PORTS=$PORTS is not known" ;;
  esac
  local wrong
  wrong=$(vsctl get Interface "$1" error)
  [ "$wrong" = '[]' ] || die "port $1: $wrong"
}

stateful() {
  local flow
  inside ovs-ofctl del-flows br0
  for flow in 'table=0,priority=10,ip,actions=ct(table=1)' 'table=0,priority=1,actions=NORMAL' \
    'table=1,priority=20,ip,ct_state=+trk+est,actions=NORMAL' 'table=1,priority=10,ip,ct_state=+trk+new,actions=ct(commit),NORMAL' \
    'table=1,priority=1,actions=drop'; do
    inside ovs-ofctl add-flow br0 "$flow"
  done
}

vswitchd() {
  local -a where=()
  if [ -n "$NETNS" ]; then where=(ip netns exec "$NETNS"); fi
  if [ -n "$ROOT" ]; then where+=(chroot "$ROOT"); fi
  "${where[@]}" taskset -c "$OTHER_CORE" "$VSWITCHD" "unix:$RUN/db.sock" --pidfile="$RUN/vswitchd.pid" \
    --log-file="$RUN/vswitchd.log" -vconsole:off --detach --no-chdir
}

start() {
  local port
  [ -x "$ROOT$VSWITCHD" ] || die "$ROOT$VSWITCHD is missing: install openvswitch-switch-dpdk, or set ROOT or VSWITCHD"
  huge_pages
  mkdir -p "$RUN"
  if [ -n "$ROOT" ]; then mkdir -p "$ROOT$RUN"; mountpoint -q "$ROOT$RUN" || mount --bind "$RUN" "$ROOT$RUN"; fi
  inside ovsdb-tool create "$RUN/conf.db" /usr/share/openvswitch/vswitch.ovsschema
  inside taskset -c "$OTHER_CORE" ovsdb-server "$RUN/conf.db" --remote="punix:$RUN/db.sock" --pidfile="$RUN/ovsdb.pid" \
    --log-file="$RUN/ovsdb.log" --detach --no-chdir
  vsctl --no-wait init
  vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:dpdk-socket-mem=512 \
    other_config:pmd-cpu-mask="$(mask "$PMD_CORE")" other_config:dpdk-lcore-mask="$(mask "$OTHER_CORE")" \
    'other_config:dpdk-extra="--no-pci --in-memory --single-file-segments"'
  if [ "$PORTS" = vhost-tso ]; then vsctl --no-wait set Open_vSwitch . other_config:userspace-tso-enable=true; fi
  vswitchd
  vsctl add-br br0 -- set bridge br0 datapath_type=netdev
  if [ -n "$ADDRESSES" ]; then vsctl set bridge br0 other-config:mac-table-size="$ADDRESSES"; fi
  for port in $(ports); do add_port "$port"; done
  if [ "$ACL" = stateful ]; then stateful; fi
}

stop() {
  end "$RUN/vswitchd.pid"
  end "$RUN/ovsdb.pid"
  if [ -n "$ROOT" ] && mountpoint -q "$ROOT$RUN"; then umount "$ROOT$RUN"; fi
  rm -rf "$RUN"
}

case ${1:-} in
  start) stop; start ;;
  stop) stop ;;
  restart) end "$RUN/vswitchd.pid"; vswitchd ;;
  *) usage ;;
esac
