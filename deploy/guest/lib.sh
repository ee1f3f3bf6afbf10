# shellcheck shell=bash
# Options that qemu.sh and uml.sh share; sourced, never run.

GUEST_IMAGE_DIR_DEFAULT=/var/cache/crosspoint/guest

guest_usage() {
  cat >&2 <<USAGE
usage: $(basename "$0") --socket PATH [option...]

  --socket PATH        vhost-user socket to connect to (or to create, with --server)
  --job NAME           what the guest does: server, client, transfer, ping, sha, fetch, udp, churn, idle, shell, orders,
                       poweroff (default: idle)
  --ip ADDR/LEN        the guest's address; with several network cards, one for each, with commas
  --peer ADDR          the address that client, transfer, ping, sha, fetch, udp and churn talk to; several with commas, one after the other
  --mac MAC            the guest's MAC address (UML: set by the guest's init, since UML has no option for it)
  --queues N           queue pairs (default 1)
  --mem MIB            memory (default 256)
  --mtu N              MTU the guest sets on its interface
  --secs N             length of each iperf3 run (default 3)
  --streams N          parallel iperf3 streams (default 1)
  --blob-mib N         size of the checksummed transfer (default 40)
  --wait-s N           how long a client waits for the peer's first ping reply (default 30)
  --append WORDS       more words for the guest's kernel command line
  --cpus LIST          run the guest on these host CPUs only
  --image DIR          where build-image.sh put the image (default \$CROSSPOINT_GUEST_IMAGE or $GUEST_IMAGE_DIR_DEFAULT)
  --dry-run            print the command instead of running it
USAGE
  if declare -F guest_usage_more >/dev/null; then guest_usage_more >&2; fi
}

# parse_guest_options ARG...: sets the OPT_* variables. A script may define guest_option_more NAME VALUE for its own options:
# it returns 0 if it took the option and its value, 1 if it took a flag without a value, 2 if it does not know the option.
# shellcheck disable=SC2034 # the scripts that source this file read the variables
parse_guest_options() {
  OPT_SOCKET='' OPT_JOB=idle OPT_IP='' OPT_PEER='' OPT_MAC='' OPT_QUEUES=1 OPT_MEM=256 OPT_MTU='' OPT_SECS='' OPT_STREAMS=''
  OPT_BLOB_MIB='' OPT_WAIT_S='' OPT_APPEND='' OPT_CPUS='' OPT_DRY_RUN='' OPT_IMAGE=${CROSSPOINT_GUEST_IMAGE:-$GUEST_IMAGE_DIR_DEFAULT}
  local took
  while [ $# -gt 0 ]; do
    took=0
    case $1 in
      -h | --help) guest_usage; exit 0 ;;
      --dry-run) OPT_DRY_RUN=1; shift; continue ;;
      --socket) OPT_SOCKET=${2:-} ;;
      --job) OPT_JOB=${2:-} ;;
      --ip) OPT_IP=${2:-} ;;
      --peer) OPT_PEER=${2:-} ;;
      --mac) OPT_MAC=${2:-} ;;
      --queues) OPT_QUEUES=${2:-} ;;
      --mem) OPT_MEM=${2:-} ;;
      --mtu) OPT_MTU=${2:-} ;;
      --secs) OPT_SECS=${2:-} ;;
      --streams) OPT_STREAMS=${2:-} ;;
      --blob-mib) OPT_BLOB_MIB=${2:-} ;;
      --wait-s) OPT_WAIT_S=${2:-} ;;
      --append) OPT_APPEND=${2:-} ;;
      --cpus) OPT_CPUS=${2:-} ;;
      --image) OPT_IMAGE=${2:-} ;;
      *) guest_option_more "$1" "${2:-}" || took=$? ;;
    esac
    case $took in
      0) [ $# -ge 2 ] || { say "error: $1 needs a value"; exit 2; }; shift 2 ;;
      1) shift ;;
      *) say "error: unknown option '$1'"; guest_usage; exit 2 ;;
    esac
  done
  [ -n "$OPT_SOCKET" ] || { say "error: --socket is missing"; guest_usage; exit 2; }
}

# guest_cmdline: the words that the guest's init reads, one per line.
guest_cmdline() {
  printf '%s\n' "cp.job=$OPT_JOB"
  [ -z "$OPT_IP" ] || printf '%s\n' "cp.ip=$OPT_IP"
  [ -z "$OPT_PEER" ] || printf '%s\n' "cp.peer=$OPT_PEER"
  [ -z "$OPT_MTU" ] || printf '%s\n' "cp.mtu=$OPT_MTU"
  [ "$OPT_QUEUES" -le 1 ] || printf '%s\n' "cp.nq=$OPT_QUEUES"
  [ -z "$OPT_SECS" ] || printf '%s\n' "cp.secs=$OPT_SECS"
  [ -z "$OPT_STREAMS" ] || printf '%s\n' "cp.streams=$OPT_STREAMS"
  [ -z "$OPT_BLOB_MIB" ] || printf '%s\n' "cp.blob_mib=$OPT_BLOB_MIB"
  [ -z "$OPT_WAIT_S" ] || printf '%s\n' "cp.wait_s=$OPT_WAIT_S"
  # Split into words on purpose.
  # shellcheck disable=SC2086
  [ -z "$OPT_APPEND" ] || printf '%s\n' $OPT_APPEND
}

# has_console: whether commands are typed to the guest.
has_console() { case $OPT_JOB in shell | orders) ;; *) return 1 ;; esac; }

# image_file NAME: the path of one file of the image, or a message that says how to make it.
image_file() {
  [ -e "$OPT_IMAGE/$1" ] || die "$OPT_IMAGE/$1 is missing: run deploy/guest/build-image.sh $OPT_IMAGE"
  printf '%s\n' "$OPT_IMAGE/$1"
}

# isolation: prints the words that put a command into a separate process-ID namespace, or nothing if that is not allowed.
isolation() {
  local words
  for words in "" "--user --map-root-user"; do
    # Split into words on purpose.
    # shellcheck disable=SC2086
    if unshare $words --pid --fork --mount-proc true 2>/dev/null; then
      echo "unshare $words --pid --fork --kill-child --mount-proc --"
      return
    fi
  done
}

# run_contained COMMAND...: runs a command that consists of several processes, so that all of them end when this script ends,
# for any reason. The command is process 1 of a process-ID namespace, which ends as a whole. Parent-death signals tie script,
# unshare and command together, since unshare itself ignores SIGTERM. If namespaces are not allowed, the command leads a
# session, which the trap ends; SIGKILL to the script then leaves processes behind. The caller's contained_cleanup, if any,
# runs at the end. Does not return.
run_contained() {
  local status=0
  local -a wrap
  read -r -a wrap <<< "$(isolation)"
  CONTAINED_GROUP=''
  if [ "${#wrap[@]}" -eq 0 ]; then wrap=(setsid); CONTAINED_GROUP=-; fi
  CONTAINED=''
  trap contained_exit EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  trap 'exit 129' HUP
  setpriv --pdeathsig KILL -- "${wrap[@]}" "$@" <&0 &
  CONTAINED=$!
  wait "$CONTAINED" || status=$?
  exit "$status"
}

# shellcheck disable=SC2317 # called by the trap
contained_exit() {
  trap - EXIT
  if [ -n "$CONTAINED" ]; then
    kill -KILL -- "$CONTAINED_GROUP$CONTAINED" 2>/dev/null || true
    wait "$CONTAINED" 2>/dev/null || true
  fi
  if declare -F contained_cleanup > /dev/null; then contained_cleanup; fi
}
