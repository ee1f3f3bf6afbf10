#!/bin/bash
# test.sh BINARY: installs the package in a clean Debian, upgrades it (a changed configuration is kept), removes and purges
# it, and compares the result with the state before. As root; a minimal Debian is downloaded once (debootstrap, some minutes)
# and kept in /var/cache/crosspoint/debian-*.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"
BINARY=$(realpath "$1")
SUITE=${CROSSPOINT_SUITE:-bookworm}
CLEAN=/var/cache/crosspoint/debian-$SUITE

# Mounts end with the process.
if [ -z "${CROSSPOINT_TEST_INSIDE:-}" ]; then CROSSPOINT_TEST_INSIDE=1 exec unshare --mount -- "$0" "$BINARY"; fi

make_clean() {
  [ ! -e "$CLEAN" ] || return 0
  need_command debootstrap
  say "fetching a minimal Debian ($SUITE) into $CLEAN"
  rm -rf "$CLEAN.part"
  mkdir -p "$CLEAN.part"
  debootstrap --variant=minbase --include=adduser "$SUITE" "$CLEAN.part" "${CROSSPOINT_MIRROR:-http://deb.debian.org/debian}" > "$CLEAN.log" 2>&1 ||
    { tail -n 5 "$CLEAN.log" >&2; die "debootstrap failed: $CLEAN.log"; }
  rm -rf "$CLEAN.part/var/cache/apt/archives" "$CLEAN.part/var/lib/apt/lists"
  mv "$CLEAN.part" "$CLEAN"
}

# A tmpfs over the clean system, so that each run starts with a clean one.
enter() {
  WORK=$(mktemp -d)
  trap 'umount -R "$WORK"; rmdir "$WORK"' EXIT
  mount -t tmpfs tmpfs "$WORK"
  mkdir "$WORK/upper" "$WORK/work" "$WORK/root" "$WORK/debs"
  mount -t overlay overlay -o "lowerdir=$CLEAN,upperdir=$WORK/upper,workdir=$WORK/work" "$WORK/root" ||
    { say "no overlay here: copying"; cp -a "$CLEAN/." "$WORK/root"; }
  ROOT=$WORK/root
  mount -t proc proc "$ROOT/proc"
  mkdir -p "$ROOT/debs"
}

inside() { LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$ROOT" "$@"; }
expect() { local what=$1; shift; if "$@"; then say "ok: $what"; else die "not so: $what"; fi; }
refuse() { local what=$1; shift; if "$@"; then die "not so: $what"; else say "ok: $what"; fi; }

# state: every file, user and group, except the files that dpkg and its tools write about themselves.
state() {
  (cd "$ROOT" && find . -xdev \( -path ./proc -o -path ./debs -o -path ./var/lib/dpkg -o -path ./var/cache -o -path ./var/log -o -path ./tmp -o -path ./run \) -prune \
    -o -not -name '.pwd.lock' -not -name '*-' -printf '%M %u %g %y %p\n' | sort)
  sort "$ROOT/etc/passwd" "$ROOT/etc/group"
}

as() { inside setpriv --reuid "$1" --regid "$2" --clear-groups "${@:3}"; }
# commands: the program's commands, except help. pages: those that have a manual page.
commands() { "${CROSSPOINT_NATIVE:-$BINARY}" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' | grep -vx help | sort; }
pages() { (cd "$ROOT/usr/share/man/man1" && printf '%s\n' crosspoint-*.1.gz) | sed 's/^crosspoint-//; s/\.1\.gz$//' | sort; }

make_clean
enter
# It need not be small.
export DPKG_DEB_COMPRESSOR_TYPE=gzip DPKG_DEB_COMPRESSOR_LEVEL=1
"$HERE/build.sh" --version 0.1.0 "$BINARY" "$ROOT/debs" > /dev/null
sed 's/"adaptive"/"busy"/' "$HERE/crosspoint.toml" > "$WORK/other.toml"
"$HERE/build.sh" --version 0.1.1 --config "$WORK/other.toml" "$BINARY" "$ROOT/debs" > /dev/null
"$HERE/build.sh" --version 0.1.2 --config "$WORK/other.toml" "$BINARY" "$ROOT/debs" > /dev/null
ARCH=$(dpkg --print-architecture)
CONFIG=$ROOT/etc/crosspoint/crosspoint.toml
BEFORE=$(state)

inside dpkg --install "/debs/crosspoint_0.1.0_$ARCH.deb" > "$WORK/log" 2>&1 || { cat "$WORK/log" >&2; die "it does not install"; }
expect "dpkg has it installed" grep -qx 'Status: install ok installed' <(inside dpkg-query --status crosspoint)
expect "every file is as it was packed" test -z "$(inside dpkg --verify crosspoint)"
expect "the program runs" inside crosspoint --version
expect "the configuration is valid" inside crosspoint check --config /etc/crosspoint/crosspoint.toml
expect "the unit is where systemd looks" test -e "$ROOT/lib/systemd/system/crosspoint.service"
expect "the group for guests is there" grep -q '^crosspoint-guests:' "$ROOT/etc/group"
expect "its user is there, without a shell" grep -q '^crosspoint:.*:/usr/sbin/nologin$' "$ROOT/etc/passwd"
expect "as an ordinary user it can read its configuration" \
  inside setpriv --reuid crosspoint --regid crosspoint --clear-groups crosspoint check --config /etc/crosspoint/crosspoint.toml
expect "the folder of ports is for the control group" test "$(chroot "$ROOT" stat -c '%a %U %G' /etc/crosspoint/ports.d)" = '2775 root crosspoint'
expect "the daemon keeps a port there" as crosspoint crosspoint /bin/sh -c 'umask 007; printf "%s\n" "[[port]]" "name = \"web-1\"" "type = \"vhost\"" \
  "socket = \"/run/crosspoint/guests/web-1.sock\"" > /etc/crosspoint/ports.d/web-1.toml'
expect "the configuration is valid with it" as crosspoint crosspoint crosspoint check --config /etc/crosspoint/crosspoint.toml
refuse "others can add ports" as nobody nogroup /bin/sh -c 'echo > /etc/crosspoint/ports.d/mine.toml' 2> /dev/null
refuse "a user who may only connect guests can add ports" as nobody crosspoint-guests /bin/sh -c 'echo > /etc/crosspoint/ports.d/mine.toml' 2> /dev/null
expect "there is a manual page" test -s "$ROOT/usr/share/man/man1/crosspoint-run.1.gz"
expect "each command has a manual page" test -z "$(comm -23 <(commands) <(pages))"
# shellcheck disable=SC2016 # for the inner shell
expect "bash completes it" inside bash -c '. /usr/share/bash-completion/completions/crosspoint && COMP_WORDS=(crosspoint sh) COMP_CWORD=1 COMP_TYPE=9 && _crosspoint crosspoint sh crosspoint && [ "${COMPREPLY[*]}" = show ]'

# The administrator's changes.
inside chmod 2750 /etc/crosspoint/ports.d
echo '# by hand' >> "$CONFIG"
inside dpkg --force-confdef --force-confold --install "/debs/crosspoint_0.1.1_$ARCH.deb" > "$WORK/log" 2>&1 || { cat "$WORK/log" >&2; die "it does not upgrade"; }
expect "the upgrade is installed" grep -qx 'Version: 0.1.1' <(inside dpkg-query --status crosspoint)
expect "a changed configuration is kept" grep -qx '# by hand' "$CONFIG"
expect "the new one lies beside it" grep -q '"busy"' "$CONFIG.dpkg-dist"
expect "the mode of the folder of ports is kept" test "$(stat -c %a "$ROOT/etc/crosspoint/ports.d")" = 2750
expect "and what is in it" test -s "$ROOT/etc/crosspoint/ports.d/web-1.toml"

# An upgrade from a version without that folder.
mv "$ROOT/etc/crosspoint/ports.d" "$WORK/ports.d"
inside dpkg --force-confdef --force-confold --install "/debs/crosspoint_0.1.2_$ARCH.deb" > "$WORK/log" 2>&1 || { cat "$WORK/log" >&2; die "it does not upgrade again"; }
expect "an upgrade makes the folder of ports" test "$(stat -c %a "$ROOT/etc/crosspoint/ports.d")" = 2775
cp "$WORK/ports.d/web-1.toml" "$ROOT/etc/crosspoint/ports.d/"

inside dpkg --remove crosspoint > "$WORK/log" 2>&1 || { cat "$WORK/log" >&2; die "it cannot be removed"; }
refuse "the program is gone" test -e "$ROOT/usr/bin/crosspoint"
expect "the configuration is kept" grep -qx '# by hand' "$CONFIG"
expect "and the ports" test -s "$ROOT/etc/crosspoint/ports.d/web-1.toml"
inside dpkg --purge crosspoint > "$WORK/log" 2>&1 || { cat "$WORK/log" >&2; die "it cannot be purged"; }
AFTER=$(state)
diff <(printf '%s\n' "$BEFORE") <(printf '%s\n' "$AFTER") >&2 || die "purging leaves something behind"
say "ok: purged, everything is as it was before"
