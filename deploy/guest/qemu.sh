#!/bin/bash
# qemu.sh --socket PATH [option...]: runs one QEMU guest whose network card is the vhost-user socket PATH. Uses KVM if it
# works, else emulation. The script becomes QEMU: its process ID is the guest's, and any signal to it ends the guest. The
# console is standard output.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"
# shellcheck source=lib.sh
. "$HERE/lib.sh"

OPT_SERVER='' OPT_MRG=on OPT_PACKED=off OPT_DEVICE='' OPT_NETDEV='' OPT_CHARDEV='' OPT_ACCEL=auto OPT_HUGEPAGES='' OPT_SMP='' OPT_HOST_MTU='' OPT_QMP=''
OPT_INCOMING='' OPT_REBOOT='' OPT_NICS=()

guest_usage_more() {
  cat <<USAGE

of qemu.sh alone:
  --server             QEMU listens on the socket, and the switch connects
  --reconnect SECS     connect again this long after the switch went away
  --mrg on|off         mergeable receive buffers (default on)
  --packed on|off      packed virtqueues (default off)
  --host-mtu N         offer the guest this MTU by VIRTIO_NET_F_MTU
  --device PROPS       more properties of virtio-net-pci, as in rx_queue_size=1024,indirect_desc=off
  --netdev PROPS       more properties of the vhost-user netdev
  --accel kvm|tcg      instead of what works
  --smp N              virtual CPUs (default: as many as queue pairs)
  --hugepages          guest memory from 2 MiB pages
  --nic SPEC           one more network card: SOCKET[,queues=N][,listen][,reconnect=SECS][,PROPS], where PROPS are properties of
                       virtio-net-pci; again for each card. Their names in the guest are eth1, eth2, ...; see --ip
  --reboot             a guest that reboots does so, instead of ending
  --qmp PATH           QEMU's control socket, for migration and link tests
  --incoming URI       wait for a guest that migrates here
USAGE
}

guest_option_more() {
  case $1 in
    --server) OPT_SERVER=1; return 1 ;;
    --hugepages) OPT_HUGEPAGES=1; return 1 ;;
    --reboot) OPT_REBOOT=1; return 1 ;;
    --nic) OPT_NICS+=("$2") ;;
    --incoming) OPT_INCOMING=$2 ;;
    --mrg) OPT_MRG=$2 ;;
    --packed) OPT_PACKED=$2 ;;
    --host-mtu) OPT_HOST_MTU=$2 ;;
    --reconnect) OPT_CHARDEV=$2 ;;
    --device) OPT_DEVICE=$2 ;;
    --netdev) OPT_NETDEV=$2 ;;
    --accel) OPT_ACCEL=$2 ;;
    --smp) OPT_SMP=$2 ;;
    --qmp) OPT_QMP=$2 ;;
    *) return 2 ;;
  esac
}

pick_accel() {
  [ "$OPT_ACCEL" = auto ] || return 0
  OPT_ACCEL=tcg
  if kvm_usable; then OPT_ACCEL=kvm; fi
}

# vectors QUEUES: interrupts for each ring, the configuration and the control queue. QEMU 7 (Debian 12) crashes under
# emulation if vhost-user is used with MSI-X, and works with the pin interrupt; 8.2 and 10.0 do not crash.
vectors() {
  if [ "$OPT_ACCEL" = tcg ] && ! version_ge "$QEMU_VERSION" 8; then echo 0; else echo $((2 * $1 + 2)); fi
}

# chardev NUMBER SOCKET LISTEN RECONNECT
chardev() {
  # A comma inside a value is written twice in QEMU's option syntax.
  local text="socket,id=char$1,path=${2//,/,,}"
  [ -z "$3" ] || text+=,server=on,wait=off
  if [ -n "$4" ]; then
    # Renamed in QEMU 9.2, and the old name is gone since 10.
    if version_ge "$QEMU_VERSION" 9.2; then text+=,reconnect-ms=$(($4 * 1000)); else text+=,reconnect=$4; fi
  fi
  printf '%s' "$text"
}

# device NUMBER QUEUES PROPS
device() {
  local text
  text="virtio-net-pci,netdev=net$1,mq=$([ "$2" -gt 1 ] && echo on || echo off)"
  # The properties may set vectors themselves; the option must not be given twice.
  case ,$3, in *,vectors=*) ;; *) text+=",vectors=$(vectors "$2")" ;; esac
  printf '%s' "$text${3:+,$3}"
}

# first_props: the properties of the card that options describe.
first_props() {
  local text="mrg_rxbuf=$OPT_MRG,packed=$OPT_PACKED"
  [ -z "$OPT_MAC" ] || text+=",mac=$OPT_MAC"
  [ -z "$OPT_HOST_MTU" ] || text+=",host_mtu=$OPT_HOST_MTU"
  [ -z "$OPT_DEVICE" ] || text+=",$OPT_DEVICE"
  printf '%s' "$text"
}

# add_card NUMBER SOCKET LISTEN RECONNECT QUEUES NETDEV-PROPS PROPS
add_card() {
  command+=(-chardev "$(chardev "$1" "$2" "$3" "$4")" -netdev "vhost-user,id=net$1,chardev=char$1,queues=$5${6:+,$6}" -device "$(device "$1" "$5" "$7")")
}

# add_nic NUMBER SPEC: see --nic.
add_nic() {
  local word socket=${2%%,*} listen='' reconnect='' queues=1 props=''
  local -a words
  IFS=, read -r -a words <<< "${2#"$socket"}"
  for word in "${words[@]}"; do
    case $word in
      '') ;;
      listen) listen=1 ;;
      reconnect=*) reconnect=${word#*=} ;;
      queues=*) queues=${word#*=} ;;
      *) props+=${props:+,}$word ;;
    esac
  done
  add_card "$1" "$socket" "$listen" "$reconnect" "$queues" '' "$props"
}

parse_guest_options "$@"
QEMU_BIN=$(qemu_binary) || die "qemu-system-x86_64 is missing: run deploy/install-deps.sh demo"
QEMU_VERSION=$("$QEMU_BIN" --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p')
pick_accel
KERNEL=$(image_file vmlinuz)
INITRD=$(image_file initrd.gz)

memory="memory-backend-memfd,id=mem0,size=${OPT_MEM}M,share=on"
[ -z "$OPT_HUGEPAGES" ] || memory+=,hugetlb=on,hugetlbsize=2M
command=()
[ -z "$OPT_CPUS" ] || command+=(taskset -c "$OPT_CPUS")
command+=("$QEMU_BIN" -accel "$OPT_ACCEL" -cpu max -machine "q35,memory-backend=mem0" -m "$OPT_MEM" -smp "${OPT_SMP:-$OPT_QUEUES}"
  -object "$memory"
  -nodefaults -display none -serial stdio
  -kernel "$KERNEL" -initrd "$INITRD" -append "console=ttyS0 panic=-1 quiet $(guest_cmdline | paste -sd' ')")
add_card 0 "$OPT_SOCKET" "$OPT_SERVER" "$OPT_CHARDEV" "$OPT_QUEUES" "$OPT_NETDEV" "$(first_props)"
number=0
for spec in "${OPT_NICS[@]}"; do number=$((number + 1)); add_nic "$number" "$spec"; done
[ -n "$OPT_REBOOT" ] || command+=(-no-reboot)
[ -z "$OPT_INCOMING" ] || command+=(-incoming "$OPT_INCOMING")
[ -z "$OPT_QMP" ] || command+=(-qmp "unix:$OPT_QMP,server=on,wait=off")

if [ -n "$OPT_DRY_RUN" ]; then printf '%q ' "${command[@]}"; echo; exit 0; fi
# With a closed standard input, the serial port's back end would loop without end.
if has_console; then exec "${command[@]}"; fi
exec "${command[@]}" < /dev/null
