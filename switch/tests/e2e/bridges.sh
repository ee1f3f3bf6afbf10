#!/bin/sh
# Two tenants with the same addresses, namespaces a and b, and a host behind one uplink with a device of the kernel for each
# tenant's tag: t100 (802.1Q) and t200 (802.1ad), and i5, a tag of the tenant's own behind that. Runs in the guest of
# qemu-switch.sh --lab, as /switch/bridges.sh; bridges.rs reads its output:
#
#   CASE name=ok | CASE name=WHAT was seen
# shellcheck disable=SC3043,SC2016,SC2086 # the shell is busybox; its variables are meant; words are meant
set -u
# The host's ip: busybox's own comes first, whatever PATH is, and does not support namespaces.
IP=/switch/ip
MAC=52:54:00:08:00:01 ADDRESS=10.8.0.11 INNER=10.7.0.11

host() { # NAME
  $IP netns add "$1"
  $IP link add "up-$1" type veth peer name eth0 netns "$1"
  echo 1 > "/proc/sys/net/ipv6/conf/up-$1/disable_ipv6"
  $IP link set "up-$1" up
  $IP -n "$1" link set lo up
  $IP netns exec "$1" sh -c 'for f in all default; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done'
}

tenant() { # NAME
  host "$1"
  $IP -n "$1" -b - << LINES
link set eth0 address $MAC
link set eth0 up
addr add $ADDRESS/24 dev eth0
link add link eth0 name i5 type vlan id 5
link set i5 up
addr add $INNER/24 dev i5
LINES
  echo "$1" > "/tmp/name-$1"
  serve "$1" TCP4-LISTEN:80,fork,reuseaddr "OPEN:/tmp/name-$1,rdonly"
  serve "$1" TCP4-LISTEN:7000,fork,reuseaddr OPEN:/tmp/blob,rdonly
}

serve() { $IP netns exec "$1" socat -U "$2" "$3" > "/tmp/socat-$1" 2>&1 & }

# Which tenant answers at an address through a device of c, if one does.
answerer() { timeout 9 $IP netns exec c socat -u "TCP4:$2:80,connect-timeout=3,so-bindtodevice=$1" - 2> /dev/null; }

# A file of many segments arrives whole.
file() { timeout 40 $IP netns exec c socat -u "TCP4:$2:7000,connect-timeout=3,so-bindtodevice=$1" - | cmp - /tmp/blob; }

says() { # NAME EXPECTED COMMAND...
  local name=$1 expected=$2 seen; shift 2
  seen=$("$@" 2>&1)
  if [ "$seen" = "$expected" ]; then echo "CASE $name=ok"; else echo "CASE $name=$seen"; fi
}

head -c 300000 /dev/urandom > /tmp/blob
tenant a; tenant b; host c
# Two tags are eight bytes more than a frame of the tenants' MTU, and the kernel allows for one.
$IP link set up-c mtu 1504
$IP -n c -b - << LINES
link set eth0 mtu 1504
link set eth0 up
addr add 10.9.0.3/24 dev eth0
link add link eth0 name t100 type vlan id 100
link add link eth0 name t200 type vlan proto 802.1ad id 200
link set t100 up
link set t200 up
addr add 10.8.0.1/24 dev t100
addr add 10.8.0.2/24 dev t200
link add link t200 name i5 type vlan id 5
link set i5 up
addr add 10.7.0.1/24 dev i5
LINES
crosspoint run --config /switch/bridges.toml > /tmp/switch.log 2>&1 &
until crosspoint show ports 2> /dev/null | grep -c ' up ' | grep -q 3; do sleep 0.1; done

says by_802.1Q a answerer t100 $ADDRESS
says by_802.1ad b answerer t200 $ADDRESS
says by_a_tag_behind_802.1ad b answerer i5 $INNER
says not_without_a_tag '' answerer eth0 $ADDRESS
for way in t100:$ADDRESS t200:$ADDRESS i5:$INNER; do says "file_through_${way%:*}" '' file "${way%:*}" "${way#*:}"; done
says each_bridge_has_the_address 2 sh -c "crosspoint show fdb $MAC | grep -o 'tenant-[ab]' | sort -u | wc -l"
crosspoint show bridges | sed 's/^/SHOWN /'
# The tenants change places while the switch runs.
for change in 'b bridge=default' 'a bridge=tenant-b' 'b bridge=tenant-a'; do
  crosspoint port set $change 2>&1 | sed 's/^/SHOWN /'
done
$IP -n c neigh flush all
says changed_by_802.1Q b answerer t100 $ADDRESS
says changed_by_802.1ad a answerer t200 $ADDRESS
crosspoint trace c --frame "${MAC%%:*}5400080001020000000003$(printf '88a800c8')88b7$(printf '%092d' 0)" | sed 's/^/SHOWN /'
crosspoint show drops | sed 's/^/SHOWN /'
wget -q -O /tmp/metrics http://127.0.0.1:9477/metrics
