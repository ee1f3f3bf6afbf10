#!/bin/bash
# screenshots.sh [BINARY]: writes switch/docs/images/grafana-*.png, the dashboards as render.py draws them, with a daemon's
# metrics while a DPDK guest sends against its limit. As root. Needs Debian's packages prometheus, dpdk-dev and
# python3-matplotlib, and the daemon BINARY (default: the debug build). No test runs it.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$(dirname "$HERE")")
IMAGES=$REPO/switch/docs/images
# Seconds of traffic in the graphs.
SECONDS_SHOWN=${SECONDS_SHOWN:-60}

if [ "${1:-}" = --shoot ]; then
  # Second call, beside the daemon and Prometheus, with the address of Prometheus.
  sleep "$SECONDS_SHOWN"
  exec /usr/bin/python3 -B "$HERE/render.py" "$2" "$IMAGES" "$SECONDS_SHOWN"
fi

BINARY=$(realpath "${1:-${CARGO_TARGET_DIR:-$REPO/target}/debug/crosspoint}")
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$IMAGES"
# Of the guest's port, and of two more.
export CROSSPOINT_SCRAPE_MORE='limit = { out = { rate = "500Mbit/s" } }
[[port]]
name = "web-2"
type = "vhost"
socket = "'$WORK'/guests/web-2.sock"
isolated = true
[[port]]
name = "web-3"
type = "vhost"
socket = "'$WORK'/guests/web-3.sock"
admin = "down"'
export CROSSPOINT_PROMETHEUS_THEN="$HERE/screenshots.sh --shoot"
CROSSPOINT_SCRAPE_THEN="/usr/bin/python3 -B $REPO/deploy/check/prometheus.py" "$REPO/deploy/check/scrape.sh" "$BINARY" "$WORK"
