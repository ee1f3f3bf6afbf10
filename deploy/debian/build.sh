#!/bin/bash
# build.sh [--version V] [--config FILE] [--maintainer "NAME <MAIL>"] BINARY FOLDER: makes crosspoint_V_ARCH.deb in FOLDER
# from a built crosspoint, and prints its path. The default of --version is the workspace's version; --config is the
# configuration that is installed as /etc/crosspoint/crosspoint.toml (default: crosspoint.toml in this folder).
#
# The binary itself writes its manual pages and completions. A binary for another architecture does not run here; then
# CROSSPOINT_NATIVE names one that does. Needs dpkg-deb, strip and objdump: apt-get install dpkg binutils. No root.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)
# shellcheck source=../lib.sh
. "$REPO/deploy/lib.sh"

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' "$REPO/Cargo.toml")
CONFIG=$HERE/crosspoint.toml
MAINTAINER="crosspoint <root@localhost>"
while [ $# -gt 0 ]; do
  case $1 in
    --version) VERSION=$2; shift 2 ;;
    --config) CONFIG=$2; shift 2 ;;
    --maintainer) MAINTAINER=$2; shift 2 ;;
    -*) die "unknown option '$1'" ;;
    *) break ;;
  esac
done
[ $# -eq 2 ] || die "usage: build.sh [--version V] [--config FILE] [--maintainer TEXT] BINARY FOLDER"
BINARY=$(realpath "$1") FOLDER=$(realpath "$2")
need_command dpkg-deb strip objdump
ARCH=$(dpkg --print-architecture)

# glibc: the newest symbol version that the binary needs, which is also the version of the package that has it.
glibc() { objdump -T "$BINARY" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1 | sed 's/GLIBC_//'; }

# A static binary needs no glibc.
depends() {
  local version
  version=$(glibc)
  printf 'adduser'
  [ -z "$version" ] || printf ', libc6 (>= %s), libgcc-s1' "$version"
}

ROOT=$(mktemp -d)
trap 'rm -rf "$ROOT"' EXIT
chmod 755 "$ROOT"
put() { install -D -m "$1" "$2" "$ROOT$3"; }

# text PATH COMMAND...: writes the command's output to a file; if it fails, nothing is built.
text() {
  local path=$ROOT$1; shift
  install -d -m 755 "$(dirname "$path")"
  "$@" > "$path"
  chmod 644 "$path"
}

put 755 "$BINARY" /usr/bin/crosspoint
strip --strip-unneeded "$ROOT/usr/bin/crosspoint"
CROSSPOINT=${CROSSPOINT_NATIVE:-$ROOT/usr/bin/crosspoint}
MAN=$ROOT/usr/share/man/man1
"$CROSSPOINT" man --dir "$MAN"
chmod 755 "$ROOT/usr/share/man" "$MAN"
gzip -9n "$MAN"/*.1
chmod 644 "$MAN"/*.gz
text /usr/share/bash-completion/completions/crosspoint "$CROSSPOINT" completions bash
text /usr/share/zsh/vendor-completions/_crosspoint "$CROSSPOINT" completions zsh
text /usr/share/fish/vendor_completions.d/crosspoint.fish "$CROSSPOINT" completions fish
put 644 "$CONFIG" /etc/crosspoint/crosspoint.toml
put 644 "$REPO/deploy/systemd/crosspoint.service" /usr/lib/systemd/system/crosspoint.service
DOC=/usr/share/doc/crosspoint
put 644 "$REPO/LICENSE" $DOC/copyright
# The pages, and every file that they link to, with the repository's paths: deploy and configs lie in examples, and have links.
for file in README.md LICENSE benches/README.md benches/RESULTS.md; do put 644 "$REPO/$file" "$DOC/$file"; done
for file in "$REPO"/switch/docs/*.md; do put 644 "$file" "$DOC/switch/docs/$(basename "$file")"; done
for file in "$REPO"/switch/docs/images/*; do put 644 "$file" "$DOC/switch/docs/images/$(basename "$file")"; done
cd "$REPO/deploy"
for file in README.md {log,show}-schema.json guest/README.md prometheus/{crosspoint.rules,scrape,scrape-tls}.yml grafana/*.json libvirt/*.{md,xml} {qemu,cloud-hypervisor}/*.args \
  systemd/crosspoint.service kubernetes/*.yaml container/Containerfile; do put 644 "$file" "$DOC/examples/$file"; done
for file in libvirt/hooks/qemu grafana/{render,generate}.py grafana/screenshots.sh; do put 755 "$file" "$DOC/examples/$file"; done
while IFS= read -r file; do put 644 "$file" "$DOC/examples/$file"; done < <(find ansible systemd/drop-ins -type f | sort)
cd "$REPO/configs"
for file in reference.toml example-server.toml example-tenants.toml ports.d/db-1.toml schema.json; do put 644 "$file" "$DOC/examples/configs/$file"; done
ln -s examples "$ROOT$DOC/deploy"
ln -s examples/configs "$ROOT$DOC/configs"
printf 'crosspoint (%s) unstable; urgency=low\n\n  * See the repository.\n\n -- %s  Thu, 01 Jan 1970 00:00:00 +0000\n' "$VERSION" "$MAINTAINER" |
  gzip -9n > "$ROOT$DOC/changelog.gz"
chmod 644 "$ROOT$DOC/changelog.gz"

mkdir "$ROOT/DEBIAN"
for script in postinst prerm postrm; do install -m 755 "$HERE/$script" "$ROOT/DEBIAN/$script"; done
echo /etc/crosspoint/crosspoint.toml > "$ROOT/DEBIAN/conffiles"
(cd "$ROOT" && find usr -type f -print0 | sort -z | xargs -0 md5sum > DEBIAN/md5sums)
cat > "$ROOT/DEBIAN/control" <<CONTROL
Package: crosspoint
Version: $VERSION
Architecture: $ARCH
Maintainer: $MAINTAINER
Depends: $(depends)
Installed-Size: $(du -sk --exclude=DEBIAN "$ROOT" | cut -f1)
Section: net
Priority: optional
Description: polling software switch for virtual machines
 crosspoint switches frames between guests, attached by vhost-user, and the
 network, attached by AF_XDP, with worker threads that poll on cores of their
 own. Every frame is counted: delivered, or dropped for a named reason.
CONTROL
# The same input makes the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$REPO" log -1 --format=%ct 2> /dev/null || echo 0)}
export SOURCE_DATE_EPOCH
dpkg-deb --root-owner-group --build "$ROOT" "$FOLDER/crosspoint_${VERSION}_$ARCH.deb" > /dev/null
echo "$FOLDER/crosspoint_${VERSION}_$ARCH.deb"
