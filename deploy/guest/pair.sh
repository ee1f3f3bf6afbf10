#!/bin/bash
# pair.sh KIND SOCKET0 SOCKET1 [option...]: boots a server guest on SOCKET1 and a client guest on SOCKET0, prints the
# client's console, and ends with the client's verdict: 0 if every RESULT is good. KIND is uml or qemu; options go to both
# guests (see qemu.sh --help). SERVER_LOG=FILE keeps the server's console; JOB= names another client job than "client";
# LIMIT_S= limits the total time (default 240).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"

# shellcheck disable=SC2317 # called by the trap
cleanup() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  if [ -n "$client" ]; then kill "$client" 2>/dev/null || true; wait "$client" 2>/dev/null || true; fi
  rm -rf "$work"
}

[ $# -ge 3 ] || die "usage: pair.sh uml|qemu SOCKET0 SOCKET1 [option...]"
kind=$1 socket0=$2 socket1=$3; shift 3
work=$(mktemp -d) server='' client=''
trap cleanup EXIT
trap 'exit 143' INT TERM HUP
: "${SERVER_LOG:=$work/server.log}"

"$HERE/$kind.sh" --socket "$socket1" --job server --ip 10.9.0.2/24 --mac 52:54:00:09:00:02 "$@" > "$SERVER_LOG" 2>&1 &
server=$!
timeout --foreground -k 2 "${LIMIT_S:-240}" "$HERE/$kind.sh" --socket "$socket0" --job "${JOB:-client}" --ip 10.9.0.1/24 --peer 10.9.0.2 \
  --mac 52:54:00:09:00:01 "$@" > "$work/client.log" 2>&1 &
client=$!
wait "$client" || true
client=''
tr -d '\r' < "$work/client.log"
grep -aq '^CLIENT-DONE' "$work/client.log" || { say "the client did not finish; the server's console:"; tail -n 20 "$SERVER_LOG" >&2; exit 1; }
if grep -aqE '^RESULT [a-z0-9_]+=(fail|bad)' "$work/client.log"; then exit 1; fi
