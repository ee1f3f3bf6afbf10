#!/bin/bash
# ovs-dpdk.sh start|stop: Open vSwitch with DPDK as a peer of the bench: one PMD thread on core 1 (PMD_CORE), an L2 bridge, two vhost-user
# ports whose sockets are $RUN/a and $RUN/b (RUN, default /run/crosspoint-bench-ovs). As root, with 2 MiB huge pages reserved
# (`sysctl vm.nr_hugepages=1024`). Needs the package openvswitch-switch-dpdk: Debian 12 has 3.1, Debian 13 has 3.5. It runs beside an Open
# vSwitch of the host's, with a database of its own.
set -euo pipefail
RUN=${RUN:-/run/crosspoint-bench-ovs} PMD_CORE=${PMD_CORE:-1} OTHER_CORE=${OTHER_CORE:-0}
VSWITCHD=${VSWITCHD:-/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk}
export OVS_RUNDIR=$RUN OVS_LOGDIR=$RUN OVS_DBDIR=$RUN OVS_SYSCONFDIR=$RUN

vsctl() { ovs-vsctl --db="unix:$RUN/db.sock" --timeout=30 "$@"; }
mask() { printf '0x%x' $((1 << $1)); }

start() {
  local port
  rm -rf "$RUN"; mkdir -p "$RUN"
  ovsdb-tool create "$RUN/conf.db" /usr/share/openvswitch/vswitch.ovsschema
  taskset -c "$OTHER_CORE" ovsdb-server "$RUN/conf.db" --remote="punix:$RUN/db.sock" --pidfile="$RUN/ovsdb.pid" \
    --log-file="$RUN/ovsdb.log" --detach --no-chdir
  vsctl --no-wait init
  vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:dpdk-socket-mem=512 \
    other_config:pmd-cpu-mask="$(mask "$PMD_CORE")" other_config:dpdk-lcore-mask="$(mask "$OTHER_CORE")" \
    'other_config:dpdk-extra="--no-pci --in-memory --single-file-segments"'
  taskset -c "$OTHER_CORE" "$VSWITCHD" "unix:$RUN/db.sock" --pidfile="$RUN/vswitchd.pid" --log-file="$RUN/vswitchd.log" \
    -vconsole:off --detach --no-chdir
  vsctl add-br br0 -- set bridge br0 datapath_type=netdev
  for port in a b; do vsctl add-port br0 "$port" -- set Interface "$port" type=dpdkvhostuser; done
}

stop() {
  local pid
  for pid in vswitchd ovsdb; do
    if [ -e "$RUN/$pid.pid" ]; then kill "$(cat "$RUN/$pid.pid")" 2> /dev/null || true; fi
  done
  for _ in $(seq 50); do
    [ -e "$RUN/vswitchd.pid" ] || [ -e "$RUN/ovsdb.pid" ] || break
    sleep 0.1
  done
  rm -rf "$RUN"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
