#!/bin/bash
# booted.sh OLDER PACKAGE: boots this host's systemd in private namespaces, over a temporary copy of the root folder, and
# lets it run the service of the Debian package, upgraded from an older one whose configuration was changed by hand. Checks
# that it counts as started when its ports are open, reports how many are up, logs to the journal with fields, is reloaded,
# keeps ports, is restarted when a worker is stuck, runs on when the older package is installed again, and is stopped when the
# package is purged. As root. Exits with 77 if this host cannot do that. Outside, only a cgroup is created, and removed in the
# end.
set -euo pipefail
OLDER=$(realpath "$1") PACKAGE=$(realpath "$2") SELF=$(realpath "$0")
unable() { echo "$*"; exit 77; }

# inside_all: the first process of the namespaces, which becomes systemd.
inside_all() {
  local root=$WORK/root/root
  mount -t tmpfs tmpfs "$WORK/root"
  mkdir "$WORK/root/upper" "$WORK/root/work" "$root"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/root/upper,workdir=$WORK/root/work" "$root" || { echo 77 > "$WORK/result/status"; exit 1; }
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs tmpfs "$root/run"
  mount -t tmpfs tmpfs "$root/tmp"
  mount --rbind /dev "$root/dev"
  mkdir "$root/run/result"
  mount --bind "$WORK/result" "$root/run/result"
  prepare "$root" > "$WORK/result/output" 2>&1 || { echo 1 > "$WORK/result/status"; exit 1; }
  ip link set lo up
  ip link add check0 numrxqueues 1 numtxqueues 1 type veth peer name check1 numrxqueues 1 numtxqueues 1
  ip link set check0 up
  ip link set check1 up
  cd "$root"
  mkdir run/old
  pivot_root . run/old
  umount --lazy /run/old
  exec env -i container=check PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=check.target --log-target=journal < /dev/null > /dev/null 2>&1
}

# prepare ROOT: installs the package, and the scripts that run there.
prepare() {
  install -m 755 "$SELF" "$1/run/check.sh"
  install -m 644 "$OLDER" "$1/run/older.deb"
  install -m 644 "$PACKAGE" "$1/run/crosspoint.deb"
  export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
  chroot "$1" dpkg --install /run/older.deb
  echo '# by hand' >> "$1/etc/crosspoint/crosspoint.toml"
  chroot "$1" dpkg --force-confdef --force-confold --install /run/crosspoint.deb
  grep -qx '# by hand' "$1/etc/crosspoint/crosspoint.toml"
  mkdir -p "$1/etc/systemd/system/crosspoint.service.d"
  printf '[Service]\nWatchdogSec=2\n' > "$1/etc/systemd/system/crosspoint.service.d/check.conf"
  printf '[Unit]\nDefaultDependencies=no\nRequires=systemd-journald.service check.service\n' > "$1/etc/systemd/system/check.target"
  cat > "$1/etc/systemd/system/check.service" <<'SERVICE'
[Unit]
DefaultDependencies=no
After=systemd-journald.service
[Service]
Type=oneshot
Environment=CROSSPOINT_BOOTED=systemd
ExecStart=/bin/bash /run/check.sh /run/older.deb /run/crosspoint.deb
StandardOutput=file:/run/result/output
StandardError=file:/run/result/output
SERVICE
  cat > "$1/etc/crosspoint/crosspoint.toml" <<'TOML'
version = 1
ports_dir = "/etc/crosspoint/ports.d"
[[port]]
name = "up0"
type = "xdp"
interface = "check0"
[[port]]
name = "web-1"
type = "vhost"
socket = "/run/crosspoint/guests/web-1.sock"
TOML
  install -m 644 "$(dirname "$SELF")/../log-schema.json" "$1/run/"
  # The journal's fields of each event are the schema's keys, in capitals; those of the journal's library begin with CODE_ or
  # SYSLOG_, and fields of the journal itself with an underscore.
  cat > "$1/run/fields.py" <<'PYTHON'
import json, sys
known = {key.upper() for key in json.load(open("/run/log-schema.json"))["properties"]} | {"PRIORITY"}
events = [json.loads(line) for line in sys.stdin]
events = [event for event in events if event["_TRANSPORT"] == "journal" and "TARGET" in event]
for event in events:
    if "\n" in event["MESSAGE"]:
        sys.exit(f"several lines: {event['MESSAGE']}")
    for field in event:
        if not field.startswith(("_", "CODE_", "SYSLOG_", "TID")) and field not in known:
            sys.exit(f"the schema has no {field}: {event}")
if not any("PORT" in event for event in events):
    sys.exit(f"no event of {len(events)} has a port")
PYTHON
  # Stops one thread of another process, until this one ends.
  cat > "$1/run/hold.py" <<'PYTHON'
import ctypes, sys, time
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, INTERRUPT = 0x4206, 0x4207
for request in SEIZE, INTERRUPT:
    if ptrace(request, int(sys.argv[1]), None, None):
        sys.exit("ptrace")
time.sleep(float(sys.argv[2]))
PYTHON
}

property() { systemctl show crosspoint --property "$1" --value; }
logged() { journalctl --unit crosspoint --no-pager --output cat "$@"; }
# until WHAT COMMAND...: within ten seconds.
until_so() {
  local what=$1 tries=100; shift
  until "$@"; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ]; then echo "not so: $what"; systemctl status --no-pager crosspoint || true; logged; return 1; fi
    sleep 0.1
  done
}
says() { [ "$(property StatusText)" = "$1" ]; }
# has_restarted COUNT: more often than that.
has_restarted() { [ "$(property NRestarts)" -gt "$1" ] && [ "$(property ActiveState)" = active ]; }
# doctor ID: severity and text of a finding.
doctor() {
  { crosspoint doctor --config /etc/crosspoint/crosspoint.toml --json || true; } |
    python3 -c 'import json, sys; print(*[one["severity"] + " " + one["found"] for one in json.load(sys.stdin)["findings"] if one["id"] == sys.argv[1]])' "$1"
}
worker() { grep -lx worker-0 "/proc/$(switch)"/task/*/comm | cut -d / -f 5; }
# The process that serves the ports, a child of the main process.
switch() { grep -lx worker-0 /proc/[0-9]*/task/*/comm 2> /dev/null | head -n 1 | cut -d / -f 3; }
is_another() { [ -n "$(switch)" ] && [ "$(switch)" != "$1" ]; }

# Run by systemd.
inside_systemd() {
  local before main up='1 of 2 ports up (1 of 1 required), 1 worker(s)'
  systemctl --version | head -n 1
  systemctl start crosspoint
  # "Started" means ready, so all of this holds at once.
  [ -S /run/crosspoint/guests/web-1.sock ]
  [ "$(property Type)" = notify ]
  [ "$(stat -c '%U %G %a' /run/crosspoint/guests/web-1.sock)" = 'crosspoint crosspoint-guests 770' ]
  # The doctor knows the umask of the running daemon, and the group that the unit gives to the folder.
  doctor socket-folder | grep "^ok .* with the daemon's umask 007 its owner and group may connect"
  doctor guest-group | grep '^note .* group crosspoint-guests, which has no other member'
  usermod --append --groups crosspoint-guests nobody
  doctor guest-group | grep '^ok .* group crosspoint-guests$'
  # It is shorter in this test.
  [ "$(systemctl cat crosspoint | grep -c '^WatchdogSec=')" = 2 ]
  until_so "the status shows the ports" says "$up"
  # With the unit's own restrictions. Landlock too, if the kernel has it.
  logged | grep '^sandbox: capabilities, seccomp'
  until_so "the journal has the port's name as a field, and in the message" eval 'logged PORT=up0 | grep -q "^up0: up"'
  journalctl --unit crosspoint --output json --no-pager | python3 /run/fields.py
  if crosspoint reload --help > /dev/null 2>&1; then
    systemctl reload crosspoint
    until_so "it is as before" says "$up"
    cp /etc/crosspoint/crosspoint.toml /run/good.toml
    echo 'mistake = 1' >> /etc/crosspoint/crosspoint.toml
    if systemctl reload crosspoint 2> /dev/null; then echo "a reload of a wrong configuration succeeds"; return 1; fi
    cp /run/good.toml /etc/crosspoint/crosspoint.toml
    [ "$(property ActiveState) $(property NRestarts)" = "active 0" ]
  fi
  # The unit allows the daemon to write there, and to give a socket to its own group.
  crosspoint port add web-2 type=vhost socket=/run/crosspoint/guests/web-2.sock socket_mode=0660 socket_group=crosspoint --keep
  [ "$(stat -c '%U %G %a' /run/crosspoint/guests/web-2.sock)" = 'crosspoint crosspoint 660' ]
  grep -q web-2 /etc/crosspoint/ports.d/*.toml
  crosspoint port remove web-2 --keep
  # Another process serves the ports after an upgrade, and after a crash; the service goes on.
  main=$(property MainPID) before=$(switch)
  crosspoint upgrade --dry-run
  [ "$(switch)" = "$before" ]
  [ "$(crosspoint upgrade --if-changed)" = 'the installed program runs already' ]
  [ "$(switch)" = "$before" ]
  crosspoint upgrade
  is_another "$before"
  until_so "it is as before" says "$up"
  before=$(switch)
  kill -KILL "$before"
  until_so "it is started again by its supervisor" is_another "$before"
  until_so "it is as before" says "$up"
  [ "$(property MainPID) $(property NRestarts)" = "$main 0" ]
  # The main process dies: the switch goes on, with its sockets, and so does the next main process with it.
  before=$(switch)
  kill -KILL "$main"
  sleep 0.3
  [ "$(switch)" = "$before" ]
  [ -S /run/crosspoint/guests/web-1.sock ]
  until_so "systemd starts another main process" has_restarted 0
  until_so "it is as before" says "$up"
  [ "$(switch) $(property NRestarts)" = "$before 1" ]
  [ "$(property MainPID)" != "$main" ]
  crosspoint upgrade
  is_another "$before"
  until_so "it is as before" says "$up"
  # shellcheck disable=SC2016
  until_so "the former process is gone" eval '[ "$(grep -lx worker-0 /proc/[0-9]*/task/*/comm 2> /dev/null | wc -l)" = 1 ]'
  python3 /run/hold.py "$(worker)" 6 &
  until_so "the status names the worker" eval 'property StatusText | grep -q "^worker-0 .* makes no progress"'
  until_so "it is started again" has_restarted 1
  logged _PID=1 | grep -q 'Watchdog timeout'
  until_so "it is as before" says "$up"
  systemctl stop crosspoint
  # Without a daemon: that of the unit, which also makes the folder.
  doctor socket-folder | grep '^ok .* the unit makes the folder when it starts'
  [ "$(property ActiveState) $(property Result)" = "inactive success" ]
  systemctl start crosspoint
  # Back to the older version: it takes over, and the files stay.
  main=$(property MainPID) before=$(switch)
  DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --install "$OLDER"
  [ "$(dpkg-query --show --showformat '${Version}' crosspoint)" = 0.0.1 ]
  is_another "$before"
  [ "$(property MainPID)" = "$main" ]
  until_so "it is as before, in another process" says "$up"
  crosspoint check --config /etc/crosspoint/crosspoint.toml
  systemctl restart crosspoint
  until_so "it is as before, with the older version" says "$up"
  dpkg --purge crosspoint
  if pgrep -x crosspoint; then echo "it runs on, without its package"; return 1; fi
  [ ! -e /etc/crosspoint ]
  echo 'started, reloaded, watched, stopped, rolled back and purged'
}

case ${CROSSPOINT_BOOTED:-} in
  systemd)
    # Not after ||, where -e has no effect.
    set +e
    (set -eE; trap 'echo "line $LINENO fails: $BASH_COMMAND"; logged | tail -n 30' ERR; inside_systemd)
    status=$?
    echo "$status" > /run/result/status
    exit "$status" ;;
  all) inside_all ;;
  mounts)
    mount -t cgroup2 none "$WORK/cgroup"
    # systemd takes the cgroup in which it is as its root.
    cgroup=$WORK/cgroup/crosspoint-check-$$
    mkdir "$cgroup"
    (echo "$BASHPID" > "$cgroup/cgroup.procs"
      CROSSPOINT_BOOTED=all exec unshare --cgroup --pid --fork --kill-child --uts --ipc --net --mount --propagation private -- "$SELF" "$OLDER" "$PACKAGE") &
    booted=$!
    tries=600
    until [ -s "$WORK/result/status" ] || [ "$tries" -eq 0 ] || ! kill -0 "$booted" 2> /dev/null; do sleep 0.1; tries=$((tries - 1)); done
    # This kills the namespaces' first process, and everything else with it.
    kill -KILL "$booted" 2> /dev/null || true
    wait "$booted" 2> /dev/null || true
    for _ in $(seq 50); do
      find "$cgroup" -depth -type d -exec rmdir {} + 2> /dev/null && break
      sleep 0.1
    done ;;
  *)
    [ -x /lib/systemd/systemd ] || unable "there is no systemd"
    command -v dpkg > /dev/null || unable "there is no dpkg"
    WORK=$(mktemp -d)
    export WORK
    mkdir "$WORK/result" "$WORK/root" "$WORK/cgroup"
    trap 'rm -rf "$WORK"' EXIT
    CROSSPOINT_BOOTED=mounts unshare --mount --propagation private -- "$SELF" "$OLDER" "$PACKAGE" > "$WORK/mounts" 2>&1 || true
    status=$(cat "$WORK/result/status" 2> /dev/null || true)
    case $status in
      0) grep -m 1 '^systemd [0-9]' "$WORK/result/output" ;;
      77 | '') cat "$WORK/mounts"; unable "systemd does not start in namespaces here" ;;
      *) cat "$WORK/result/output"; exit 1 ;;
    esac ;;
esac
