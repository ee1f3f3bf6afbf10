#!/bin/bash
# qemu-switch.sh [--image DIR] PROGRAM CONFIG TAP...: runs one QEMU guest that is itself the switch: "PROGRAM run --config
# CONFIG", between the tap interfaces TAP, which are eth0, eth1, ... in the guest. Its kernel's virtio_net has AF_XDP
# zero-copy, and the cards have all features that this needs.
#
# qemu-switch.sh [--image DIR] --lab PROGRAM FILE...: the same guest without cards, with modules for tunnels, VLANs, bonds
# and SCTP, and the host's ip. The program is not started; it and the files are in /switch. For hosts whose kernel lacks such
# modules.
#
# Uses KVM if it works, else emulation. The script becomes QEMU: its process ID is the guest's, and any signal to it ends the
# guest. The console is standard input and output. After GUEST-READY, each typed line is a command; "ENDED 0" shows that it
# has ended, and its exit status.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"
# shellcheck source=lib.sh
. "$HERE/lib.sh"

OPT_IMAGE=${CROSSPOINT_GUEST_IMAGE:-$GUEST_IMAGE_DIR_DEFAULT}
if [ "${1:-}" = --image ]; then OPT_IMAGE=${2:?--image needs a folder}; shift 2; fi
job=switch
if [ "${1:-}" = --lab ]; then job=lab; shift; fi
words_min=3
[ "$job" = switch ] || words_min=2
[ $# -ge "$words_min" ] || { say "usage: qemu-switch.sh [--image DIR] PROGRAM CONFIG TAP... | --lab PROGRAM FILE..."; exit 2; }
program=$1; shift
files=()
case $job in
  switch) config=$1; shift ;;
  lab) files=("$@"); set -- ;;
esac

# add_binary ROOT FILE NAME: adds a stripped program, and the libraries that it needs.
add_binary() {
  local library
  strip -o "$1/switch/$3" "$2"
  while read -r library; do cp -L --parents "$library" "$1"; done < <(ldd "$2" | grep -o '/[^ ]*')
}

add_program() { # ROOT
  mkdir -p "$1/switch"
  add_binary "$1" "$program" crosspoint
  [ $job = lab ] || { cp "$config" "$1/switch/config.toml"; return; }
  add_binary "$1" "$(command -v ip)" ip
  cp "${files[@]}" "$1/switch/"
}

# make_initrd FILE: the image's RAM disk followed by the program's: the kernel unpacks one archive after the other, if each
# begins aligned.
make_initrd() {
  local root=$1.root
  add_program "$root"
  cp "$(image_file xinitrd.gz)" "$1"
  truncate -s %512 "$1"
  (cd "$root" && find . | "$BUSYBOX" cpio -o -H newc -R 0:0 2> /dev/null) >> "$1"
}

need_command strip ip
QEMU_BIN=$(qemu_binary) || die "qemu-system-x86_64 is missing: run deploy/install-deps.sh demo"
KERNEL=$(image_file vmlinuz.xsk)
BUSYBOX=$(image_file bin/busybox)
accel=tcg
if kvm_usable; then accel=kvm; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make_initrd "$work/initrd"
# QEMU reads it through this descriptor, so that no file is left however the guest ends.
exec 9< "$work/initrd"
rm -rf "$work"

command=("$QEMU_BIN" -accel "$accel" -cpu max -machine q35 -m 256 -smp 2 -nodefaults -display none -serial stdio -no-reboot
  -kernel "$KERNEL" -initrd /dev/fd/9 -append "console=ttyS0 panic=-1 quiet cp.job=$job")
number=0
for tap in "$@"; do
  # virtio_net needs a queue that can be reset alone, and DMA addresses (iommu_platform), which virtio before 1.0 does not
  # have.
  command+=(-netdev "tap,id=net$number,ifname=$tap,script=no,downscript=no"
    -device "virtio-net-pci,netdev=net$number,queue_reset=on,iommu_platform=on,disable-legacy=on")
  number=$((number + 1))
done
exec "${command[@]}"
