#!/bin/bash
# check.sh [--full] [BINARY]: checks the files in deploy/ for operators against the daemon BINARY (default: the debug build):
# rules, dashboards, systemd unit, the Debian package's service, Kubernetes, guests. As root. Checks that this host cannot do
# are listed as "not run", and are no failure.
#
#   --full   also: the package is installed, upgraded and purged in a clean chroot; each capability of the unit is needed; the unit's system call
#            filter; libvirt, which runs its example; the Ansible role; a static binary of the debug build, in an empty root folder and in the container image
#
# Downloads are kept in /var/cache/crosspoint/check.
# shellcheck disable=SC2317 # the checks are called by check() alone
set -euo pipefail
DEPLOY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$DEPLOY")
# shellcheck source=lib.sh
. "$DEPLOY/lib.sh"

CACHE=${CROSSPOINT_CHECK_CACHE:-/var/cache/crosspoint/check}
# Debian's: python3-yaml and python3-jsonschema.
PYTHON=/usr/bin/python3
UNIT=$DEPLOY/systemd/crosspoint.service
# Kubernetes' own schemas, of many versions, packed by the project kubernetes-validate.
SCHEMAS=kubernetes_validate-1.37.0-py3-none-any.whl
SCHEMAS_URL=https://files.pythonhosted.org/packages/b0/50/104f3b5a41aba6737c5f2ffe76270398f3a7320dc4a4f3f88dfd5bc9af63/$SCHEMAS
SCHEMAS_SHA256=85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9
# In tenths, as systemd 252 computes it. What remains is what a switch is for: the host's network and its interfaces, sockets,
# packet sockets, four capabilities, bpf(), pinned threads.
EXPOSURE_MAX=23
# A group that the daemon under check is not in.
GUESTS=4343
FULL='' BINARY=''
for word in "$@"; do
  case $word in
    --full) FULL=1 ;;
    -h | --help) sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) die "unknown option '$word'" ;;
    *) BINARY=$word ;;
  esac
done
BINARY=${BINARY:-${CARGO_TARGET_DIR:-$REPO/target}/debug/crosspoint}
FAILED=0

# check NAME COMMAND...: the output is shown only if the command fails.
check() {
  local name=$1 start=$SECONDS status; shift
  # Not after ||, where -e has no effect.
  set +e
  (set -e; "$@") > "$WORK/output" 2>&1
  status=$?
  set -e
  case $status in
    0) say "ok: $name, $((SECONDS - start)) s$(sed -n '$s/^[0-9].*/: &/p' "$WORK/output")" ;;
    77) say "not run: $name: $(tail -n 1 "$WORK/output")" ;;
    *) say "FAILED: $name"; cat "$WORK/output" >&2; FAILED=1 ;;
  esac
}

# unable REASON: ends a check that this host cannot do.
unable() { say "$*"; exit 77; }
have() { command -v "$1" > /dev/null || unable "there is no $1"; }
have_python() { "$PYTHON" -c 'import jsonschema, yaml' 2> /dev/null || unable "$PYTHON has no yaml or no jsonschema: deploy/install-deps.sh test"; }

check_rules() {
  have promtool
  promtool check rules "$DEPLOY/prometheus/crosspoint.rules.yml"
  promtool check config "$DEPLOY/prometheus/scrape.yml"
  # Its files are on the Prometheus host.
  promtool check config --syntax-only "$DEPLOY/prometheus/scrape-tls.yml"
  promtool test rules "$DEPLOY/prometheus/crosspoint.test.yml"
  have_python
  "$PYTHON" -B "$DEPLOY/prometheus/alerts.py" --check
}

check_names() {
  have promtool; have_python
  mkdir "$WORK/scrape"
  "$DEPLOY/check/scrape.sh" "$WORK/crosspoint" "$WORK/scrape"
  promtool check metrics < "$WORK/scrape/metrics.txt"
  "$DEPLOY/grafana/generate.py" --check
  "$PYTHON" "$DEPLOY/check/metrics.py" "$WORK/scrape/metrics.txt"
}

check_prometheus() {
  have prometheus; have dpdk-testpmd; have_python
  mkdir "$WORK/prometheus"
  CROSSPOINT_SCRAPE_THEN="$PYTHON -B $DEPLOY/check/prometheus.py" "$DEPLOY/check/scrape.sh" "$WORK/crosspoint" "$WORK/prometheus"
}

check_unit() {
  have systemd-analyze
  # With the program's actual path, which systemd-analyze verify looks for.
  sed "s,/usr/bin/crosspoint,$WORK/crosspoint," "$UNIT" > "$WORK/crosspoint.service"
  local said
  said=$(systemd-analyze verify --man=no "$WORK/crosspoint.service" 2>&1) || { echo "$said"; return 1; }
  [ -z "$said" ] || { echo "$said"; return 1; }
  systemd-analyze security --offline=true --no-pager --threshold="$EXPOSURE_MAX" "$WORK/crosspoint.service" | sed 's/\x1b\[[0-9;]*m//g' > "$WORK/security"
  sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1 of 10 is the exposure by systemd-analyze security/p' "$WORK/security"
}

# The unit with its drop-ins: no file may have a key that systemd does not know.
check_drop_ins() {
  have systemd-analyze
  local folder=$WORK/units said
  cp -r "$DEPLOY/systemd/drop-ins" "$folder"
  rm "$folder/README.md"
  sed "s,/usr/bin/crosspoint,$WORK/crosspoint," "$UNIT" > "$folder/crosspoint.service"
  export SYSTEMD_UNIT_PATH=$folder:
  said=$(systemd-analyze verify --man=no "$folder"/*.service "$folder"/*.slice system.slice user.slice machine.slice 2>&1) || { echo "$said"; return 1; }
  [ -z "$said" ] || { echo "$said"; return 1; }
  # That they are read at all.
  echo 'NoSuchKey=1' | tee -a "$folder"/*.d/*.conf > /dev/null
  said=$(systemd-analyze verify --man=no "$folder/crosspoint.service" system.slice user.slice machine.slice 2>&1 | grep -c NoSuchKey)
  [ "$said" -eq "$(find "$folder" -name '*.conf' | wc -l)" ]
}

# unit_capabilities: as words, without CAP_.
unit_capabilities() { sed -n 's/^CapabilityBoundingSet=//p' "$UNIT" | sed 's/CAP_//g' | tr '[:upper:]' '[:lower:]'; }

# runs_with FOLDER USER CAPABILITY...: checks that the daemon's uplink comes up as this user with only these capabilities.
runs_with() {
  local folder=$1 user=$2 set='-all' one; shift 2
  for one in "$@"; do set+=,+$one; done
  mkdir -m 777 "$folder"
  # As the unit creates it: with its own group.
  install -d -m 2770 -o "$user" -g "$GUESTS" "$folder/guests"
  umask "$(sed -n 's/^UMask=//p' "$UNIT")"
  "$DEPLOY/check/scrape.sh" "$WORK/crosspoint" "$folder" setpriv --no-new-privs --reuid "$user" --regid "$user" --clear-groups \
    --bounding-set "$set" --inh-caps "$set" --ambient-caps "$set"
}

check_capabilities() {
  # shellcheck disable=SC2046 # words
  runs_with "$WORK/ordinary" 4242 $(unit_capabilities)
  # It may complain only of the missing interface.
  if grep -E ' (WARN|ERROR) ' "$WORK/ordinary/log" | grep -v missing0; then return 1; fi
  # The control socket is for the daemon's group, the guest's socket for the other group.
  diff - "$WORK/ordinary/sockets" <<SOCKETS || return 1
660 4242 4242 $WORK/ordinary/control.sock
770 4242 $GUESTS $WORK/ordinary/guests/web-1.sock
SOCKETS
  # As in the container: root without root's capabilities.
  # shellcheck disable=SC2046
  runs_with "$WORK/root" 0 $(unit_capabilities)
}

check_each_capability() {
  local without
  # So that the limit does not allow locked memory.
  ulimit -l 64
  for without in $(unit_capabilities); do
    # shellcheck disable=SC2046
    if CROSSPOINT_SCRAPE_TRIES=20 runs_with "$WORK/without-$without" 4242 $(unit_capabilities | tr ' ' '\n' | grep -vx "$without") > /dev/null 2>&1; then
      echo "it runs without $without as well"; return 1
    fi
  done
}

check_sandbox() {
  have systemd-analyze; have strace
  mkdir "$WORK/traced"
  # -D: the daemon stays this script's child, and gets its signals.
  "$DEPLOY/check/scrape.sh" "$WORK/crosspoint" "$WORK/traced" strace -D -f -qq -o "$WORK/trace"
  "$PYTHON" "$DEPLOY/check/sandbox.py" "$UNIT" "$WORK/trace"
}

# fetch FILE URL SHA256: prints the file's path.
fetch() {
  if ! echo "$3  $CACHE/$1" | sha256sum --check --status 2> /dev/null; then
    mkdir -p "$CACHE"
    curl -fsSL --max-time 60 -o "$CACHE/$1.part" "$2" 2> /dev/null || return 1
    echo "$3  $CACHE/$1.part" | sha256sum --check --status || return 1
    mv "$CACHE/$1.part" "$CACHE/$1"
  fi
  echo "$CACHE/$1"
}

check_kubernetes() {
  have_python
  local schemas
  schemas=$(fetch "$SCHEMAS" "$SCHEMAS_URL" "$SCHEMAS_SHA256") || schemas=-
  "$PYTHON" "$DEPLOY/check/kubernetes.py" "$schemas" "$WORK/crosspoint"
  [ "$schemas" != - ] || unable "the schemas could not be fetched from $SCHEMAS_URL; the rest is as it should be"
}

# until_so COMMAND...: within ten seconds.
until_so() {
  local tries=100
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.1
  done
}

# The example's arguments unchanged, except for the folder. QEMU connects before it would start its guest.
check_qemu_runs() {
  local folder=$WORK/qemu qemu daemon words=() status=0
  qemu=$(qemu_binary) || unable "there is no QEMU"
  mkdir "$folder"
  printf '%s\n' 'version = 1' 'metrics.listen = "off"' "control.socket = \"$folder/control.sock\"" '[[port]]' 'name = "web-1"' 'type = "vhost"' \
    "socket = \"$folder/web-1.sock\"" 'socket_mode = "0600"' 'queue_pairs = 4' > "$folder/crosspoint.toml"
  mapfile -t words < <(grep -v '^#' "$DEPLOY/qemu/web-1.args" | sed "s,/run/crosspoint/guests,$folder," | tr ' ' '\n')
  # The option's name since QEMU 9.2.
  "$qemu" --version | grep -qE 'version (9\.[2-9]|[1-9][0-9])' || mapfile -t words < <(printf '%s\n' "${words[@]}" | sed 's/reconnect-ms=1000/reconnect=1/')
  "$WORK/crosspoint" run --config "$folder/crosspoint.toml" > "$folder/log" 2>&1 &
  daemon=$!
  until_so test -S "$folder/web-1.sock" || status=1
  # QEMU reads these commands only after it has connected.
  printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"quit"}' |
    timeout 30 "$qemu" "${words[@]}" -accel tcg -nodefaults -display none -S -qmp stdio > "$folder/qmp" 2>&1 || status=1
  until_so grep -q 'front end connected' "$folder/log" || status=1
  kill "$daemon"
  wait "$daemon" || status=1
  [ "$status" -eq 0 ] || { cat "$folder/qmp" "$folder/log"; return 1; }
}

check_guests() {
  qemu_binary > /dev/null || unable "there is no QEMU"
  "$PYTHON" "$DEPLOY/check/guests.py"
}

# Checks that the installed files are those of the package; its other tests belong to --full.
check_package() {
  have dpkg-deb
  local root=$WORK/package/root
  mkdir -p "$root"
  # It need not be small.
  export DPKG_DEB_COMPRESSOR_TYPE=gzip DPKG_DEB_COMPRESSOR_LEVEL=1
  "$DEPLOY/debian/build.sh" --version 0.0.1 --config <(sed '/^#/d' "$DEPLOY/debian/crosspoint.toml") "$BINARY" "$WORK/package" > "$WORK/package/older"
  "$DEPLOY/debian/build.sh" "$BINARY" "$WORK/package" > "$WORK/package/newest"
  dpkg-deb --extract "$(cat "$WORK/package/newest")" "$root"
  zcat "$root/usr/share/man/man1/crosspoint-run.1.gz" | grep -q '^\.TH crosspoint-run 1'
  bash -n "$root/usr/share/bash-completion/completions/crosspoint"
  # No file may be writable by others, and all belong to root.
  dpkg-deb --contents "$(cat "$WORK/package/newest")" > "$WORK/package/contents"
  if grep -v ' root/root ' "$WORK/package/contents" || grep '^[^l].......w' "$WORK/package/contents"; then return 1; fi
  "$PYTHON" -B "$DEPLOY/check/package.py" "$root"
}

check_booted() {
  [ -s "$WORK/package/newest" ] || unable "there is no package"
  "$DEPLOY/check/booted.sh" "$(cat "$WORK/package/older")" "$(cat "$WORK/package/newest")"
}

# In the profile of the debug build, whose compiled parts are used again.
check_static() { "$DEPLOY/static.sh" --profile dev --check; }

check_container() {
  have buildah; have jq
  local binary=${CARGO_TARGET_DIR:-$REPO/target}/static/crosspoint
  [ -x "$binary" ] || unable "there is no static binary"
  "$DEPLOY/check/container.sh" "$binary"
}

# libvirt_schemas: prints the folder of libvirt's schemas: installed, or from its package, without installing that.
libvirt_schemas() {
  local folder=/usr/share/libvirt/schemas
  if [ -e "$folder/domain.rng" ]; then echo "$folder"; return; fi
  folder=$CACHE/libvirt
  if [ ! -e "$folder/domain.rng" ]; then
    command -v apt-get > /dev/null || return 1
    local package work
    work=$(mktemp -d)
    mkdir -p "$folder"
    # Newer releases have them in libvirt-common.
    for package in libvirt-common libvirt0; do
      (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" && dpkg-deb --fsys-tarfile "$package"_*.deb |
        tar -x --strip-components=5 -C "$folder" ./usr/share/libvirt/schemas) > /dev/null 2>&1 && break
    done
    rm -rf "$work"
  fi
  [ -e "$folder/domain.rng" ] && echo "$folder"
}

# A real libvirt runs the example.
check_libvirt_runs() {
  local status=0
  qemu_binary > /dev/null || unable "there is no QEMU"
  "$DEPLOY/check/libvirt.sh" "$WORK/crosspoint" > "$WORK/words" 2>&1 || status=$?
  [ "$status" -eq 0 ] || { cat "$WORK/words"; return "$status"; }
  "$PYTHON" "$DEPLOY/check/guests.py" "$WORK/words"
}

check_hooks() { "$PYTHON" -B "$DEPLOY/check/hooks.py" "$WORK/crosspoint"; }

# In a network namespace of its own: an address of the metrics is missing there, which the log reports.
check_log() {
  have_python
  unshare --net "$PYTHON" -B "$DEPLOY/check/log.py" "$WORK/crosspoint"
}

check_rollback() { "$PYTHON" -B "$DEPLOY/check/rollback.py" "$WORK/crosspoint"; }

check_ansible() {
  [ -s "$WORK/package/newest" ] || unable "there is no package"
  "$DEPLOY/check/ansible.sh" "$(cat "$WORK/package/newest")"
}

check_libvirt() {
  have xmllint
  local schemas file
  schemas=$(libvirt_schemas) || unable "libvirt's schemas could be fetched from no package"
  mkdir "$WORK/domains"
  "$PYTHON" -B "$DEPLOY/check/hooks.py" "$WORK/crosspoint" "$WORK/domains"
  for file in "$DEPLOY"/libvirt/*.xml "$WORK"/domains/*.xml; do xmllint --noout --relaxng "$schemas/domain.rng" "$file"; done
}

[ "$(id -u)" -eq 0 ] || die "needs root: the daemon loads an XDP program"
[ -x "$BINARY" ] || die "$BINARY is missing: cargo build"
need_command ip curl setpriv unshare
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
# An ordinary user must be able to reach the program.
chmod 755 "$WORK"
install -m 755 -s "$BINARY" "$WORK/crosspoint"

check "Prometheus rules" check_rules
check "rules and dashboards ask for what a daemon exports" check_names
check "a Prometheus that scrapes a daemon" check_prometheus
check "systemd unit" check_unit
check "drop-ins of the unit" check_drop_ins
check "the daemon with the unit's capabilities" check_capabilities
check "Kubernetes" check_kubernetes
check "guests as the tests run them" check_guests
check "QEMU runs its example" check_qemu_runs
check "libvirt's hook makes and removes ports" check_hooks
check "libvirt's schema" check_libvirt
check "lines of the log, as JSON and as text" check_log
check "keys that a version does not know" check_rollback
check "what is in the Debian package" check_package
check "systemd itself, and the package's service" check_booted
if [ -n "$FULL" ]; then
  check "each capability is needed" check_each_capability
  check "the unit's system calls and address families" check_sandbox
  check "Debian package" "$DEPLOY/debian/test.sh" "$BINARY"
  check "libvirt runs its example, as another user" check_libvirt_runs
  check "the Ansible role" check_ansible
  check "static binary" check_static
  check "container image" check_container
fi
exit "$FAILED"
