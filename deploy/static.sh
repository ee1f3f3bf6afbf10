#!/bin/bash
# static.sh [--profile NAME] [--check] [BINARY]: builds crosspoint as one static file, target/static/crosspoint, that needs
# no library and no loader: for container images, and hosts of any distribution. --check then runs it in a root folder that
# contains nothing else. With BINARY nothing is built; that file is checked.
#
# glibc is linked in. Only the last step differs, so an existing build of the same profile is used. A static glibc cannot
# load plugins for host and user names; crosspoint does not need them: it resolves no names, and reads /etc/group itself.
# Building needs a compiler and glibc's libc.a: apt-get install build-essential. --check needs root.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$HERE")
# shellcheck source=lib.sh
. "$HERE/lib.sh"

PROFILE=release CHECK='' BINARY=''
while [ $# -gt 0 ]; do
  case $1 in
    --profile) PROFILE=$2; shift 2 ;;
    --check) CHECK=1; shift ;;
    -h | --help) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) die "unknown option '$1'" ;;
    *) BINARY=$1 CHECK=1; shift ;;
  esac
done
TARGET=${CARGO_TARGET_DIR:-$REPO/target}

build() {
  local dir folder=$PROFILE
  [ "$PROFILE" != dev ] || folder=debug
  dir=$(find_cargo_dir) || die "no Rust $(cargo_min) or newer: deploy/install-deps.sh build"
  # The flag applies only to the last crate: the others are the same either way, and procedural macros cannot be static.
  (cd "$REPO" && PATH=$dir:$PATH cargo rustc --locked --quiet --profile "$PROFILE" --package crosspoint --bin crosspoint -- -C target-feature=+crt-static)
  mkdir -p "$TARGET/static"
  BINARY=$TARGET/static/crosspoint
  # So that an ordinary build does not use it.
  mv "$TARGET/$folder/crosspoint" "$BINARY"
}

# is_static: checks that it needs neither a loader nor a library, and loads none.
is_static() {
  if readelf --program-headers "$BINARY" | grep -q INTERP; then die "$BINARY asks for a loader"; fi
  if readelf --dynamic "$BINARY" | grep -q NEEDED; then die "$BINARY asks for libraries"; fi
  local symbol
  for symbol in getaddrinfo gethostbyname getpwnam getpwuid getgrnam getgrgid dlopen; do
    if nm "$BINARY" 2> /dev/null | grep -qE " [TWi] $symbol(_r)?\$"; then die "$BINARY has $symbol(), which in a static program loads plugins"; fi
  done
}

# inside COMMAND...: runs it in a root folder with only this program, and a private network.
# shellcheck disable=SC2016 # for the inner shell
inside() { unshare --net --mount --pid --fork --kill-child --propagation private -- /bin/sh -ec 'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"' "$ROOT" "$@"; }

runs() {
  ROOT=$(mktemp -d)
  trap 'rm -rf "$ROOT"' EXIT
  chmod 755 "$ROOT"
  mkdir -p "$ROOT/proc" "$ROOT/run"
  install -m 755 "$BINARY" "$ROOT/crosspoint"
  cat > "$ROOT/crosspoint.toml" <<'TOML'
version = 1
[workers]
cores = "auto"
[metrics]
listen = "off"
[control]
socket = "/run/control.sock"
[[port]]
name = "web-1"
type = "vhost"
socket = "/run/web-1.sock"
socket_mode = "0666"
socket_group = "4343"
TOML
  inside /crosspoint --version
  inside /crosspoint check --config /crosspoint.toml > /dev/null
  inside /crosspoint run --config /crosspoint.toml > "$ROOT/log" 2>&1 &
  local pid=$! tries=100
  until "$BINARY" show --socket "$ROOT/run/control.sock" ports > "$ROOT/ports" 2> /dev/null; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ] || ! kill -0 "$pid" 2> /dev/null; then cat "$ROOT/log" >&2; die "it does not run in an empty root folder"; fi
    sleep 0.1
  done
  grep -q web-1 "$ROOT/ports" || die "the port is not there"
  [ "$(stat -c '%a %g' "$ROOT/run/web-1.sock")" = '666 4343' ] || die "the socket has another mode or group"
  # Our shell waits for unshare, which waits for the daemon.
  kill "$(pgrep -P "$(pgrep -P "$pid")")"
  wait "$pid" || { cat "$ROOT/log" >&2; die "it does not end well"; }
  [ ! -e "$ROOT/run/web-1.sock" ] || die "it leaves its socket behind"
}

[ -n "$BINARY" ] || build
need_command readelf nm
is_static
if [ -n "$CHECK" ]; then
  [ "$(id -u)" -eq 0 ] || die "--check needs root"
  runs
fi
say "static: $BINARY, $(($(stat -c %s "$BINARY") >> 20)) MiB"
