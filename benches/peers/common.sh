# shellcheck shell=bash
# What the scripts here and those above them share.

die() { echo "error: $*" >&2; exit 1; }

# usage: prints the comment at the beginning of the script.
usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

# huge_pages: fails unless DPDK's memory fits.
huge_pages() {
  local free
  free=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)
  [ "$free" -ge 256 ] || die "$free of 256 huge pages are free: sysctl vm.nr_hugepages=1024"
}

# end FILE: ends the process whose number is in FILE, by SIGTERM, then by SIGKILL if necessary.
end() {
  [ -e "$1" ] || return 0
  local pid
  pid=$(cat "$1")
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 150); do
    kill -0 "$pid" 2> /dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2> /dev/null || true
}

# started COMMAND...: waits until the command succeeds, while the process of $RUN/pid lives.
started() {
  for _ in $(seq 200); do
    if "$@" > /dev/null 2>&1; then return; fi
    kill -0 "$(cat "$RUN/pid")" 2> /dev/null || break
    sleep 0.1
  done
  tail -n 5 "$RUN/log" >&2
  die "does not start"
}
