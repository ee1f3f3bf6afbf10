#!/bin/bash
# peer-service.sh [--netns NAME] [--image DIR] server | client|transfer|ping|sha|fetch|udp PEER: runs a guest's job on the
# host or in one of its network namespaces, so that a guest and a namespace can test each other. Script, protocol and results
# are those of the guest: see net-job.sh. SECS=, STREAMS=, BLOB_MIB= and WAIT_S= as there. The server prints GUEST-READY, and
# ends as a whole on SIGTERM or SIGKILL.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"
# shellcheck source=lib.sh
. "$HERE/lib.sh"

netns='' OPT_IMAGE=${CROSSPOINT_GUEST_IMAGE:-$GUEST_IMAGE_DIR_DEFAULT}
while [ $# -gt 0 ]; do
  case $1 in
    --netns) netns=${2:?--netns needs a name}; shift 2 ;;
    --image) OPT_IMAGE=${2:?--image needs a folder}; shift 2 ;;
    *) break ;;
  esac
done
case ${1:-} in
  server) [ $# -eq 1 ] || die "server takes no argument" ;;
  client | transfer | ping | sha | fetch | udp) [ $# -eq 2 ] || die "$1 needs the peer's address" ;;
  *) say "usage: peer-service.sh [--netns NAME] [--image DIR] server | client|transfer|ping|sha|fetch|udp PEER"; exit 2 ;;
esac
need_command iperf3 setpriv unshare
image_file bin/busybox > /dev/null
# The guest's busybox comes first in PATH, only for the job: nc differs between hosts.
command=(env "PATH=$OPT_IMAGE/bin:$PATH" "$HERE/net-job.sh" "$@")
[ -z "$netns" ] || command=(ip netns exec "$netns" "${command[@]}")
exec < /dev/null
run_contained "${command[@]}"
