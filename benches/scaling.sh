#!/bin/bash
# scaling.sh [run]: how crosspoint scales with workers: as many pairs as workers, each with its own guests, compared with one
# pair; and 1 to 7 guests that send to one. For a machine with a core for each worker, as many for generators, and one or two
# for everything else: 16 for 7 workers. It needs nothing installed but two static binaries, beside this script or in BIN:
#   RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu -p crosspoint -p crosspoint-bench
#   BIN=DIR            where crosspoint and crosspoint-bench are
#   WORKERS="1 2 4 7"  numbers of workers; ratios are to the first of these
#   CORES="..."        cores to use: for W workers the first W are for generators, the next W for workers; default: all that this process may
#                      use, except the first. Do not name siblings of one core unless that is intended
#   SENDERS="1 .. 7"   numbers of senders to one receiver, with the largest number of workers
#   SIZE=64            frame size, as in the names of the suite's scenarios, or imix
#   ROUNDS=3 TRIALS=5 TRIAL_MS=500
#   OUT=DIR            where to write the report of every run; default: a new directory
#   OPTIONS="..."      more options of `crosspoint-bench suite`, such as --realtime or --huge-pages
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
WORKERS=${WORKERS:-1 2 4 7} SENDERS=${SENDERS:-1 2 3 4 5 6 7} SIZE=${SIZE:-64} ROUNDS=${ROUNDS:-3} TRIALS=${TRIALS:-5} TRIAL_MS=${TRIAL_MS:-500}
OPTIONS=${OPTIONS:-}

die() { echo "error: $*" >&2; exit 1; }

# binaries: the folder that contains both.
binaries() {
  local dir
  for dir in ${BIN:+"$BIN"} "$HERE" "$HERE/../target/x86_64-unknown-linux-musl/release" "$HERE/../target/x86_64-unknown-linux-gnu/release" \
    "$HERE/../target/release"; do
    if [ -x "$dir/crosspoint" ] && [ -x "$dir/crosspoint-bench" ]; then echo "$dir"; return; fi
  done
  die "no crosspoint and crosspoint-bench: set BIN"
}

# cores: those of CORES, or all that this process may use except the first, one per line.
cores() {
  local part
  if [ -n "${CORES:-}" ]; then tr -s ' ,' '\n' <<< "$CORES"; return; fi
  for part in $(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status | tr ',' ' '); do seq "${part%-*}" "${part#*-}"; done | sed 1d
}

# pick FROM COUNT: this many cores of the list, separated by commas.
pick() { printf '%s\n' "${ALL[@]:$1:$2}" | paste -sd, -; }

# suite WORKERS SCENARIOS DIR: one run of the suite.
suite() {
  echo "== $1 workers: $2" >&2
  # shellcheck disable=SC2086 # several options
  "$DIR/crosspoint-bench" suite --switch "$DIR/crosspoint" --scenarios "$2" --generator-cores "$(pick 0 "$1")" --switch-cores "$(pick "$1" "$1")" \
    --rounds "$ROUNDS" --trials "$TRIALS" --trial-ms "$TRIAL_MS" --any-placement --out "$3" $OPTIONS > /dev/null
}

# mpps DIR SCENARIO: the median of the trials that count. serde_json prints one value per line.
mpps() {
  awk -v scenario="$2" '
    $1 == "\"scenario\":" { name = $2; gsub(/[",]/, "", name) }
    $1 == "\"mpps\":" { rate = $2 + 0 }
    $1 == "\"discarded\":" && name == scenario && $2 ~ /^null/ { print rate }
  ' "$1/results.json" | sort -g | awk '{ all[NR] = $1 } END { if (NR) printf "%.3f\n", (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2; else print "nan" }'
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.3f", a / b; else print "nan" }'; }

run() {
  local workers first='' first_rate='' rate senders most=1 alone=''
  DIR=$(binaries)
  OUT=${OUT:-$(mktemp -d)}
  mkdir -p "$OUT"
  mapfile -t ALL < <(cores)
  for workers in $WORKERS; do most=$((workers > most ? workers : most)); done
  [ "${#ALL[@]}" -ge $((2 * most)) ] || die "$most workers need $((2 * most)) cores, and there are ${#ALL[@]}: set WORKERS or CORES"
  for workers in $WORKERS; do suite "$workers" "pairs$workers-$SIZE" "$OUT/pairs-$workers"; done
  # shellcheck disable=SC2086 # a list
  suite "$most" "$(printf "many-to-one-%s$([ "$SIZE" = 64 ] || echo "-$SIZE"),"  $SENDERS | sed 's/,$//')" "$OUT/many-to-one"
  echo "Frames of $SIZE, generators and workers on a core each; medians of $ROUNDS x $TRIALS trials of $TRIAL_MS ms. All trials: $OUT"
  printf '\n| workers, pairs | Mpps | of linear |\n|--:|--:|--:|\n'
  for workers in $WORKERS; do
    rate=$(mpps "$OUT/pairs-$workers" "pairs$workers-$SIZE")
    if [ -z "$first" ]; then first=$workers first_rate=$rate; fi
    printf '| %s | %s | %s |\n' "$workers" "$rate" "$(ratio "$(ratio "$rate" "$first_rate")" "$(ratio "$workers" "$first")")"
  done
  printf '\n| senders to one receiver, %s workers | Mpps that arrived | of the first |\n|--:|--:|--:|\n' "$most"
  for senders in $SENDERS; do
    rate=$(mpps "$OUT/many-to-one" "many-to-one-$senders$([ "$SIZE" = 64 ] || echo "-$SIZE")")
    alone=${alone:-$rate}
    printf '| %s | %s | %s |\n' "$senders" "$rate" "$(ratio "$rate" "$alone")"
  done
}

case ${1:-run} in
  run) run ;;
  *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
esac
