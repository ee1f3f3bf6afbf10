#!/bin/bash
# veth.sh [run]: iperf3 from one network namespace to another through a switch in a third, over veth: TCP with one stream,
# UDP in frames of 64 and of 1518 bytes. As root, with iperf3, jq, ethtool; the scripts in peers/ list what the peers need.
#   ROUNDS=5 TRIALS=2     rounds, and trials on each switch in each
#   SECS=3                of each iperf3 run; there are three in a trial
#   SWITCHES="..."        crosspoint, crosspoint-tx-off, bridge, bridge-rps, ovs, testpmd; ratios are those of the first. The kernel's bridge
#                         does its work on the sender's core, with rps on the switch's; ovs and testpmd are DPDK's net_af_xdp
#   JSON=FILE             where to write every trial
#   BENCH, CROSSPOINT     the binaries, by default those of target/release
# The ends' interfaces leave checksums to the device, as usual. DPDK does not complete them, so for DPDK's switches and
# crosspoint-tx-off this is turned off (`ethtool -K tx off`).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$HERE/..
SWITCHES=${SWITCHES:-crosspoint crosspoint-tx-off bridge bridge-rps ovs testpmd} SECS=${SECS:-3}
export BENCH=${BENCH:-$REPO/target/release/crosspoint-bench} CROSSPOINT=${CROSSPOINT:-$REPO/target/release/crosspoint}
export SECS
export NETNS=cpbench-switch RUN=/run/crosspoint-bench-veth
END_CORE=0

# shellcheck source=peers/common.sh
. "$HERE/peers/common.sh"

check() {
  local command
  [ "$(id -u)" -eq 0 ] || die "needs root"
  for command in ip iperf3 jq ethtool; do command -v $command > /dev/null || die "'$command' is missing"; done
  [ -x "$BENCH" ] || die "$BENCH is missing: cargo build --release -p crosspoint -p crosspoint-bench"
}

down() {
  local end
  for end in a b switch; do ip netns del "cpbench-$end" 2> /dev/null || true; done
}

up() {
  local end address=1
  down
  ip netns add "$NETNS"
  for end in a b; do
    ip netns add "cpbench-$end"
    ip link add "${end}0" netns "cpbench-$end" numrxqueues 1 numtxqueues 1 type veth peer name "s$end" netns "$NETNS" numrxqueues 1 numtxqueues 1
    ip netns exec "cpbench-$end" sysctl -qw net.ipv6.conf.all.disable_ipv6=1
    ip -n "cpbench-$end" addr add "10.99.0.$address/24" dev "${end}0"
    ip -n "cpbench-$end" link set "${end}0" up
    ip -n "$NETNS" link set "s$end" up
    address=$((address + 1))
  done
  ip netns exec "$NETNS" sysctl -qw net.ipv6.conf.all.disable_ipv6=1
}

checksums() { # on|off
  local end
  for end in a b; do ip netns exec "cpbench-$end" ethtool -K "${end}0" tx "$1" > /dev/null; done
}

bridge() { # MASK of cores that do its work; 0: the sender's
  local end
  ip -n "$NETNS" link add br0 type bridge
  for end in a b; do
    ip -n "$NETNS" link set "s$end" master br0
    ip netns exec "$NETNS" sh -c "echo $1 > /sys/class/net/s$end/queues/rx-0/rps_cpus"
  done
  ip -n "$NETNS" link set br0 up
}

# New namespaces each time, so that nothing is left of the switch before.
start() { # SWITCH
  up
  case $1 in
    crosspoint) PORTS=xdp "$HERE/peers/crosspoint.sh" start ;;
    crosspoint-tx-off) checksums off; PORTS=xdp "$HERE/peers/crosspoint.sh" start ;;
    bridge) bridge 0 ;;
    bridge-rps) bridge 2 ;;
    ovs) checksums off; PORTS=af_xdp "$HERE/peers/ovs-dpdk.sh" start ;;
    testpmd) checksums off; PORTS=af_xdp "$HERE/peers/testpmd.sh" start ;;
    *) die "$1 is not known" ;;
  esac
  reach
}

reach() {
  for _ in $(seq 20); do
    if ip netns exec cpbench-a ping -q -c 1 -W 1 10.99.0.2 > /dev/null; then return; fi
  done
  die "no answer to ping through the switch"
}

stop() { # SWITCH
  case $1 in
    crosspoint*) "$HERE/peers/crosspoint.sh" stop ;;
    ovs) PORTS=af_xdp "$HERE/peers/ovs-dpdk.sh" stop ;;
    testpmd) "$HERE/peers/testpmd.sh" stop ;;
  esac
  down
}

thread() { # SWITCH: how its polling thread's name starts
  case $1 in
    crosspoint*) echo worker- ;;
    ovs) echo pmd-c01 ;;
    testpmd) echo "${TESTPMD_THREAD:-rte-worker}" ;;
  esac
}

iperf() { # OPTION...: the JSON of one run
  local server status=0
  ip netns exec cpbench-b taskset -c $END_CORE iperf3 -s -1 > /dev/null &
  server=$!
  sleep 0.3
  ip netns exec cpbench-a taskset -c $END_CORE timeout $((SECS + 20)) iperf3 -c 10.99.0.2 -t "$SECS" -J "$@" || status=$?
  kill $server 2> /dev/null || true
  wait $server 2> /dev/null || true
  return $status
}

# arrived: frames that the switch has delivered to the receiving end.
arrived() { ip netns exec cpbench-b cat /sys/class/net/b0/statistics/rx_packets; }

measure() { # tcp, or the bytes of a UDP frame: its payload is without Ethernet, IPv4, UDP and FCS
  local json
  case $1 in
    tcp)
      json=$(iperf -O 1) || die "iperf3: $(jq -r '.error // "failed"' <<< "$json")"
      jq -r '"RESULT TCP Gb/s=\(.end.sum_received.bits_per_second / 1e9)"' <<< "$json" ;;
    *)
      local before
      before=$(arrived)
      json=$(iperf -u -b 0 -l $(($1 - 46))) || die "iperf3: $(jq -r '.error // "failed"' <<< "$json")"
      jq -r --arg size "$1" --argjson frames $(($(arrived) - before)) '.end.sum | "RESULT UDP \($size) bytes, kpps sent=\(.packets / .seconds / 1e3)",
        "RESULT UDP \($size) bytes, kpps at the interface=\($frames / .seconds / 1e3)",
        "RESULT UDP \($size) bytes, kpps read=\((.packets - .lost_packets) / .seconds / 1e3)"' <<< "$json" ;;
  esac
}

all() {
  check
  local -a arguments=()
  local switch
  for switch in $SWITCHES; do
    arguments+=(--name "$switch" --thread "$(thread "$switch")" --start "$HERE/veth.sh start $switch" --stop "$HERE/veth.sh stop $switch")
  done
  # The kernel's own threads share the switch's core and do part of the work, so no trial is discarded for waiting.
  exec "$BENCH" compare --rounds "${ROUNDS:-5}" --trials "${TRIALS:-2}" --wait-max 100 ${JSON:+--json "$JSON"} "${arguments[@]}" \
    --measure "$HERE/veth.sh measure tcp" --measure "$HERE/veth.sh measure 64" --measure "$HERE/veth.sh measure 1518"
}

case ${1:-run} in
  run) all ;;
  start) start "${2:?}" ;;
  stop) stop "${2:?}" ;;
  measure) measure "${2:?}" ;;
  *) usage ;;
esac
