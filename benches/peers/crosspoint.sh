#!/bin/bash
# crosspoint.sh start|stop|upgrade|restart: crosspoint for `crosspoint-bench compare`: one busy worker on core 1 (PMD_CORE), two ports,
# defaults otherwise, under a supervisor. CROSSPOINT is the binary; default: that of target/release. `restart` ends it and starts it
# again.
#   PORTS=vhost   (default) vhost-user sockets that it listens on, $RUN/a and $RUN/b (RUN, default /run/crosspoint-bench-crosspoint)
#   PORTS=vhost-client  it connects to these, and the guests listen
#   PORTS=xdp     interfaces sa and sb, in the network namespace NETNS
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN=${RUN:-/run/crosspoint-bench-crosspoint} PMD_CORE=${PMD_CORE:-1} PORTS=${PORTS:-vhost} NETNS=${NETNS:-}
CROSSPOINT=${CROSSPOINT:-$HERE/../../target/release/crosspoint}

# shellcheck source=common.sh
. "$HERE/common.sh"

port() { # NAME
  printf '[[port]]\nname = "%s"\n' "$1"
  case $PORTS in
    vhost) printf 'type = "vhost"\nsocket = "%s"\nrole = "server"\n' "$RUN/$1" ;;
    vhost-client) printf 'type = "vhost"\nsocket = "%s"\nrole = "client"\n' "$RUN/$1" ;;
    xdp) printf 'type = "xdp"\ninterface = "%s"\n' "s$1" ;;
    *) die "PORTS=$PORTS is not known" ;;
  esac
}

start() {
  [ -x "$CROSSPOINT" ] || die "$CROSSPOINT is missing: cargo build --release -p crosspoint -p crosspoint-bench"
  mkdir -p "$RUN"
  {
    printf 'version = 1\n[workers]\ncores = [%s]\npoll = "busy"\n[metrics]\nlisten = "off"\n' "$PMD_CORE"
    printf '[control]\nsocket = "%s"\n' "$RUN/control"
    port a
    port b
  } > "$RUN/crosspoint.toml"
  local -a where=()
  if [ -n "$NETNS" ]; then where=(ip netns exec "$NETNS"); fi
  "${where[@]}" "$CROSSPOINT" supervise --config "$RUN/crosspoint.toml" --supervisor-socket "$RUN/supervisor" > "$RUN/log" 2>&1 &
  echo $! > "$RUN/pid"
  started "$CROSSPOINT" show ports --socket "$RUN/control"
}

stop() {
  end "$RUN/pid"
  rm -rf "$RUN"
}

case ${1:-} in
  start) stop; start ;;
  stop) stop ;;
  upgrade) "$CROSSPOINT" upgrade --supervisor-socket "$RUN/supervisor" ;;
  restart) end "$RUN/pid"; start ;;
  *) usage ;;
esac
