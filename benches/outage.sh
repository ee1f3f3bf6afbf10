#!/bin/bash
# outage.sh [ROUNDS]: what two guests notice of an upgrade of crosspoint, of its restart, and of a restart of Open vSwitch with DPDK, in
# turn (ROUNDS, default 5): frames lost of 20 000 a second, and the longest gap. As root, with huge pages; see peers/ovs-dpdk.sh for what
# Open vSwitch needs. OVS=none leaves it out; other variables go to the scripts.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BENCH=${BENCH:-$HERE/../target/release/crosspoint-bench} ROUNDS=${1:-5} OVS=${OVS:-ovs-dpdk}
X=/run/crosspoint-bench-crosspoint O=/run/crosspoint-bench-ovs PEERS=$HERE/peers

measure() { # NAME SCRIPT RUN CHANGE
  local name=$1 script=$2 run=$3 change=$4
  RUN=$run "$script" start > /dev/null
  "$BENCH" outage --listen --sockets "$run/a,$run/b" --change "RUN=$run $script $change" | sed "s/^RESULT/$name/"
  RUN=$run "$script" stop
}

export PORTS=vhost-client
for ((round = 1; round <= ROUNDS; round++)); do
  measure "crosspoint, upgrade:" "$PEERS/crosspoint.sh" $X upgrade
  measure "crosspoint, restart:" "$PEERS/crosspoint.sh" $X restart
  [ "$OVS" = none ] || measure "Open vSwitch, restart:" "$PEERS/ovs-dpdk.sh" $O restart
done
