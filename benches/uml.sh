#!/bin/bash
# uml.sh [run]: TCP by iperf3 between two User-Mode Linux guests, over crosspoint and over dpdk-testpmd with large frames, in turn. As root; the
# guests' image is made by deploy/guest/build-image.sh, testpmd needs dpdk-dev and huge pages (peers/testpmd.sh).
#   ROUNDS=5 TRIALS=2     rounds, and pairs of guests booted on each switch in each round
#   SECS=5                of each iperf3 run; there are two in a trial, one in each direction
#   SWITCHES="crosspoint testpmd"
#   JSON=FILE             where to write every trial
#   BENCH, CROSSPOINT     the binaries, by default those of target/release
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$HERE/..
SWITCHES=${SWITCHES:-crosspoint testpmd} SECS=${SECS:-5}
export BENCH=${BENCH:-$REPO/target/release/crosspoint-bench} CROSSPOINT=${CROSSPOINT:-$REPO/target/release/crosspoint}
export RUN=/run/crosspoint-bench-uml SECS
MASKED=/run/crosspoint-bench-uml-mask
# virtio_uml refuses MTU, CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE and MQ of a back end without the protocol feature CONFIG. Packed
# rings are hidden so that all switches have the same rings.
HIDE=3,17,18,21,22,34

# shellcheck source=peers/common.sh
. "$HERE/peers/common.sh"

check() {
  [ "$(id -u)" -eq 0 ] || die "needs root"
  [ -x "$BENCH" ] || die "$BENCH is missing: cargo build --release -p crosspoint -p crosspoint-bench"
  local image=${CROSSPOINT_GUEST_IMAGE:-/var/cache/crosspoint/guest}
  [ -e "$image/linux.uml" ] || die "$image/linux.uml is missing: run deploy/guest/build-image.sh"
}

all() {
  check
  local -a arguments=() switch
  for switch in $SWITCHES; do
    case $switch in
      crosspoint) arguments+=(--name crosspoint --thread worker- --start "PORTS=vhost $HERE/peers/crosspoint.sh start" --stop "$HERE/peers/crosspoint.sh stop") ;;
      testpmd) arguments+=(--name testpmd --thread "${TESTPMD_THREAD:-rte-worker}" --start "PORTS=vhost-tso $HERE/peers/testpmd.sh start" --stop "$HERE/peers/testpmd.sh stop") ;;
      *) die "SWITCHES: $switch is not known" ;;
    esac
  done
  # Guests share a core, so their waiting is expected; the worker has its own core.
  exec "$BENCH" compare --rounds "${ROUNDS:-5}" --trials "${TRIALS:-2}" --wait-max 5 ${JSON:+--json "$JSON"} "${arguments[@]}" --measure "$HERE/uml.sh measure"
}

measure() {
  mkdir -p "$MASKED"
  "$BENCH" mask --hide $HIDE --pair "$MASKED/a,$RUN/a" --pair "$MASKED/b,$RUN/b" &
  local mask=$!
  # shellcheck disable=SC2064 # this mask
  trap "kill $mask 2> /dev/null; rm -rf $MASKED" EXIT
  for _ in $(seq 50); do [ -S "$MASKED/b" ] && break; sleep 0.1; done
  LIMIT_S=${LIMIT_S:-120} "$REPO/deploy/guest/pair.sh" uml "$MASKED/a" "$MASKED/b" --cpus 0 --secs "$SECS" --blob-mib 4
}

case ${1:-run} in
  run) all ;;
  measure) measure ;;
  *) usage ;;
esac
