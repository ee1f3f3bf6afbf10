#!/bin/bash
# screenshot.sh [BINARY]: writes switch/docs/images/prometheus.png, a screenshot of Prometheus' own page with a daemon's
# metrics while a DPDK guest sends. As root. Needs Debian's packages prometheus (with its pages), chromium and dpdk-dev, and
# the daemon BINARY (default: the debug build). No test runs it.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$(dirname "$HERE")")
IMAGE=$REPO/switch/docs/images/prometheus.png
# Seconds of traffic in the graphs.
SECONDS_SHOWN=${SECONDS_SHOWN:-30}

if [ "${1:-}" = --shoot ]; then
  # Second call, beside the daemon and Prometheus, with the address of Prometheus.
  address=$2
  sleep "$SECONDS_SHOWN"
  profile=$(mktemp -d)
  trap 'rm -rf "$profile"' EXIT
  page=$address/classic/graph
  curl -fsS -o /dev/null "$page" 2> /dev/null || page=$address/graph
  query=
  number=0
  add() { # EXPRESSION
    query+="&g$number.expr=$(jq -rn --arg e "$1" '$e|@uri')&g$number.tab=0&g$number.range_input=${SECONDS_SHOWN}s&g$number.stacked=0"
    number=$((number + 1))
  }
  add 'sum by (port, direction) (rate(crosspoint_queue_packets_total[5s]))'
  add 'histogram_quantile(0.99, sum by (le, port) (rate(crosspoint_queue_completion_seconds_bucket[5s])))'
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$profile" --window-size=1200,1610 --virtual-time-budget=20000 \
    --screenshot="$IMAGE" "$page?${query#&}" 2> /dev/null
  exit
fi

BINARY=$(realpath "${1:-${CARGO_TARGET_DIR:-$REPO/target}/debug/crosspoint}")
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$(dirname "$IMAGE")"
export CROSSPOINT_PROMETHEUS_THEN="$HERE/screenshot.sh --shoot"
CROSSPOINT_SCRAPE_THEN="/usr/bin/python3 -B $REPO/deploy/check/prometheus.py" "$REPO/deploy/check/scrape.sh" "$BINARY" "$WORK"
ls -l "$IMAGE"
