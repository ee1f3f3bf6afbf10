#!/bin/bash
# instructions.sh [--build | --baseline | BINARY]: checks the machine code of the data path, in a build of the release
# profile. Without BINARY it builds the example by_turns of crosspoint-engine, a worker and its guests in one thread, and also
# counts the instructions that it executes; with BINARY, it checks only that file. --build builds the example, and ends.
# --baseline also writes the counts to deploy/instructions.baseline.
#
#   prefetchw  lines that will be written are prefetched for writing
#   vectors    checksums have variants for AVX2 and AVX-512, chosen at run time, and no other function of the switch has such instructions
#   lock       the stages of a burst have no locked instruction and no fence
#   executed   a lone worker executes one locked instruction for each poll iteration that has frames, the fence before it checks whether guests
#              want to be called, and none for a frame
#   baseline   the worker executes at most 1 % more instructions for the same frames than deploy/instructions.baseline says.
#              A commit that changes this file says why. A change that is not configured must cost nothing
#   old        everything runs on a processor of 2006 that has nothing beyond SSSE3, and on one of 2003 without SSSE3
#
# Needs objdump; valgrind and qemu-x86_64 for the last two: deploy/install-deps.sh instructions. No root.
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
. "$REPO/deploy/lib.sh"

# Stages of a burst, as regular expressions over demangled names: these may contain no locked instruction. Functions that
# several workers may run at the same time (deliver_plain, publish_noted) contain some for that case; for a lone worker, the
# executed ones are counted.
STAGES=(
  'tx::split::SplitTx::receive$' 'tx::split::SplitTx::look_ahead$' 'tx::split::SplitTx::complete$'
  'tx::packed::PackedTx::look_ahead$'
  'stages::admit$' 'stages::parse$' 'stages::lookup$' 'deliver::deliver$'
  'rx::plain::.*::fill_plain$' 'rx::plain::.*::count_plain$' 'rx::plain::.*::look_from$'
)
# Functions that prefetch lines for writing.
ASKS=('rx::plain::.*::look_from$')
# Number of times that the example sends 256 frames, and the poll iterations in which they arrive.
REPEATS=300 TURNS=$((300 * 4))
# Locked instructions at the start, when the worker takes its streams.
START_MAX=100
# Instructions of each workload; they depend on the compiler, so each version has its own lines. They do not depend on the
# processor: functions that the C library chooses by its features are not counted, and those that the switch chooses so (sums
# of checksums) may not be executed here.
BASELINE=$REPO/deploy/instructions.baseline
TOLERANCE_PERCENT=1
# Without AVX; without SSSE3 and all later extensions.
OLD=(core2duo Opteron_G1)

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
FAILED=0
wrong() { say "wrong: $*"; FAILED=1; }

build() {
  local dir
  dir=$(find_cargo_dir) || die "no Rust $(cargo_min) or newer: deploy/install-deps.sh build"
  (cd "$REPO" && PATH=$dir:$PATH cargo build --locked --quiet --release --package crosspoint-engine --example by_turns)
  BINARY=${CARGO_TARGET_DIR:-$REPO/target}/release/examples/by_turns
}

# For each function of the switch: its name, and its number of instructions of each kind. Several may have the same name: one
# for each ring layout.
# shellcheck disable=SC2016 # awk's
functions() {
  awk '
    function done() { if (name ~ /crosspoint_(engine|vring|frame|packet)/) printf "%d\t%d\t%d\t%d\t%s\n", locked, prefetchw, ymm, zmm, name }
    /^[0-9a-f]+ <.*>:$/ { done(); name = $0; sub(/^[0-9a-f]+ </, "", name); sub(/>:$/, "", name); locked = prefetchw = ymm = zmm = 0; next }
    /^ *[0-9a-f]+:/ {
      code = $0; sub(/^ *[0-9a-f]+:[ \t]*/, "", code)
      if (code ~ /^lock / || code ~ /^xchg .*\(/ || code ~ /^mfence/) locked++
      if (code ~ /^prefetchw/) prefetchw++
      if (code ~ /%ymm/) ymm++
      if (code ~ /%zmm/) zmm++
    }
    END { done() }
  ' "$WORK/code"
}

# of PATTERN: the lines of the functions whose names match.
of() { awk -F '\t' -v pattern="$1" '$5 ~ pattern' "$WORK/functions"; }

# some COLUMN PATTERN: the number of instructions of a column's kind in the functions whose names match.
some() { of "$2" | awk -F '\t' -v column="$1" '{ count += $column } END { print count + 0 }'; }

look() {
  local name
  objdump --disassemble --no-show-raw-insn --demangle "$BINARY" > "$WORK/code"
  functions > "$WORK/functions"
  [ -s "$WORK/functions" ] || die "$BINARY has no symbols of the switch: it is stripped, or not crosspoint"
  for name in "${STAGES[@]}"; do
    if [ -z "$(of "$name")" ]; then wrong "no function '$name': inlined, or of another name by now; then this script has to know it"; continue; fi
    [ "$(some 1 "$name")" = 0 ] || wrong "a locked instruction or a fence in '$name'"
  done
  for name in "${ASKS[@]}"; do [ "$(some 2 "$name")" -gt 0 ] || wrong "no prefetchw in '$name'"; done
  [ "$(some 3 'sum::x86::avx2$')" -gt 0 ] || wrong "no ymm register in sum::x86::avx2"
  [ "$(some 4 'sum::x86::avx512$')" -gt 0 ] || wrong "no zmm register in sum::x86::avx512"
  while IFS= read -r name; do wrong "vectors that not every processor has, in $name"; done < <(awk -F '\t' '$3 + $4 > 0 && $5 !~ /sum::x86::avx/ { print $5 }' "$WORK/functions")
  say "compiled: $(wc -l < "$WORK/functions") functions, $(awk -F '\t' '{ count += $2 } END { print count }' "$WORK/functions") times prefetchw; ${#STAGES[@]} stages without a locked instruction"
}

# count WORD...: instructions that the example executes: locked ones, and all.
# shellcheck disable=SC2016 # awk's
count() {
  local counted all chosen
  valgrind --quiet --tool=callgrind --dump-instr=yes --compress-pos=no --compress-strings=no --collect-atstart=no --toggle-collect='by_turns::turn*' \
    --callgrind-out-file="$WORK/executed" "$BINARY" "$REPEATS" counted "$@" > /dev/null
  # Addresses in both files are those in the binary. A line after "calls=" belongs to the callee, and is counted there
  # already.
  awk '
    FNR == NR {
      if ($0 !~ /^ *[0-9a-f]+:/) next
      code = $0; sub(/^ *[0-9a-f]+:[ \t]*/, "", code)
      if (code ~ /^lock / || code ~ /^xchg .*\(/ || code ~ /^mfence/) { address = $1; sub(/:/, "", address); locked[address] = 1 }
      next
    }
    /^ob=/ { own = ($0 ~ /by_turns/) }
    /^fn=/ { is_chosen = ($0 ~ /sum::x86/) }
    /^calls=/ { callee = 1; next }
    /^0x/ {
      if (callee) { callee = 0; next }
      if (!own) next
      address = substr($1, 3); all += $3
      if (address in locked) count += $3
      if (is_chosen) chosen += $3
    }
    END { printf "%d %d %d\n", count, all, chosen }
  ' "$WORK/code" "$WORK/executed" > "$WORK/count"
  read -r counted all chosen < "$WORK/count"
  [ "$counted" -le $((TURNS + START_MAX)) ] || wrong "$counted locked instructions executed in $TURNS turns with $((REPEATS * 256)) frames ($*)"
  [ "$counted" -ge "$TURNS" ] || wrong "$counted locked instructions executed in $TURNS turns: the fence is missing, or nothing was counted ($*)"
  say "executed: $counted locked instructions in $TURNS turns with $((REPEATS * 256)) frames${*:+ ($*)}"
  [ "$chosen" = 0 ] || wrong "$chosen instructions of functions that are chosen by the processor's features: the count depends on it ($*)"
  compare "$all" "${*:-plain}"
}

# compiler: the version of the compiler that made the binary, and its commit.
compiler() { readelf --string-dump=.comment "$BINARY" | sed -n 's/.*rustc version \([^ ]*\) (\([^ ]*\).*/\1-\2/p' | head -1; }

# compare COUNT WORKLOAD: compares with the baseline, or writes it.
compare() {
  local version before percent
  version=$(compiler)
  [ -n "$version" ] || { wrong "the binary does not name its compiler"; return; }
  if [ -n "$UPDATE" ]; then
    awk -v version="$version" -v workload="$2" '!/^#/ && !($1 == version && $2 == workload)' "$BASELINE" > "$WORK/baseline" 2> /dev/null || true
    {
      echo "# Instructions that a worker executes; written by deploy/instructions.sh --baseline. Compiler, workload, instructions."
      { cat "$WORK/baseline"; echo "$version $2 $1"; } | LC_ALL=C sort
    } > "$BASELINE"
    say "baseline: $1 instructions ($2)"
    return
  fi
  before=$(awk -v version="$version" -v workload="$2" '$1 == version && $2 == workload { print $3 }' "$BASELINE" 2> /dev/null || true)
  if [ -z "$before" ]; then
    say "NOT COMPARED: $1 instructions ($2), since $(basename "$BASELINE") has no line for $version. Check out a commit that is known to be good, run $(basename "$0") --baseline there, and compare"
    return
  fi
  percent=$(awk -v now="$1" -v before="$before" 'BEGIN { printf "%+.2f", (now - before) * 100 / before }')
  if [ $(($1 * 100)) -gt $((before * (100 + TOLERANCE_PERCENT))) ]; then
    wrong "$1 instructions instead of $before, $percent % ($2). If that is meant: deploy/instructions.sh --baseline, and say why in the commit"
  elif [ $(($1 * 100)) -lt $((before * (100 - TOLERANCE_PERCENT))) ]; then
    say "executed: $1 instructions, $percent % ($2): fewer than the baseline. Record them: deploy/instructions.sh --baseline"
  else
    say "executed: $1 instructions, $percent % ($2)"
  fi
}

old() {
  local cpu
  for cpu in "${OLD[@]}"; do
    # The C library lists the levels that it finds; QEMU lists features of a model that it does not emulate, none of which is
    # used here.
    if qemu-x86_64 -cpu "$cpu" "$BINARY" "$@" > "$WORK/old" 2> "$WORK/old.err"; then say "runs on: $cpu"; continue; fi
    cat "$WORK/old" "$WORK/old.err" >&2
    wrong "does not run on $cpu"
  done
}

case ${1:-} in -h | --help) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
need_command objdump readelf
[ "$(uname -m)" = x86_64 ] || die "only the instructions of x86-64 are known"
if [ "${1:-}" = --build ]; then build; exit; fi
UPDATE=
if [ "${1:-}" = --baseline ]; then UPDATE=1; shift; fi
BINARY=${1:-}
if [ -n "$BINARY" ]; then
  look
  if command -v qemu-x86_64 > /dev/null; then old --version; else say "not run: on old processors (no qemu-x86_64)"; fi
else
  need_command valgrind qemu-x86_64
  build
  look
  count
  count packed
  count addresses=4000
  old 10
  old 10 packed
fi
exit "$FAILED"
