#!/bin/bash
# fuzz.sh [--stable] [--sanitizer address|none] [--build] [SECONDS] [TARGET...]: runs the fuzz targets of switch/fuzz, each
# for SECONDS (default 60); all of them without a TARGET; as many at the same time as there are cores. Begins with the
# committed seeds and the interesting inputs of earlier runs (target/fuzz/corpus). Prints one line for each target with the
# path of its log. An input that crashes a target is kept in target/fuzz/artifacts, and its path is printed; add it as a
# test. Ends with 0 only if there was none.
#
# With a nightly Rust, or one that has the sanitizers' runtimes, it uses the address sanitizer; otherwise only the targets'
# own assertions and the kernel's memory protection find faults. --stable does not use the nightly Rust; --build builds, and
# runs nothing.
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
. "$REPO/deploy/lib.sh"

FUZZ=$REPO/switch/fuzz
TARGET=${CARGO_TARGET_DIR:-$REPO/target}/fuzz
SECS=60 TARGETS=() CARGO=(cargo) SANITIZER='' NIGHTLY=1 RUN=1

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

parse_options() {
  mapfile -t known < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' "$FUZZ/Cargo.toml")
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --stable) NIGHTLY='' ;;
      --build) RUN='' ;;
      --sanitizer) SANITIZER=${2:-}; shift ;;
      [0-9]*) SECS=$1 ;;
      *)
        [[ " ${known[*]} " == *" $1 "* ]] || die "'$1' is no target: ${known[*]}"
        TARGETS+=("$1")
        ;;
    esac
    shift
  done
  [[ $SECS =~ ^[0-9]+$ ]] || die "'$SECS' is not a number of seconds"
  case $SANITIZER in '' | address | none) ;; *) die "--sanitizer address, or none" ;; esac
  [ "${#TARGETS[@]}" -gt 0 ] || TARGETS=("${known[@]}")
}

# pick_toolchain: instrumentation needs options that stable Rust has but hides; RUSTC_BOOTSTRAP enables them.
pick_toolchain() {
  local dir sysroot
  dir=$(find_cargo_dir) || die "no Rust $(cargo_min) or newer: run deploy/install-deps.sh build"
  PATH=$dir:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  command -v cargo-fuzz > /dev/null || die "cargo-fuzz is missing: run deploy/install-deps.sh fuzz"
  if [ -n "$NIGHTLY" ] && has_nightly; then
    CARGO=(rustup run nightly cargo)
  else
    export RUSTC_BOOTSTRAP=1
    sysroot=$(rustc --print sysroot)
    if [ -z "$SANITIZER" ] && ! compgen -G "$sysroot/lib/rustlib/*/lib/librustc*_rt.asan.a" > /dev/null; then
      SANITIZER=none
      say "warning: this Rust has no address sanitizer: fuzzing without"
    fi
  fi
  : "${SANITIZER:=address}"
}

# build: all wanted targets; their common dependencies are compiled once.
build() {
  local name=()
  [ "${#TARGETS[@]}" -gt 1 ] || name=("${TARGETS[0]}")
  (cd "$FUZZ" && CARGO_TARGET_DIR=$TARGET "${CARGO[@]}" fuzz build --fuzz-dir . --sanitizer "$SANITIZER" --codegen-units 16 "${name[@]}")
  BINARIES=$TARGET/$("${CARGO[@]}" -vV | sed -n 's/^host: //p')/release
}

# fuzz TARGET: runs to the end of its time, or to its first crash, and then prints its line.
fuzz() {
  local corpus=$TARGET/corpus/$1 artifacts=$TARGET/artifacts/$1 log=$TARGET/$1.log status=0 runs details
  mkdir -p "$corpus" "$artifacts"
  # libFuzzer writes only into the first folder.
  ASAN_OPTIONS=detect_odr_violation=0 "$BINARIES/$1" -max_total_time="$SECS" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix="$artifacts/" -print_final_stats=1 "$corpus" "$FUZZ/seeds/$1" > "$log" 2>&1 || status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  if [ "$status" -eq 0 ]; then
    printf '%s: nothing found in %s inputs, %d s; %s\n' "$1" "${runs:-?}" "$SECS" "$log"
    return
  fi
  # Printed in one piece, since other targets print at the same time.
  details=$(grep -m 3 -A 3 -E 'panicked at|ERROR: |SUMMARY: ' "$log" || tail -n 20 "$log")
  printf '%s: FOUND, status %d, after %s inputs: %s; %s\n%s\n' "$1" "$status" "${runs:-?}" "$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)" \
    "$log" "$details"
  return 1
}

main() {
  local target failed=0 running=0
  parse_options "$@"
  pick_toolchain
  build
  [ -n "$RUN" ] || return 0
  trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
  for target in "${TARGETS[@]}"; do
    if [ "$running" -ge "$(nproc)" ]; then
      wait -n || failed=$((failed + 1))
      running=$((running - 1))
    fi
    fuzz "$target" &
    running=$((running + 1))
  done
  while [ "$running" -gt 0 ]; do
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
  done
  if [ "$failed" -gt 0 ]; then die "$failed of ${#TARGETS[@]} fuzz targets found something"; fi
  printf 'fuzz.sh: nothing found by %s, sanitizer: %s\n' "${TARGETS[*]}" "$SANITIZER"
}

main "$@"
