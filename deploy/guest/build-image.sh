#!/bin/bash
# build-image.sh [--force] [DIR]: makes the small Linux guest of the end-to-end tests and of the demo, from packages of this host's
# distribution (Debian 12, Ubuntu 24.04) and nothing else. Nothing is installed on the host: packages are fetched and unpacked in DIR.
#
#   DIR/vmlinuz, DIR/initrd.gz       the distribution's kernel and a RAM disk, for qemu.sh
#   DIR/linux.uml, DIR/uinitrd.gz    User-Mode Linux and its RAM disk, for uml.sh; absent where the distribution has no such package
#   DIR/bin                          the guest's static busybox and links to it, for peer-service.sh
#
# DIR defaults to $CROSSPOINT_GUEST_IMAGE or /var/cache/crosspoint/guest. A second call returns at once when nothing changed here.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"
# shellcheck source=lib.sh
. "$HERE/lib.sh"

# What virtio-net needs where it is not built in; found by name, so that each distribution's choice of modules works.
VIRTIO_MODULES=(failover net_failover virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_net)
PROGRAMS=(iperf3 ethtool socat)

# recipe_hash: changes when anything that shapes the image changes.
recipe_hash() { cat "$HERE/build-image.sh" "$HERE/init" "$HERE/net-job.sh" | sha256sum | cut -d' ' -f1; }

up_to_date() {
  [ "$(cat "$DIR/stamp" 2>/dev/null)" = "$(recipe_hash)" ] && [ -e "$DIR/vmlinuz" ] && [ -e "$DIR/initrd.gz" ] && [ -e "$DIR/bin/busybox" ]
}

# dependency_of PACKAGE PREFIX: the first dependency whose name starts with PREFIX; kernel meta packages name the real one so.
# Prints nothing for a package that the archive does not have.
dependency_of() { { apt-cache depends "$1" 2>/dev/null || true; } | awk -v p="$2" '$1 == "Depends:" && index($2, p) == 1 && !n++ { print $2 }'; }

kernel_packages() {
  local image modules
  image=$(dependency_of linux-image-cloud-amd64 linux-image-)
  [ -n "$image" ] || image=$(dependency_of linux-image-virtual linux-image-)
  [ -n "$image" ] || die "no kernel package found: neither linux-image-cloud-amd64 (Debian) nor linux-image-virtual (Ubuntu)"
  printf '%s\n' "$image"
  # Ubuntu keeps the modules in a package of their own.
  modules=$(dependency_of "$image" linux-modules-)
  [ -z "$modules" ] || printf '%s\n' "$modules"
}

# program_packages: those of the programs, and the library packages below them; the rest of what they depend on is for installing them.
program_packages() {
  local found="${PROGRAMS[*]}" more
  while :; do
    # Words, so split on purpose.
    # shellcheck disable=SC2086
    more=$({ printf '%s\n' $found; apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances $found |
      awk '$1 ~ /Depends:$/ && $2 ~ /^lib/ { print $2 }'; } | sort -u)
    [ "$more" != "$found" ] || break
    found=$more
  done
  printf '%s\n' "$found"
}

# find_first FOLDER TEST...: one file that passes, or nothing. Not "find | head", whose broken pipe counts as a failure here.
find_first() { local folder=$1; shift; find "$folder" \( "$@" \) -print -quit; }

# fetch FOLDER PACKAGE...: downloads packages and unpacks them in DIR/src/FOLDER, unless just these lie there.
fetch() {
  local folder=$DIR/src/$1; shift
  [ "$(cat "$folder.done" 2>/dev/null)" != "$*" ] || return 0
  say "fetching: $*"
  rm -rf "$folder" "$folder.deb"; mkdir -p "$folder" "$folder.deb"
  # The sandbox user of apt cannot write here, and would only cause a warning.
  (cd "$folder.deb" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$@")
  local deb
  for deb in "$folder.deb"/*.deb; do dpkg-deb -x "$deb" "$folder"; done
  rm -rf "$folder.deb"
  echo "$*" > "$folder.done"
}

fetch_all() {
  local text
  local -a kernel programs
  # By way of a variable, since the failure of a process substitution goes unnoticed.
  text=$(kernel_packages)
  mapfile -t kernel <<< "$text"
  text=$(program_packages)
  mapfile -t programs <<< "$text"
  fetch kernel "${kernel[@]}"
  fetch busybox busybox-static
  fetch programs "${programs[@]}"
  if in_archive user-mode-linux; then
    fetch uml user-mode-linux
  else
    say "note: this distribution's archive has no package user-mode-linux; the image is for QEMU only"
  fi
}

# put_module MODULES_DIR NAME ROOT: copies a module, uncompressed since busybox cannot read every compression, and notes the order to load.
put_module() {
  local file target=$3/lib/modules/$2.ko
  file=$(find_first "$1" -name "$2.ko" -o -name "$2.ko.zst" -o -name "$2.ko.xz")
  # Absent is fine: built in, or a kernel without that split, or without PCI (User-Mode Linux). The caller checks what must exist.
  [ -n "$file" ] || return 0
  case $file in
    *.zst) zstd -dqc "$file" > "$target" ;;
    *.xz) xz -dc "$file" > "$target" ;;
    *) cp "$file" "$target" ;;
  esac
  echo "$2.ko" >> "$3/lib/modules/order"
}

# put_program NAME ROOT: copies a program of the unpacked packages with the libraries that its own loader finds there.
put_program() {
  local src=$DIR/src/programs program loader list lib
  # Some distributions have merged /bin and /usr/bin in their packages, others have not.
  program=$(find_first "$src" -type f -path "*bin/$1")
  loader=$(find_first "$src" -type f -name 'ld-linux-x86-64.so.2')
  list=$("$loader" --library-path "$(find "$src" -type d -name x86_64-linux-gnu -path '*lib/*' | paste -sd:)" --list "$program")
  if grep -q 'not found' <<< "$list"; then die "$1 needs libraries that were not fetched: $list"; fi
  cp "$program" "$2/bin/"
  mkdir -p "$2/lib64" "$2/lib/x86_64-linux-gnu"
  cp -L "$loader" "$2/lib64/"
  # The C library loads this one by itself when a thread ends.
  cp -L "$(find_first "$src" -name libgcc_s.so.1)" "$2/lib/x86_64-linux-gnu/"
  while read -r lib; do
    case $lib in */ld-linux*) ;; *) cp -L "$lib" "$2/lib/x86_64-linux-gnu/" ;; esac
  done < <(awk '$2 == "=>" && $3 ~ /^\// { print $3 }' <<< "$list")
}

# link_applets FOLDER: busybox, and a link to it for each of its commands.
link_applets() {
  local applet
  mkdir -p "$1"
  cp -f "$BUSYBOX" "$1/busybox"
  for applet in $("$BUSYBOX" --list); do [ "$applet" = busybox ] || ln -sf busybox "$1/$applet"; done
}

# make_root ROOT MODULES_DIR: the guest's file tree.
make_root() {
  local root=$1 program module
  mkdir -p "$root"/{sbin,dev,proc,sys,tmp,etc,usr/bin,usr/sbin,lib/modules}
  link_applets "$root/bin"
  for program in "${PROGRAMS[@]}"; do put_program "$program" "$root"; done
  : > "$root/lib/modules/order"
  for module in "${VIRTIO_MODULES[@]}"; do put_module "$2" "$module" "$root"; done
  [ -s "$root/lib/modules/virtio_net.ko" ] || grep -q '/virtio_net.ko$' "$2/modules.builtin" || die "the kernel in $2 has no virtio_net"
  echo 'root:x:0:0:root:/:/bin/sh' > "$root/etc/passwd"
  echo '127.0.0.1 localhost' > "$root/etc/hosts"
  install -m 755 "$HERE/init" "$root/init"
  install -m 755 "$HERE/net-job.sh" "$root/bin/net-job.sh"
}

# pack ROOT FILE: the RAM disk, put in place in one step.
pack() {
  (cd "$1" && find . | "$BUSYBOX" cpio -o -H newc -R 0:0 2>/dev/null) | gzip -1 > "$2.new"
  mv "$2.new" "$2"
}

modules_dir() { dirname "$(find_first "$DIR/src/$1" -type f -name modules.builtin)"; }

build() {
  local work=$DIR/work
  rm -rf "$work"; mkdir -p "$work"
  BUSYBOX=$(find_first "$DIR/src/busybox" -type f -path "*bin/busybox")
  link_applets "$DIR/bin"
  make_root "$work/root" "$(modules_dir kernel)"
  pack "$work/root" "$DIR/initrd.gz"
  install -m 644 "$(find_first "$DIR/src/kernel/boot" -name 'vmlinuz-*')" "$DIR/vmlinuz"
  if [ -e "$DIR/src/uml.done" ]; then
    make_root "$work/uroot" "$(modules_dir uml)"
    pack "$work/uroot" "$DIR/uinitrd.gz"
    install -m 755 "$(find_first "$DIR/src/uml" -type f -name linux.uml)" "$DIR/linux.uml"
  fi
  rm -rf "$work"
  recipe_hash > "$DIR/stamp"
}

FORCE=''
if [ "${1:-}" = --force ]; then FORCE=1; shift; fi
DIR=${1:-${CROSSPOINT_GUEST_IMAGE:-$GUEST_IMAGE_DIR_DEFAULT}}
[ "$(uname -m)" = x86_64 ] || die "the test guests are for x86_64 only"
if [ -z "$FORCE" ] && up_to_date; then exit 0; fi
mkdir -p "$DIR" || die "cannot make $DIR: name a folder of yours, or be root"
DIR=$(cd "$DIR" && pwd)
# Several tests may ask for the image at once; one builds, the others wait.
exec 9> "$DIR/lock"
flock 9
if [ -z "$FORCE" ] && up_to_date; then exit 0; fi
[ -z "$FORCE" ] || rm -rf "$DIR/src"
apt_lists_ready busybox-static
need_command dpkg-deb gzip zstd xz
fetch_all
build
say "guest image ready in $DIR: $(cd "$DIR" && du -shL vmlinuz initrd.gz linux.uml uinitrd.gz 2>/dev/null | awk '{ printf "%s%s %s", s, $2, $1; s = ", " }')"
