# shellcheck shell=bash
# Shared by the scripts of this directory; sourced, never run.

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# version_ge A B: true when version A is at least B.
version_ge() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }

need_command() {
  local c
  for c in "$@"; do command -v "$c" >/dev/null || die "'$c' is missing: deploy/install-deps.sh installs what each purpose needs"; done
}

# in_archive PACKAGE: whether the archive can deliver it. "apt-cache show" also succeeds for packages that others only
# mention.
in_archive() {
  local policy
  policy=$(apt-cache policy "$1" 2>/dev/null)
  [[ $policy == *"  Candidate: "[^\(]* ]]
}

# apt_lists_ready PACKAGE: fetches the package lists if PACKAGE is unknown, as in a fresh container whose lists are empty.
apt_lists_ready() {
  if in_archive "$1"; then return; fi
  [ "$(id -u)" -eq 0 ] || return 0
  say "fetching the package lists"
  apt-get update -qq
}

# qemu_binary: prints the emulator's path; QEMU= overrides it.
qemu_binary() { command -v "${QEMU:-qemu-system-x86_64}"; }

# kvm_probe_rom: a 64 KiB firmware that counts to twenty million and then leaves QEMU with status 33. From its reset vector:
#   fff0: jmp ffd0       ffd0: mov ecx, 20000000; l: dec ecx; jnz l; mov al, 0x10; out 0xf4, al; hlt
kvm_probe_rom() {
  head -c 65488 /dev/zero
  printf '\x66\xb9\x00\x2d\x31\x01\x66\x49\x75\xfc\xb0\x10\xe6\xf4\xf4\xeb\xfd'
  head -c 15 /dev/zero
  printf '\xeb\xde'
  head -c 14 /dev/zero
}

# kvm_usable: on nested hosts, /dev/kvm may open and make machines, but interpret every instruction, so slowly that Linux
# never boots. So this runs some instructions: with real KVM they take 0.1 s. CROSSPOINT_KVM=yes|no skips the test.
kvm_usable() {
  local qemu rom status=0
  case ${CROSSPOINT_KVM:-} in yes) return 0 ;; no) return 1 ;; esac
  qemu=$(qemu_binary) || return 1
  [ -w /dev/kvm ] || return 1
  rom=$(mktemp)
  kvm_probe_rom > "$rom"
  timeout 2 "$qemu" -accel kvm -machine pc -nodefaults -display none -bios "$rom" -device isa-debug-exit,iobase=0xf4,iosize=4 \
    < /dev/null > /dev/null 2>&1 || status=$?
  rm -f "$rom"
  [ "$status" -eq 33 ]
}

# cargo_min: the oldest Rust that builds this workspace, read from Cargo.toml.
cargo_min() { sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$REPO/Cargo.toml" | head -n 1; }

# find_cargo_dir: prints the directory of the first cargo that is new enough. Ubuntu keeps newer versions in /usr/lib/rust-*,
# rustup keeps its own in the home directory, where root's PATH often does not reach.
find_cargo_dir() {
  local dir min have
  min=$(cargo_min)
  while IFS= read -r dir; do
    if [ ! -x "$dir/cargo" ] || [ ! -x "$dir/rustc" ]; then continue; fi
    have=$("$dir/rustc" --version 2>/dev/null | awk '{print $2}') || continue
    [ -n "$have" ] && version_ge "$have" "$min" && { printf '%s\n' "$dir"; return 0; }
  done < <(
    dirname "$(command -v cargo || echo /usr/bin/cargo)"
    printf '%s\n' "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/bin
    find /usr/lib -maxdepth 1 -name 'rust-*' 2>/dev/null | sort -Vr | sed 's,$,/bin,'
  )
  return 1
}

# has_nightly: rustup has a nightly Rust.
has_nightly() { command -v rustup > /dev/null && rustup run nightly cargo --version > /dev/null 2>&1; }

# has_miri: whether the nightly Rust can run tests under miri.
has_miri() { has_nightly && rustup run nightly cargo miri --version > /dev/null 2>&1 && [ -d "$(rustup run nightly rustc --print sysroot)/lib/rustlib/src/rust/library" ]; }
