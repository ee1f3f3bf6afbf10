#!/bin/bash
# testpmd.sh start|stop: dpdk-testpmd as a peer of the bench. It does no switching: frames from one port go out at the other
# (MODE=io, the default; MODE=mac writes both addresses of each frame). Its thread is on core 1 (PMD_CORE; 1,2 for two
# threads) and is named rte-worker-1 (dpdk-worker1 from DPDK 24 on). As root, with 2 MiB huge pages reserved (`sysctl
# vm.nr_hugepages=1024`). Needs the package dpdk or dpdk-dev.
#   PORTS=vhost       (default) vhost-user sockets that it listens on, $RUN/a and $RUN/b (RUN, default /run/crosspoint-bench-testpmd)
#   PORTS=vhost-tso   the same, with large frames; legacy-ol-flags, or mode io would pass them on without their virtio-net header's fields
#   COUNT=N           instead of a and b, N ports, an even number: p0 and p1 are a pair, p2 and p3, and so on
#   PORTS=af_xdp      interfaces sa and sb by net_af_xdp, in the network namespace NETNS
#   PORTS=mixed       a vhost-user socket $RUN/a that it listens on, and interface sb
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=${RUN:-/run/crosspoint-bench-testpmd} PMD_CORE=${PMD_CORE:-1} OTHER_CORE=${OTHER_CORE:-0} PORTS=${PORTS:-vhost} NETNS=${NETNS:-} COUNT=${COUNT:-} MODE=${MODE:-io}

# shellcheck source=common.sh
. "$HERE/common.sh"

vdev() { # NUMBER NAME
  case $PORTS-$2 in
    vhost-tso-*) echo "net_vhost$1,iface=$RUN/$2,queues=1,tso=1,legacy-ol-flags=1" ;;
    vhost-* | mixed-a) echo "net_vhost$1,iface=$RUN/$2,queues=1" ;;
    af_xdp-? | mixed-b) echo "net_af_xdp$1,iface=s$2" ;;
    *) die "PORTS=$PORTS is not known" ;;
  esac
}

# mbufs PORTS: enough for the ports' rings, of up to 1024 entries, and for testpmd's own caches.
mbufs() { echo $((32768 + ($1 - 2) * 1024)); }

start() {
  command -v dpdk-testpmd > /dev/null || die "dpdk-testpmd is missing: install dpdk-dev"
  huge_pages
  mkdir -p "$RUN"
  mkfifo "$RUN/input"
  local -a where=()
  if [ -n "$NETNS" ]; then where=(ip netns exec "$NETNS"); fi
  local -a names=(a b) cores=() vdevs=()
  local number lcores="0@$OTHER_CORE"
  if [ -n "$COUNT" ]; then names=(); for ((number = 0; number < COUNT; number++)); do names+=("p$number"); done; fi
  for ((number = 0; number < ${#names[@]}; number++)); do vdevs+=(--vdev "$(vdev $number "${names[number]}")"); done
  IFS=, read -r -a cores <<< "$PMD_CORE"
  for ((number = 0; number < ${#cores[@]}; number++)); do lcores+=",$((number + 1))@${cores[number]}"; done
  # This script holds both ends of the pipe, so that it never ends: otherwise testpmd would end. Output is line-buffered: a
  # line shows that testpmd has started.
  "${where[@]}" stdbuf -oL dpdk-testpmd --lcores "$lcores" --no-pci --in-memory --single-file-segments -m 512 "${vdevs[@]}" \
    -- -i --forward-mode="$MODE" --auto-start --nb-cores="${#cores[@]}" --total-num-mbufs="$(mbufs ${#names[@]})" <> "$RUN/input" > "$RUN/log" 2>&1 &
  echo $! > "$RUN/pid"
  started grep -q "^$MODE packet forwarding" "$RUN/log"
}

stop() {
  end "$RUN/pid"
  rm -rf "$RUN"
}

case ${1:-} in
  start) stop; start ;;
  stop) stop ;;
  *) usage ;;
esac
