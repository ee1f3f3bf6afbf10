#!/bin/bash
# demo.sh [option...]: as root, on a fresh Debian 12 or Ubuntu 24.04: installs what is missing, builds crosspoint, makes two
# network namespaces and boots one small Linux guest, joins the three by crosspoint, and shows ping, iperf3 and a checksummed
# transfer between them, then the switch's own counters. It removes everything that it made, also if interrupted. Ends with 0
# only if every check passed.
#
#   --guest qemu|uml|none   the kind of guest; default: the fastest on this host (KVM, else User-Mode Linux, else QEMU's emulation)
#   --secs N                length of each iperf3 run (default 3)
#   --no-install            do not install packages
#   --no-build              use target/release/crosspoint as it is
#   --switch COMMAND        run this instead of "crosspoint run --config configs/demo.toml", to try the script against another switch
# shellcheck disable=SC2317 # much of this is called only by the trap
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
. "$REPO/deploy/lib.sh"

CONFIG=$REPO/configs/demo.toml
BINARY=$REPO/target/release/crosspoint
RUN_DIR=/run/crosspoint
GUEST_SOCKET=$RUN_DIR/guests/demo-guest.sock
CONTROL_SOCKET=$RUN_DIR/demo.sock
METRICS_URL=http://127.0.0.1:9477/metrics
ADDR_A=10.99.77.1 ADDR_B=10.99.77.2 ADDR_GUEST=10.99.77.3
GUEST_DIR=$REPO/deploy/guest

GUEST=auto SECS=3 INSTALL=1 BUILD=1 SWITCH=''
FAILED=0 WORK='' SWITCH_PID='' GUEST_PID='' SERVICE_PID='' JOB_PID='' OWNED=''
STARTED=$SECONDS

step() { printf '\n== %s  [%d s]\n' "$*" $((SECONDS - STARTED)); }

parse_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --guest) GUEST=${2:?--guest needs a value}; shift ;;
      --secs) SECS=${2:?--secs needs a value}; shift ;;
      --switch) SWITCH=${2:?--switch needs a command}; shift ;;
      --no-install) INSTALL='' ;;
      --no-build) BUILD='' ;;
      -h | --help) sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
      *) say "error: unknown option '$1'"; exit 2 ;;
    esac
    shift
  done
  case $GUEST in auto | qemu | uml | none) ;; *) die "--guest is qemu, uml or none" ;; esac
}

# spawn LOG COMMAND...: starts a process and puts its ID into SPAWNED. It has its own session: a Ctrl-C at the terminal goes
# to this script, which then stops everything in order. The process dies with this script, even if that is killed, and does
# not hold the script's lock.
spawn() {
  local log=$1; shift
  setsid setpriv --pdeathsig KILL -- "$@" > "$log" 2>&1 < /dev/null 8>&- &
  SPAWNED=$!
}

# stop PID: asks the process to end, waits two seconds, then kills it.
stop() {
  local tries=20
  [ -n "$1" ] || return 0
  kill "$1" 2>/dev/null || return 0
  while [ "$tries" -gt 0 ] && kill -0 "$1" 2>/dev/null; do sleep 0.1; tries=$((tries - 1)); done
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# remove_network: both namespaces and both veth pairs; prints nothing if there are none. Deleting one end of a pair deletes
# the other at once, but the end inside a deleted namespace may remain for a moment.
remove_network() {
  local n
  for n in 0 1; do ip link del "cpdemo$n" 2>/dev/null || true; done
  for n in a b; do ip netns del "cpdemo-$n" 2>/dev/null || true; done
}

cleanup() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  if [ -n "$OWNED" ]; then
    step "cleaning up"
    # The guest first: removing the switch under a running guest is not part of this demonstration.
    stop "$JOB_PID"; stop "$GUEST_PID"; stop "$SERVICE_PID"; stop "$SWITCH_PID"
    remove_network
    rm -f "$GUEST_SOCKET" "$CONTROL_SOCKET"
    rmdir "$RUN_DIR/guests" "$RUN_DIR" 2>/dev/null || true
  fi
  [ -z "$WORK" ] || rm -rf "$WORK"
  exit "$status"
}

prepare() {
  if [ -n "$INSTALL" ]; then
    step "installing what is missing"
    "$REPO/deploy/install-deps.sh" build demo
  fi
  if [ -n "$BUILD" ] && [ -z "$SWITCH" ]; then
    step "building crosspoint"
    local dir
    dir=$(find_cargo_dir) || die "no Rust $(cargo_min) or newer: run deploy/install-deps.sh build"
    (cd "$REPO" && PATH=$dir:$PATH cargo build --release --quiet)
  fi
  [ -n "$SWITCH" ] || [ -x "$BINARY" ] || die "$BINARY is missing: leave out --no-build"
  step "making the guest image"
  "$GUEST_DIR/build-image.sh"
}

pick_guest() {
  local image=${CROSSPOINT_GUEST_IMAGE:-/var/cache/crosspoint/guest}
  if kvm_usable; then export CROSSPOINT_KVM=yes; else export CROSSPOINT_KVM=no; fi
  [ "$GUEST" = auto ] || return 0
  if [ "$CROSSPOINT_KVM" = yes ]; then GUEST=qemu
  elif [ -e "$image/linux.uml" ]; then GUEST=uml
  elif qemu_binary > /dev/null; then GUEST=qemu
  else die "nothing here can run a guest: neither QEMU nor User-Mode Linux; --guest none leaves it out"; fi
}

guest_description() {
  case $GUEST in
    qemu) if [ "$CROSSPOINT_KVM" = yes ]; then echo "QEMU with KVM"; else echo "QEMU, emulated (slow: there is no KVM here)"; fi ;;
    uml) echo "User-Mode Linux (there is no KVM here)" ;;
  esac
}

# make_network: namespaces cpdemo-a and cpdemo-b; eth0 inside each, cpdemo0 and cpdemo1 on the host. One queue on both ends, since the kernel
# refuses XDP on a veth with fewer receive queues than its peer has transmit queues.
make_network() {
  step "making network namespaces cpdemo-a ($ADDR_A) and cpdemo-b ($ADDR_B)"
  remove_network
  make_namespace cpdemo-a cpdemo0 "$ADDR_A"
  make_namespace cpdemo-b cpdemo1 "$ADDR_B"
}

make_namespace() { # NAMESPACE HOST-END ADDRESS
  ip netns add "$1"
  # Created inside the namespace and moved out by name, so that "eth0" never exists on the host.
  ip link add "$2" numrxqueues 1 numtxqueues 1 type veth peer name eth0 netns "$1" numrxqueues 1 numtxqueues 1
  ip -n "$1" link set lo up
  ip -n "$1" addr add "$3/24" dev eth0
  ip -n "$1" link set eth0 up
  ip link set "$2" up
}

# wait_for WHAT SECONDS PID COMMAND...: waits until COMMAND succeeds; fails early if process PID has ended.
wait_for() {
  local what=$1 deadline=$((SECONDS + $2)) pid=$3; shift 3
  until "$@" > /dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null || { say "error: $what: the process ended"; return 1; }
    [ "$SECONDS" -lt "$deadline" ] || { say "error: $what: not within the time allowed"; return 1; }
    sleep 0.1
  done
}

start_switch() {
  step "starting crosspoint"
  mkdir -p "$RUN_DIR"
  rm -f "$GUEST_SOCKET" "$CONTROL_SOCKET"
  if [ -n "$SWITCH" ]; then
    spawn "$WORK/switch.log" bash -c "exec $SWITCH"
    SWITCH_PID=$SPAWNED
    sleep 1
    return
  fi
  spawn "$WORK/switch.log" "$BINARY" run --config "$CONFIG"
  SWITCH_PID=$SPAWNED
  wait_for "metrics at $METRICS_URL" 20 "$SWITCH_PID" curl -fsS -m 2 "$METRICS_URL" || { tail -n 30 "$WORK/switch.log" >&2; exit 1; }
  say "crosspoint runs (process $SWITCH_PID); metrics at $METRICS_URL"
}

start_guest() {
  step "booting the guest: $(guest_description) ($ADDR_GUEST)"
  wait_for "vhost-user socket $GUEST_SOCKET" 10 "$SWITCH_PID" test -S "$GUEST_SOCKET" || { tail -n 30 "$WORK/switch.log" >&2; exit 1; }
  spawn "$WORK/guest.log" "$GUEST_DIR/$GUEST.sh" --socket "$GUEST_SOCKET" --job server --ip "$ADDR_GUEST/24" --mac 52:54:00:99:77:03
  GUEST_PID=$SPAWNED
  wait_for "the guest's boot" 90 "$GUEST_PID" grep -aq GUEST-READY "$WORK/guest.log" || { tail -n 30 "$WORK/guest.log" >&2; exit 1; }
  grep -aE '^(GUEST-UP|VIRTIO-FEATURES)' "$WORK/guest.log" | tr -d '\r'
}

start_service() {
  spawn "$WORK/service.log" "$GUEST_DIR/peer-service.sh" --netns cpdemo-b server
  SERVICE_PID=$SPAWNED
  wait_for "the service in cpdemo-b" 15 "$SERVICE_PID" grep -q GUEST-READY "$WORK/service.log" || { cat "$WORK/service.log" >&2; exit 1; }
}

# print_results: converts a job's output to lines for people.
print_results() {
  local line
  while IFS= read -r line; do
    case $line in
      'RESULT ping=ok') echo "  ping                       ok" ;;
      'RESULT ping_rtt_avg_ms='*) echo "  round trip, mean           ${line#*=} ms" ;;
      'RESULT iperf3_mbps='[0-9]*) echo "  iperf3 there               ${line#*=} Mbit/s" ;;
      'RESULT iperf3_reverse_mbps='[0-9]*) echo "  iperf3 back                ${line#*=} Mbit/s" ;;
      'RESULT sha=ok') echo "  40 MiB, SHA-256 compared   ok" ;;
      'RESULT '*=fail | 'RESULT '*=bad) echo "  FAILED: ${line#RESULT }" ;;
      'RESULT '* | REACHED-AT* | CLIENT-DONE*) ;;
      *) echo "  $line" ;;
    esac
  done
}

# check LABEL NAMESPACE PEER: runs the checks from a namespace to PEER, and prints the results as they arrive.
check() {
  local status=0 printer
  step "$1"
  : > "$WORK/job.log"
  spawn "$WORK/job.log" env SECS="$SECS" WAIT_S=15 "$GUEST_DIR/peer-service.sh" --netns "$2" client "$3"
  JOB_PID=$SPAWNED
  # In the background, since bash runs a trap only between foreground commands.
  tail -n +1 -s 0.2 -f --pid="$JOB_PID" "$WORK/job.log" 8>&- | print_results 8>&- &
  printer=$!
  wait "$JOB_PID" || status=$?
  JOB_PID=''
  wait "$printer" || true
  [ "$status" -eq 0 ] || FAILED=1
}

show_metrics() {
  [ -z "$SWITCH" ] || return 0
  step "the switch's counters"
  curl -fsS -m 5 "$METRICS_URL" |
    grep -vE '^crosspoint_drops_total.* 0$' |
    grep -E '^crosspoint_(queue_packets_total|queue_bytes_total|drops_total|worker_cycles_total)(\{| )' || { say "error: the metrics lack the expected counters"; FAILED=1; }
  step "crosspoint show ports"
  "$BINARY" show --socket "$CONTROL_SOCKET" ports || FAILED=1
}

main() {
  parse_options "$@"
  [ "$(id -u)" -eq 0 ] || die "needs root: it makes network namespaces and attaches XDP programs"
  prepare
  need_command ip iperf3 curl flock setsid
  # One demonstration at a time. While the lock is held, remains of a killed demonstration can be removed safely.
  exec 8> /run/lock/crosspoint-demo.lock
  flock -n 8 || die "another demonstration is running"
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  WORK=$(mktemp -d)
  OWNED=1
  [ "$GUEST" = none ] || pick_guest
  make_network
  start_switch
  [ "$GUEST" = none ] || start_guest
  start_service
  check "namespace cpdemo-a to namespace cpdemo-b" cpdemo-a "$ADDR_B"
  if [ "$GUEST" != none ]; then check "namespace cpdemo-a to the guest" cpdemo-a "$ADDR_GUEST"; fi
  show_metrics
  if [ "$FAILED" -eq 0 ]; then step "all checks passed"; else step "SOME CHECKS FAILED"; fi
  exit "$FAILED"
}

main "$@"
