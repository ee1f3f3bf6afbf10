#!/bin/bash
# fuzz.sh [SECONDS] [TARGET...]: runs the fuzz targets of switch/fuzz, each for SECONDS (default 60), all of them without a TARGET. Begins with
# the committed seeds and what earlier runs found interesting (target/fuzz/corpus). An input that crashes a target is left in
# target/fuzz/artifacts and named; keep it as a test. Ends with 0 only if none was found.
#
# With a nightly Rust, or one that has the sanitizers' runtimes, under address sanitizer; else without, where only what the targets assert, and
# the kernel's own protection, finds mistakes.
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
. "$REPO/deploy/lib.sh"

FUZZ=$REPO/switch/fuzz
TARGET=${CARGO_TARGET_DIR:-$REPO/target}/fuzz
SECS=60 TARGETS=() CARGO=(cargo) SANITIZER=address

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

parse_options() {
  case ${1:-} in
    -h | --help) usage; exit 0 ;;
    [0-9]*) SECS=$1; shift ;;
  esac
  [[ $SECS =~ ^[0-9]+$ ]] || die "'$SECS' is no number of seconds"
  mapfile -t known < <(sed -n 's/^path = "fuzz_targets\/\(.*\)\.rs"$/\1/p' "$FUZZ/Cargo.toml")
  for word in "$@"; do
    [[ " ${known[*]} " == *" $word "* ]] || die "'$word' is no target: ${known[*]}"
    TARGETS+=("$word")
  done
  [ "${#TARGETS[@]}" -gt 0 ] || TARGETS=("${known[@]}")
}

# pick_toolchain: instrumentation needs options that stable Rust has and hides: RUSTC_BOOTSTRAP shows them.
pick_toolchain() {
  local dir sysroot
  dir=$(find_cargo_dir) || die "no Rust $(cargo_min) or newer: run deploy/install-deps.sh build"
  PATH=$dir:$HOME/.cargo/bin:$PATH
  command -v cargo-fuzz > /dev/null || die "cargo-fuzz is missing: cargo install --locked cargo-fuzz"
  if command -v rustup > /dev/null && rustup toolchain list 2> /dev/null | grep -q '^nightly'; then
    CARGO=(cargo +nightly)
    return
  fi
  export RUSTC_BOOTSTRAP=1
  sysroot=$(rustc --print sysroot)
  if ! compgen -G "$sysroot/lib/rustlib/*/lib/librustc*_rt.asan.a" > /dev/null; then
    SANITIZER=none
    say "warning: this Rust has no address sanitizer: fuzzing without"
  fi
}

# fuzz TARGET: to the end of its time, or to its first crash.
fuzz() {
  local corpus=$TARGET/corpus/$1 artifacts=$TARGET/artifacts/$1
  mkdir -p "$corpus" "$artifacts"
  printf '\n== %s, %d s\n' "$1" "$SECS"
  (cd "$FUZZ" && CARGO_TARGET_DIR=$TARGET "${CARGO[@]}" fuzz run --fuzz-dir . --sanitizer "$SANITIZER" "$1" "$corpus" "$FUZZ/seeds/$1" -- \
    -max_total_time="$SECS" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$artifacts/" -print_final_stats=1)
}

main() {
  local target failed=()
  parse_options "$@"
  pick_toolchain
  for target in "${TARGETS[@]}"; do
    fuzz "$target" || failed+=("$target")
  done
  if [ "${#failed[@]}" -gt 0 ]; then die "inputs that crash: ${failed[*]}; see $TARGET/artifacts"; fi
  printf '\n== fuzz.sh: nothing found in %s, %d s each\n' "${TARGETS[*]}" "$SECS"
}

main "$@"
