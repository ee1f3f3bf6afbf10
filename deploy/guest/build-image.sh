#!/bin/bash
# build-image.sh [--force] [DIR]: makes the small Linux guest of the end-to-end tests and of the demo, from packages of this host's
# distribution (Debian 12, Ubuntu 24.04) and nothing else. Nothing is installed on the host: packages are fetched and unpacked in DIR.
# One kernel must be newer than Debian 12's: it comes from the backports of Debian 13, with package lists of this script's own.
#
#   DIR/vmlinuz, DIR/initrd.gz       the distribution's kernel and a RAM disk, for qemu.sh
#   DIR/vmlinuz.xsk, DIR/xinitrd.gz  a kernel whose virtio_net has AF_XDP zero-copy, and a RAM disk, for qemu-switch.sh; absent where there is none
#   DIR/linux.uml, DIR/uinitrd.gz    User-Mode Linux and its RAM disk, for uml.sh; absent where the distribution has no such package
#   DIR/xstate.so                    what uml.sh needs in addition on a processor with AMX; absent where there is no C compiler
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
VIRTIO_MODULES=(failover net_failover dimlib virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_net)
PROGRAMS=(iperf3 ethtool socat)
# What a guest that is a whole lab sets up between its network namespaces, with all that these need.
LAB_MODULES=(veth 8021q bonding macvlan bridge vxlan geneve ip_gre ip6_gre ipip sit ip6_tunnel fou fou6 bareudp mpls_router mpls_iptunnel mpls_gso sctp)
# The first Linux whose virtio_net sends by AF_XDP zero-copy; from 6.11 on it receives so.
XSK_KERNEL_MIN=6.13

# recipe_hash: changes when anything that shapes the image changes.
recipe_hash() { cat "$HERE/build-image.sh" "$HERE/init" "$HERE/net-job.sh" "$HERE/xstate.c" | sha256sum | cut -d' ' -f1; }

up_to_date() {
  [ "$(cat "$DIR/stamp" 2>/dev/null)" = "$(recipe_hash)" ] && [ -e "$DIR/vmlinuz" ] && [ -e "$DIR/initrd.gz" ] && [ -e "$DIR/bin/busybox" ]
}

# dependency_of PACKAGE PREFIX: the first dependency whose name starts with PREFIX; kernel meta packages name the real one so.
# Prints nothing for a package that the archive does not have.
dependency_of() { { apt-cache depends "$1" 2>/dev/null || true; } | awk -v p="$2" '$1 == "Depends:" && index($2, p) == 1 && !n++ { print $2 }'; }

# kernel_packages META...: the packages of the kernel that the first of these meta packages names which the archive has; or nothing.
kernel_packages() {
  local image='' meta prefix part
  for meta in "$@"; do
    image=$(dependency_of "$meta" linux-image-)
    [ -z "$image" ] || break
  done
  [ -n "$image" ] || return 0
  printf '%s\n' "$image"
  # Ubuntu keeps the modules in a package of their own, Debian from Linux 6.19 on the kernel, too.
  for prefix in linux-binary- linux-modules- linux-base-; do
    part=$(dependency_of "$image" "$prefix")
    [ -z "$part" ] || printf '%s\n' "$part"
  done
}

# backports_apt: makes apt, as far as it is told so by APT_CONFIG, see the backports of Debian 13 alone; prints the path of its configuration.
# From the mirror that the host uses, and with the keys that it trusts. Fails where the host is not Debian or the lists cannot be had.
backports_apt() {
  local mirror folder=$DIR/src/apt
  # The format is apt's.
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | awk 'NR == 1')
  [ -n "$mirror" ] || return 1
  rm -rf "$folder"
  mkdir -p "$folder/lists/partial" "$folder/cache"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie-backports main" > "$folder/sources.list"
  cat > "$folder/apt.conf" <<CONFIG
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$folder/lists";
Dir::Cache "$folder/cache";
APT::Sandbox::User "$(id -un)";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
CONFIG
  APT_CONFIG=$folder/apt.conf apt-get update -qq || return 1
  printf '%s\n' "$folder/apt.conf"
}

# fetch_xsk: the kernel for qemu-switch.sh, where there is one that is new enough.
fetch_xsk() {
  local text config
  local -a packages
  [ ! -e "$DIR/src/xsk.done" ] || return 0
  text=$(kernel_packages linux-image-virtual-hwe-24.04)
  if ! xsk_new_enough "$text" && config=$(backports_apt); then
    export APT_CONFIG=$config
    text=$(kernel_packages linux-image-cloud-amd64)
  fi
  if xsk_new_enough "$text"; then
    mapfile -t packages <<< "$text"
    fetch xsk "${packages[@]}"
  else
    say "note: no kernel from $XSK_KERNEL_MIN on could be found; the image has none with AF_XDP zero-copy (--force looks again)"
  fi
  unset APT_CONFIG
}

# xsk_new_enough PACKAGES: the first, which tells the version, is of a kernel that has it.
xsk_new_enough() {
  local image=${1%%$'\n'*}
  [ -n "$image" ] && version_ge "${image#linux-image-}" "$XSK_KERNEL_MIN"
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
  text=$(kernel_packages linux-image-cloud-amd64 linux-image-virtual)
  [ -n "$text" ] || die "no kernel package found: neither linux-image-cloud-amd64 (Debian) nor linux-image-virtual (Ubuntu)"
  mapfile -t kernel <<< "$text"
  text=$(program_packages)
  mapfile -t programs <<< "$text"
  fetch kernel "${kernel[@]}"
  fetch busybox busybox-static
  fetch programs "${programs[@]}"
  fetch_xsk
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

# put_lab_module MODULES_DIR NAME ROOT: the same for a lab, behind what the module says that it needs. Hyphens and underlines are one there.
put_lab_module() {
  local pattern=${2//[-_]/[-_]} file needed target
  file=$(find_first "$1" -name "$pattern.ko" -o -name "$pattern.ko.zst" -o -name "$pattern.ko.xz")
  target=$3/lib/modules/lab/$2.ko
  if [ -z "$file" ] || [ -e "$target" ]; then return 0; fi
  case $file in
    *.zst) zstd -dqc "$file" > "$target" ;;
    *.xz) xz -dc "$file" > "$target" ;;
    *) cp "$file" "$target" ;;
  esac
  # The section of descriptions is words that end in zero bytes.
  for needed in $(tr '\0' '\n' < "$target" | sed -n 's/^depends=//p' | tr , ' '); do put_lab_module "$1" "$needed" "$3"; done
  echo "$2.ko" >> "$3/lib/modules/lab/order"
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

# make_root ROOT MODULES_DIR PROGRAM...: the guest's file tree.
make_root() {
  local root=$1 modules=$2 program module; shift 2
  mkdir -p "$root"/{sbin,dev,proc,sys,tmp,etc,usr/bin,usr/sbin,lib/modules}
  link_applets "$root/bin"
  for program in "$@"; do put_program "$program" "$root"; done
  : > "$root/lib/modules/order"
  for module in "${VIRTIO_MODULES[@]}"; do put_module "$modules" "$module" "$root"; done
  [ -s "$root/lib/modules/virtio_net.ko" ] || grep -q '/virtio_net.ko$' "$modules/modules.builtin" || die "the kernel in $modules has no virtio_net"
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
  local work=$DIR/work module
  rm -rf "$work"; mkdir -p "$work"
  BUSYBOX=$(find_first "$DIR/src/busybox" -type f -path "*bin/busybox")
  link_applets "$DIR/bin"
  make_root "$work/root" "$(modules_dir kernel)" "${PROGRAMS[@]}"
  pack "$work/root" "$DIR/initrd.gz"
  install -m 644 "$(find_first "$DIR/src/kernel" -type f -name 'vmlinuz*')" "$DIR/vmlinuz"
  if [ -e "$DIR/src/xsk.done" ]; then
    make_root "$work/xroot" "$(modules_dir xsk)" ethtool socat
    mkdir "$work/xroot/lib/modules/lab"
    for module in "${LAB_MODULES[@]}"; do put_lab_module "$(modules_dir xsk)" "$module" "$work/xroot"; done
    pack "$work/xroot" "$DIR/xinitrd.gz"
    install -m 644 "$(find_first "$DIR/src/xsk" -type f -name 'vmlinuz*')" "$DIR/vmlinuz.xsk"
  fi
  if [ -e "$DIR/src/uml.done" ]; then
    make_root "$work/uroot" "$(modules_dir uml)" "${PROGRAMS[@]}"
    pack "$work/uroot" "$DIR/uinitrd.gz"
    install -m 755 "$(find_first "$DIR/src/uml" -type f -name linux.uml)" "$DIR/linux.uml"
    if command -v cc > /dev/null; then cc -O2 -Wall -shared -fPIC -o "$DIR/xstate.so" "$HERE/xstate.c" -ldl; fi
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
say "guest image ready in $DIR: $(cd "$DIR" && du -shL vmlinuz initrd.gz vmlinuz.xsk xinitrd.gz linux.uml uinitrd.gz 2>/dev/null | awk '{ printf "%s%s %s", s, $2, $1; s = ", " }')"
