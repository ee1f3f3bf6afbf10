#!/bin/bash
# uml.sh --socket PATH [option...]: runs one User-Mode Linux guest on the vhost-user socket PATH: a real Linux virtio-net driver, with
# neither KVM nor emulation. The console is standard output.
#
# To end it, send SIGTERM or SIGKILL to this script's process id: User-Mode Linux is several processes, and its user-space stubs outlive
# a killed kernel, so it runs contained (see run_contained in lib.sh).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"
# shellcheck source=lib.sh
. "$HERE/lib.sh"

# shellcheck disable=SC2317 # called by parse_guest_options
guest_option_more() { return 2; }

# sweep: removes what guests left behind whose script was killed; the folder's name ends in the script's process ID.
sweep() {
  local old
  for old in "$TMPDIR"/crosspoint-uml.*; do
    if [ -d "$old" ] && [ -O "$old" ] && [ ! -e "/proc/${old##*.}" ]; then rm -rf "$old"; fi
  done
}

parse_guest_options "$@"
UML=$(image_file linux.uml)
INITRD=$(image_file uinitrd.gz)
[ "$OPT_QUEUES" -le 1 ] || say "note: User-Mode Linux takes all queues that the switch offers; --queues only sets how many it uses"
[ -z "$OPT_MAC" ] || OPT_APPEND="$OPT_APPEND cp.mac=$OPT_MAC"
mapfile -t words < <(guest_cmdline)

# Guest memory is a file in TMPDIR, unlinked at once; it must be on a memory file system to be fast.
export TMPDIR=/dev/shm
sweep
STATE=$TMPDIR/crosspoint-uml.$$
rm -rf "$STATE"
mkdir -m 700 "$STATE"
command=("$UML" "mem=${OPT_MEM}M" "uml_dir=$STATE" "umid=guest" "initrd=$INITRD" "virtio_uml.device=$OPT_SOCKET:1"
  con=null "con0=fd:0,fd:1" ssl=null noreboot panic=-1 quiet "${words[@]}")
# With AMX the extended state is longer than this kernel's buffer for it; see xstate.c.
if grep -qw amx_tile /proc/cpuinfo; then
  [ -e "$OPT_IMAGE/xstate.so" ] || die "User-Mode Linux needs $OPT_IMAGE/xstate.so on a processor with AMX: install a C compiler, and run deploy/guest/build-image.sh --force $OPT_IMAGE"
  command=(env "LD_PRELOAD=$OPT_IMAGE/xstate.so" "${command[@]}")
fi
[ -z "$OPT_CPUS" ] || command=(taskset -c "$OPT_CPUS" "${command[@]}")

if [ -n "$OPT_DRY_RUN" ]; then printf '%q ' "${command[@]}"; echo; rm -rf "$STATE"; exit 0; fi
# shellcheck disable=SC2317 # called by run_contained
contained_cleanup() { rm -rf "$STATE"; }
has_console || exec < /dev/null
run_contained "${command[@]}"
