#!/bin/bash
# scrape.sh BINARY DIR [WRAPPER...]: runs the daemon for a second, in a temporary network namespace, with a working uplink (a
# veth), an uplink whose interface is missing, a guest port with a security group, and a mirror. Writes DIR/metrics.txt, DIR/ports.json, DIR/sockets (mode,
# user and group) and DIR/log. WRAPPER is put before the daemon's command line, as in "setpriv --reuid 1000".
# CROSSPOINT_SCRAPE_MORE is added at the end of the configuration: keys of the guest port, and tables.
# CROSSPOINT_SCRAPE_THEN is a command to run meanwhile, with DIR and the address of the metrics as arguments. The daemon must
# end with 0 on SIGTERM.
set -euo pipefail
BINARY=$(realpath "$1") DIR=$(realpath "$2"); shift 2
if [ -z "${CROSSPOINT_SCRAPE_INSIDE:-}" ]; then
  CROSSPOINT_SCRAPE_INSIDE=1 exec unshare --net --mount -- "$0" "$BINARY" "$DIR" "$@"
fi

# /sys of this network namespace, so that the daemon finds the veth there.
mount -t sysfs sysfs /sys
ip link set lo up
ip link add check0 numrxqueues 1 numtxqueues 1 type veth peer name check1 numrxqueues 1 numtxqueues 1
ip link set check0 up
ip link set check1 up

mkdir -p "$DIR/guests"
cat > "$DIR/check.toml" <<TOML
version = 1
[workers]
cores = "auto"
[metrics]
listen = "127.0.0.1:9477"
[control]
socket = "$DIR/control.sock"
[[group]]
name = "all"
rules = [{ direction = "in" }, { direction = "out" }]
[[mirror]]
name = "ids"
to = "up0"
to_vlan = 999
[[port]]
name = "up0"
type = "xdp"
interface = "check0"
[[port]]
name = "away"
type = "xdp"
interface = "missing0"
[[port]]
name = "web-1"
type = "vhost"
socket = "$DIR/guests/web-1.sock"
slo = { completion_p50 = "10us", completion_p99 = "1ms" }
groups = ["all"]
${CROSSPOINT_SCRAPE_MORE:-}
TOML
chmod 644 "$DIR/check.toml"

setpriv --pdeathsig KILL -- "$@" "$BINARY" run --config "$DIR/check.toml" > "$DIR/log" 2>&1 &
PID=$!
up() {
  curl -fsS -m 2 -o "$DIR/metrics.txt" http://127.0.0.1:9477/metrics 2> /dev/null &&
    grep -qx 'crosspoint_port_up{port="up0"} 1' "$DIR/metrics.txt" && grep -q '^crosspoint_xdp_' "$DIR/metrics.txt"
}
tries=${CROSSPOINT_SCRAPE_TRIES:-100}
until up; do
  tries=$((tries - 1))
  if [ "$tries" -eq 0 ] || ! kill -0 "$PID" 2> /dev/null; then cat "$DIR/log" >&2; kill "$PID" 2> /dev/null || true; exit 1; fi
  sleep 0.1
done
"$BINARY" show --json --socket "$DIR/control.sock" ports > "$DIR/ports.json"
stat -c '%a %u %g %n' "$DIR/control.sock" "$DIR/guests/web-1.sock" > "$DIR/sockets"
status=0
# shellcheck disable=SC2086 # words
if [ -n "${CROSSPOINT_SCRAPE_THEN:-}" ]; then $CROSSPOINT_SCRAPE_THEN "$DIR" 127.0.0.1:9477 || status=$?; fi
kill "$PID"
tries=50
while kill -0 "$PID" 2> /dev/null && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
kill -KILL "$PID" 2> /dev/null || true
wait "$PID"
exit "$status"
