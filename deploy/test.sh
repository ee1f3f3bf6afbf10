#!/bin/bash
# test.sh [--no-install] [PART...]: installs what the tests need (Debian 12, Ubuntu 24.04), and only what is missing; makes
# the test guests; then runs the tests. As root, from any folder; needs no terminal. Without a part: all of them.
#
#   unit   builds everything, and runs every test except those of e2e; root, since some load XDP programs
#   deploy the files in deploy/ for operators, against a running daemon: deploy/check.sh
#   e2e    the daemon with network namespaces, DPDK, User-Mode Linux and QEMU guests, and a minute of `crosspoint-bench soak`; uses cores 0 and 1. A test that fails is run a second
#          time, and is listed at the end if it then passes: on a busy machine a guest may once be too slow
#   lint   rustfmt; clippy, with warnings as errors; shellcheck
#   loom   the lock-free parts under every interleaving, within bounds
#   miri   the rings under an interpreter that detects undefined behaviour; needs a nightly Rust, from rustup
#   fuzz   every fuzz target for five seconds: deploy/fuzz.sh; under the address sanitizer if this Rust has one
#   instructions  the machine code of the data path in a build of the release profile: deploy/instructions.sh
#
# What lint, loom, miri, fuzz and instructions compile is compiled while the tests of unit, deploy and e2e wait, on otherwise idle
# cores.
#
# If a step fails, the others still run. The last line lists what failed, what passed only the second time, and what this
# host cannot run. Ends with 0 only if nothing failed.
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
. "$REPO/deploy/lib.sh"

# Standard input may be closed or not: nothing here asks questions.
exec < /dev/null
export HOME=${HOME:-/root}
# Snapshots are compared, never written.
export INSTA_UPDATE=no

E2E='(package(crosspoint) & binary(e2e) | package(crosspoint-bench) & binary(soak))'
IMAGE=${CROSSPOINT_GUEST_IMAGE:-/var/cache/crosspoint/guest}
TARGET=${CARGO_TARGET_DIR:-$REPO/target}
AHEAD=''
BESIDE='' BESIDE_LOG=''
# A build from scratch, as in CI: data for incremental builds is not kept, here or later.
[ -e "$TARGET/debug/incremental" ] || export CARGO_INCREMENTAL=0
INSTALL=1 PARTS=() PASSED=() FAILED=() FLAKY=() NOT_RUN=()

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

parse_options() {
  local word
  for word in "$@"; do
    case $word in
      lint | unit | deploy | e2e | loom | miri | fuzz | instructions) PARTS+=("$word") ;;
      --no-install) INSTALL='' ;;
      -h | --help) usage; exit 0 ;;
      *) say "error: '$word' is neither an option nor a part"; usage >&2; exit 2 ;;
    esac
  done
  [ "${#PARTS[@]}" -gt 0 ] || PARTS=(unit deploy e2e lint loom miri fuzz instructions)
}

wanted() { [[ " ${PARTS[*]} " == *" $1 "* ]]; }

# step NAME COMMAND...: runs a command, and records how it ended.
step() {
  local name=$1 start=$SECONDS status=0; shift
  printf '\n== %s  [%d s]\n   %s\n' "$name" "$SECONDS" "$*"
  "$@" || status=$?
  if [ "$status" -eq 0 ]; then
    PASSED+=("$name")
    printf '== %s: passed, %d s\n' "$name" $((SECONDS - start))
  else
    FAILED+=("$name")
    printf '== %s: FAILED with status %d, %d s\n' "$name" "$status" $((SECONDS - start))
  fi
}

# beside NAME COMMAND...: a step that runs beside those after it, on another core; end_beside reports it.
beside() {
  BESIDE=$1; shift
  BESIDE_LOG=$(mktemp)
  (begun=$SECONDS status=0; "$@" || status=$?; echo "$status $((SECONDS - begun))" > "$BESIDE_LOG.end") > "$BESIDE_LOG" 2>&1 &
}

end_beside() {
  local status seconds
  [ -n "$BESIDE" ] || return 0
  wait
  read -r status seconds < "$BESIDE_LOG.end"
  replay() { cat "$BESIDE_LOG"; return "$status"; }
  step "$BESIDE" replay
  printf '   (%d s, beside others)\n' "$seconds"
  rm -f "$BESIDE_LOG" "$BESIDE_LOG.end"
}

# not_run WHAT: reports at once, and again at the end, what this host cannot run.
not_run() { NOT_RUN+=("$1"); say "warning: not run: $1"; }

prepare() {
  local dir
  if [ -n "$INSTALL" ]; then "$REPO/deploy/install-deps.sh" build test; fi
  dir=$(find_cargo_dir) || die "no Rust $(cargo_min) or newer: leave out --no-install"
  PATH=$dir:$HOME/.cargo/bin:$PATH
  export PATH
  if wanted e2e; then
    check_host
    # Tested once: if KVM does not work, the test takes two seconds for each guest.
    if kvm_usable; then export CROSSPOINT_KVM=yes; else export CROSSPOINT_KVM=no; fi
    "$REPO/deploy/guest/build-image.sh"
  fi
}

# check_host: what no package can provide.
check_host() {
  local core
  for core in 0 1; do taskset -c "$core" true 2> /dev/null || die "e2e pins workers to cores 0 and 1, and this process may not use core $core"; done
  [ -c /dev/net/tun ] || modprobe tun 2> /dev/null || true
  [ -c /dev/net/tun ] || die "e2e needs /dev/net/tun: load the module tun; in a container, --device /dev/net/tun"
  [ "$(df --output=avail -k /dev/shm | tail -n 1)" -ge 524288 ] || die "e2e needs 512 MiB in /dev/shm, where User-Mode Linux keeps its memory: --shm-size 1g"
  unshare --net --mount true 2> /dev/null || die "e2e makes network and mount namespaces, and this process may not: in a container, --privileged"
}

# A separate folder: cargo locks it while it builds.
CLIPPY=(env CARGO_TARGET_DIR="$TARGET/lint" cargo clippy --locked)
CLIPPY_ALL=("${CLIPPY[@]}" --workspace --all-targets -- -D warnings)
CLIPPY_XSK_RS=("${CLIPPY[@]}" -p crosspoint-xsk --all-targets --features xsk-rs -- -D warnings)

build_lint() { "${CLIPPY_ALL[@]}" && "${CLIPPY_XSK_RS[@]}"; }

lint() {
  step rustfmt cargo fmt --all --check
  step clippy "${CLIPPY_ALL[@]}"
  step clippy-xsk-rs "${CLIPPY_XSK_RS[@]}"
  step shellcheck shellcheck --external-sources --source-path=SCRIPTDIR .ci/run deploy/*.sh deploy/check/*.sh deploy/debian/*.sh deploy/container/*.sh deploy/debian/{postinst,prerm,postrm} deploy/guest/*.sh deploy/guest/init ebpf/build.sh switch/tests/e2e/*.sh benches/*.sh benches/peers/*.sh
}

# Everything that the tests run, the program included, and built once: `cargo build` would choose other features of the
# packages that tests use too, and compile most of the workspace a second time.
BUILD=(cargo test --locked --workspace --no-run)

build() { step build "${BUILD[@]}"; }

unit() {
  local log
  # Two per core: many tests wait most of the time.
  log=$(mktemp)
  step unit nextest "$log" --test-threads "$((2 * $(nproc)))" -E "not ($E2E)"
  note_flaky "$log"
  # The tests of AF_XDP again, with the crate xsk-rs.
  step unit-xsk-rs cargo nextest run --locked -p crosspoint-xsk --features xsk-rs --no-fail-fast
}

deploy() {
  local log line
  log=$(mktemp)
  step deploy deploy_checks "$log"
  while IFS= read -r line; do NOT_RUN+=("deploy: $line"); done < <(sed -n 's/^not run: //p' "$log")
  rm -f "$log"
}

# deploy_checks LOG
deploy_checks() { "${BUILD[@]}" --quiet && "$REPO/deploy/check.sh" "$TARGET/debug/crosspoint" 2>&1 | tee "$1"; }

e2e() {
  local which=$E2E log line
  if [ ! -e "$IMAGE/vmlinuz.xsk" ]; then
    which+=' & not (test(zero_copy) | test(every_kind_of_tunnel))'
    not_run "the e2e tests with zero_copy or every_kind_of_tunnel in their names (no kernel whose virtio_net has it could be found; deploy/guest/build-image.sh --force looks again)"
  fi
  if [ ! -e "$IMAGE/linux.uml" ]; then
    which+=' & not test(uml)'
    not_run "the e2e tests with uml in their names (this distribution has no package user-mode-linux; Debian has)"
  fi
  log=$(mktemp)
  step e2e nextest "$log" -E "$which"
  note_flaky "$log"
}

# nextest LOG OPTION...: runs tests, and writes what it prints to a file too.
nextest() { local log=$1; shift; cargo nextest run --locked --workspace --no-fail-fast "$@" 2>&1 | tee "$log"; }

# note_flaky LOG: the tests that passed the second time. Removes the file.
note_flaky() {
  local line
  while IFS= read -r line; do FLAKY+=("$line"); done < <(sed -n 's/^ *FLAKY [0-9/]* \[[^]]*\] *([^)]*) *//p' "$1")
  rm -f "$1"
}

# build_ahead: builds what the parts after e2e run, beside the tests, however long that takes; errors are reported by those parts. It uses the
# scheduling policy for idle cores: any other thread gets the core at once.
build_ahead() {
  local part parts=()
  for part in lint loom miri fuzz instructions; do if wanted "$part"; then parts+=("$part"); fi; done
  if ! { wanted unit || wanted e2e; } || [ "${#parts[@]}" -eq 0 ]; then return; fi
  # A separate process group, so that all of it can be ended.
  set -m
  (chrt --idle --pid 0 "$BASHPID" && ionice -c 3 -p "$BASHPID" && for part in "${parts[@]}"; do "build_$part"; done) > /dev/null 2>&1 &
  AHEAD=$!
  set +m
  trap 'kill -- -$AHEAD 2> /dev/null || true' EXIT
}

# end_ahead: waits for the rest, which now has all cores.
end_ahead() {
  local start=$SECONDS
  [ -n "$AHEAD" ] || return 0
  wait "$AHEAD" || true
  AHEAD=''
  trap - EXIT
  printf '\n== built ahead: another %d s\n' $((SECONDS - start))
}

# A separate folder, since the flag changes every package.
LOOM=(env RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR="$TARGET/loom" cargo test --locked --profile loom -p crosspoint-vring -p crosspoint-engine --lib --test reserve_loom)

build_loom() { "${LOOM[@]}" --no-run; }

loom() { step loom "${LOOM[@]}"; }

# provided TOOL: installs what deploy/install-deps.sh TOOL installs. A host without it still runs the other parts.
provided() {
  if [ -n "$INSTALL" ]; then "$REPO/deploy/install-deps.sh" "$1"; else "$REPO/deploy/install-deps.sh" --check "$1" >&2; fi
}

MIRI=(env MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 CARGO_TARGET_DIR="$TARGET/miri" rustup run nightly cargo miri test --locked)
MIRI_RINGS=("${MIRI[@]}" -p crosspoint-vring --test miri)
MIRI_FRAMES=("${MIRI[@]}" -p crosspoint-frame --lib)

build_miri() { provided miri && "${MIRI_RINGS[@]}" --no-run && "${MIRI_FRAMES[@]}" --no-run; }

miri() {
  if ! provided miri; then not_run "miri (no nightly Rust with miri and rust-src, and none could be installed)"; return; fi
  step miri-rings "${MIRI_RINGS[@]}"
  # All except the one test that takes minutes. It takes a minute on one core.
  beside miri-frames "${MIRI_FRAMES[@]}" -- --skip bytes_arrive_identical
}

build_fuzz() { provided fuzz && "$REPO/deploy/fuzz.sh" --build; }

fuzz() {
  if ! provided fuzz; then not_run "fuzz (no cargo-fuzz, and it could not be installed)"; return; fi
  step fuzz "$REPO/deploy/fuzz.sh" 5
}

build_instructions() { provided instructions && "$REPO/deploy/instructions.sh" --build; }

instructions() {
  if [ "$(uname -m)" != x86_64 ]; then not_run "instructions (it knows those of x86-64 alone)"; return; fi
  if ! provided instructions; then not_run "instructions (no objdump, valgrind or qemu-x86_64, and they could not be installed)"; return; fi
  step instructions "$REPO/deploy/instructions.sh"
}

# joined WORD...: separated by commas.
joined() { local text; text=$(printf '%s, ' "$@"); printf '%s' "${text%, }"; }

summary() {
  local text="test.sh ${PARTS[*]}: "
  if [ "${#FAILED[@]}" -eq 0 ]; then text+="all ${#PASSED[@]} steps passed"; else text+="FAILED: $(joined "${FAILED[@]}"); ${#PASSED[@]} passed"; fi
  if [ "${#FLAKY[@]}" -gt 0 ]; then text+="; FLAKY, passed the second time: $(joined "${FLAKY[@]}")"; fi
  if [ "${#NOT_RUN[@]}" -gt 0 ]; then text+="; NOT RUN: $(joined "${NOT_RUN[@]}")"; fi
  printf '\n== %s; %d s\n' "$text" "$SECONDS"
}

main() {
  local part
  parse_options "$@"
  [ "$(id -u)" -eq 0 ] || die "needs root: the tests load XDP programs and make network namespaces"
  cd "$REPO"
  prepare
  if wanted unit || wanted e2e; then build; fi
  build_ahead
  if wanted unit; then unit; fi
  if wanted deploy; then deploy; fi
  if wanted e2e; then e2e; fi
  end_ahead
  # First what runs beside the others.
  for part in miri lint loom fuzz instructions; do if wanted "$part"; then "$part"; fi; done
  end_beside
  summary
  [ "${#FAILED[@]}" -eq 0 ]
}

main "$@"
