#!/bin/bash
# install-deps.sh [--check] build|xsk-rs|demo|test|fuzz|miri|instructions...: installs what each purpose needs from the
# distribution (Debian 12, Ubuntu 24.04), and only what is missing; if nothing is, it does nothing and asks no questions.
# --check prints what is missing, and ends with 1 if anything is.
#   build   a C linker for Rust, and Rust itself
#   xsk-rs  what building with the cargo feature xsk-rs needs in addition: it compiles libbpf and libxdp
#   demo    what deploy/demo.sh and the guests under deploy/guest use
#   test    what the whole test suite needs in addition
#   fuzz    cargo-fuzz, for deploy/fuzz.sh
#   instructions  the tools of deploy/instructions.sh
#   miri    miri and its nightly Rust, if there is rustup
# It adds no package source, and removes no package.
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
. "$REPO/deploy/lib.sh"

BUILD_PACKAGES=(build-essential pkg-config ca-certificates curl)
XSK_RS_PACKAGES=(clang m4 libelf-dev zlib1g-dev)
DEMO_PACKAGES=(iproute2 iputils-ping iperf3 ethtool procps util-linux curl gzip zstd xz-utils openssl)
TEST_PACKAGES=("${DEMO_PACKAGES[@]}" "${XSK_RS_PACKAGES[@]}" llvm libbpf-dev dpdk-dev tcpdump tshark nftables jq python3 python3-yaml python3-jsonschema libxml2-utils shellcheck tmux groff-base zsh fish)

INSTRUCTIONS_PACKAGES=(binutils valgrind qemu-user)

CARGO_BIN=${CARGO_HOME:-$HOME/.cargo}/bin
# Longest time of a download, or of a command that begins with one, in seconds.
DOWNLOAD_MAX=300

missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
  done
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove "$@" > /dev/null; }

need_root() { [ "$(id -u)" -eq 0 ] || die "installing ($*) needs root"; }

# ensure_packages PACKAGE...
ensure_packages() {
  local -a missing
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  if absent "packages ${missing[*]}"; then return 0; fi
  need_root "${missing[*]}"
  say "installing: ${missing[*]}"
  apt_update_once
  apt_install "${missing[@]}"
}

APT_UPDATED=''
apt_update_once() { [ -n "$APT_UPDATED" ] || apt-get update -qq || say "warning: apt-get update failed; trying with the lists at hand"; APT_UPDATED=1; }

# absent WHAT: records that something is missing; returns true if nothing else is to be done.
MISSING=0
absent() { MISSING=1; [ -n "$CHECK" ] || return 1; printf 'missing: %s\n' "$*"; }

# ensure_rust: a Rust that is new enough, however it was installed; else Ubuntu's newest versioned package, else rustup.
ensure_rust() {
  local min newest
  min=$(cargo_min)
  if find_cargo_dir > /dev/null; then return; fi
  if absent "Rust $min or newer"; then return; fi
  need_root "Rust $min"
  apt_update_once
  # cargo-1.89 and the like depend on the compiler of the same version.
  newest=$(apt-cache search --names-only '^cargo-[0-9]+\.[0-9]+$' | awk '{ sub("cargo-", "", $1); print $1 }' | sort -V | tail -n 1)
  if [ -n "$newest" ] && version_ge "$newest" "$min"; then
    say "installing: cargo-$newest"
    apt_install "cargo-$newest" "rustc-$newest"
  elif command -v rustup > /dev/null || [ -x "$HOME/.cargo/bin/rustup" ]; then
    say "installing Rust by rustup"
    PATH=$PATH:$HOME/.cargo/bin rustup toolchain install stable --profile minimal
    PATH=$PATH:$HOME/.cargo/bin rustup default stable
  else
    say "installing rustup and Rust (https://rustup.rs): the distribution's Rust is older than $min"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path
  fi
  find_cargo_dir > /dev/null || die "there is still no Rust $min or newer"
}

# qemu_from_backports: for a Debian whose other QEMU packages are from its backports, while apt has no source for these: uses
# separate package lists, so that the host's sources stay as they are.
qemu_from_backports() {
  local release lists source
  # shellcheck disable=SC1091
  release=$(. /etc/os-release && [ "$ID" = debian ] && printf '%s' "$VERSION_CODENAME") || return 1
  source=$(grep -lE "^Suites:.*$release( |\$)" /etc/apt/sources.list.d/*.sources 2> /dev/null | head -n 1)
  [ -n "$source" ] || return 1
  lists=$(mktemp -d)
  mkdir -p "$lists"/{etc,lists/partial}
  awk 'BEGIN { RS = ""; ORS = "\n\n" } NR == 1' "$source" | sed -E "s/^Suites:.*/Suites: $release $release-updates $release-backports/" > "$lists/etc/backports.sources"
  local -a options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$lists/etc" -o Dir::State::Lists="$lists/lists" -o APT::Sandbox::User=root)
  say "installing: qemu-system-x86 from $release-backports"
  apt-get "${options[@]}" update -qq && apt_install "${options[@]}" -t "$release-backports" qemu-system-x86
  local status=$?
  rm -rf "$lists"
  return "$status"
}

# ensure_guest_engine: a program that can run a guest. User-Mode Linux is downloaded with the guest image if the archive has
# it, and is ten times faster than QEMU's emulation. So QEMU is installed only if there is KVM, or no User-Mode Linux, or if
# tests ask for it.
ensure_guest_engine() { # WANTED: yes|if-useful
  if qemu_binary > /dev/null; then return; fi
  if [ "$1" = if-useful ] && [ ! -e /dev/kvm ] && in_archive user-mode-linux; then return; fi
  if absent "qemu-system-x86"; then return; fi
  need_root qemu-system-x86
  apt_update_once
  local -a from=()
  # Debian 12's own QEMU 7.2 works too; qemu.sh has a workaround for it.
  if [[ $(apt-cache madison qemu-system-x86) == *bookworm-backports* ]]; then from=(-t bookworm-backports); fi
  say "installing: qemu-system-x86 ${from[*]}"
  apt_install "${from[@]}" qemu-system-x86 || qemu_from_backports \
    || say "warning: QEMU could not be installed without removing other packages; left alone"
}

# ensure_prometheus: prometheus and promtool from the package prometheus, without the service that installing it would start.
ensure_prometheus() {
  if command -v promtool > /dev/null && command -v prometheus > /dev/null; then return; fi
  if absent "prometheus and promtool"; then return; fi
  need_root "prometheus and promtool"
  apt_update_once
  say "installing: prometheus and promtool (into /usr/local/bin)"
  local work
  work=$(mktemp -d)
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool ./usr/bin/prometheus &&
    install -m 755 usr/bin/promtool usr/bin/prometheus /usr/local/bin/)
  rm -rf "$work"
}

# ensure_nfdump: nfdump and sfcapd, a collector of sFlow, without the service that installing them starts.
ensure_nfdump() {
  if command -v nfdump > /dev/null && command -v sfcapd > /dev/null; then return; fi
  ensure_packages nfdump nfdump-sflow
  if [ -z "$CHECK" ] && [ -d /run/systemd/system ]; then systemctl disable --quiet --now nfdump.service || true; fi
}

# ensure_lint_tools: rustfmt and clippy of the cargo in use. The minimal profile of rustup has neither.
ensure_lint_tools() {
  local dir version
  local -a packages
  dir=$(find_cargo_dir) || { absent "rustfmt and clippy" || true; return 0; }
  if PATH=$dir:$PATH lint_tools_work; then return; fi
  if absent "rustfmt and clippy"; then return; fi
  if [ -x "$dir/rustup" ]; then
    say "installing: rustfmt and clippy by rustup"
    PATH=$dir:$PATH rustup component add rustfmt clippy
  else
    need_root "rustfmt and clippy"
    apt_update_once
    # Ubuntu's are named after the compiler's version, for instance /usr/lib/rust-1.89, and are beside it.
    version=''
    if [[ $dir =~ /rust-([0-9.]+)/ ]]; then version=-${BASH_REMATCH[1]}; fi
    mapfile -t packages < <(apt-cache search --names-only "^(rustfmt$version|rust$version-clippy)\$" | awk '{ print $1 }')
    say "installing: ${packages[*]}"
    apt_install "${packages[@]}"
  fi
  PATH=$dir:$PATH lint_tools_work || die "there is still no rustfmt and clippy beside $dir/cargo"
}

lint_tools_work() { cargo fmt --version > /dev/null 2>&1 && cargo clippy --version > /dev/null 2>&1; }

# ensure_nextest: cargo-nextest, built by the same cargo that builds the project.
ensure_nextest() {
  local dir
  dir=$(find_cargo_dir) || { absent cargo-nextest || true; return 0; }
  if PATH=$dir:$HOME/.cargo/bin:$PATH cargo nextest --version > /dev/null 2>&1; then return; fi
  if absent cargo-nextest; then return; fi
  say "building: cargo-nextest (some minutes)"
  PATH=$dir:$PATH cargo install --quiet cargo-nextest --locked
}

# ensure_cargo_fuzz: built by the same cargo that builds the project; any other version works too.
ensure_cargo_fuzz() {
  local dir
  dir=$(find_cargo_dir) || { absent cargo-fuzz || true; return 0; }
  if PATH=$dir:$PATH:$CARGO_BIN command -v cargo-fuzz > /dev/null; then return; fi
  if absent cargo-fuzz; then return; fi
  say "building: cargo-fuzz (a minute)"
  PATH=$dir:$PATH timeout "$DOWNLOAD_MAX" cargo install --quiet --locked cargo-fuzz
}

# ensure_miri: from rustup's nightly Rust, the only source. The default toolchain does not change.
ensure_miri() {
  local PATH=$PATH:$CARGO_BIN
  if has_miri; then return; fi
  if absent "miri, with a nightly Rust"; then return; fi
  command -v rustup > /dev/null || die "miri needs rustup, which is not installed"
  say "installing: a nightly Rust with miri, by rustup"
  timeout "$DOWNLOAD_MAX" rustup toolchain install nightly --profile minimal --component miri,rust-src --no-self-update > /dev/null ||
    die "rustup could not install a nightly Rust with miri within $DOWNLOAD_MAX s"
  has_miri || die "there is still no miri"
}

install_for() {
  case $1 in
    build) ensure_packages "${BUILD_PACKAGES[@]}"; ensure_rust ;;
    xsk-rs) ensure_packages "${XSK_RS_PACKAGES[@]}" ;;
    demo) ensure_packages "${DEMO_PACKAGES[@]}"; ensure_guest_engine if-useful ;;
    test) ensure_packages "${TEST_PACKAGES[@]}"; ensure_guest_engine yes; ensure_prometheus; ensure_nfdump; ensure_lint_tools; ensure_nextest ;;
    fuzz) ensure_cargo_fuzz ;;
    miri) ensure_miri ;;
    instructions) ensure_packages "${INSTRUCTIONS_PACKAGES[@]}" ;;
    *) die "unknown purpose '$1': build, xsk-rs, demo, test, fuzz, miri or instructions" ;;
  esac
}

CHECK=''
if [ "${1:-}" = --check ]; then CHECK=1; shift; fi
[ $# -gt 0 ] || die "usage: install-deps.sh [--check] build|xsk-rs|demo|test|fuzz|miri|instructions..."
command -v apt-get > /dev/null || die "this host has no apt: install by hand what the lists in $0 name"
for purpose in "$@"; do install_for "$purpose"; done
[ -z "$CHECK" ] || exit "$MISSING"
