#!/bin/sh
# Two hosts of one kernel, namespaces a and b, with a switch between their wires: every kind of packet in a packet. Runs in
# the guest of qemu-switch.sh --lab, as /switch/tunnels.sh; tunnels.rs reads its output:
#
#   CASE name=ok                 ping, a file by TCP and a datagram crossed, both ways
#   CASE name=not run: WHY       this kernel, or this ip, has no such device
#   CASE name=WHAT failed
#   COUNTER namespace name value for each of the kernel's counters of wrong checksums that is not zero
#   SETTING when words           ethtool's output for a's wire: before the switch, while it runs, after it
# shellcheck disable=SC3043,SC2086 # the shell is busybox; words are meant
set -u
# The host's ip: busybox's own comes first, whatever PATH is, and does not support namespaces.
IP=/switch/ip
PORT=7000 SCTP_PORT=7001 FEATURES='tx-checksum-sctp|tx-vlan-offload|tx-tcp-segmentation'

settings() { $IP netns exec a ethtool -k eth0 | grep -E "^[[:space:]]*($FEATURES):" | tr -s '\n\t ' ' ' | sed "s/^/SETTING $1 /"; echo; }

host() { # NAME NUMBER
  $IP netns add "$1"
  $IP link add "up-$1" type veth peer name eth0 netns "$1"
  echo 1 > "/proc/sys/net/ipv6/conf/up-$1/disable_ipv6"
  $IP link set "up-$1" up
  $IP -n "$1" -b - << LINES
link set lo up
link set eth0 up
addr add 10.9.0.$2/24 dev eth0
addr add fd00::$2/64 dev eth0 nodad
LINES
  $IP netns exec "$1" sh -c 'echo 1000 > /proc/sys/net/mpls/platform_labels; echo 1 > /proc/sys/net/mpls/conf/eth0/input' 2> /dev/null
  serve "$1" "UDP6-RECVFROM:$PORT,ipv6only=0,fork" PIPE
  serve "$1" "TCP6-LISTEN:$PORT,ipv6only=0,fork,reuseaddr" OPEN:/tmp/blob,rdonly
  serve "$1" "SCTP4-LISTEN:$SCTP_PORT,fork,reuseaddr" OPEN:/tmp/blob,rdonly
}

serve() { $IP netns exec "$1" socat "$2" "$3" > "/tmp/socat-$1-${2%%:*}" 2>&1 & }

# reach NAMESPACE ADDRESS KIND...: prints what did not get across.
reach() {
  local in="$IP netns exec $1" to=$2 kind at; shift 2
  case $to in *:*) at="6:[$to]" ;; *) at=4:$to ;; esac
  for kind in "$@"; do
    case $kind in
      ping) $in ping -c 1 -W 5 "$to" > /dev/null || echo "ping to $to failed" ;;
      tcp) timeout 20 $in socat -u "TCP$at:$PORT,connect-timeout=5" - | cmp -s - /tmp/blob || echo "TCP from $to failed" ;;
      sctp) timeout 20 $in socat -u "SCTP$at:$SCTP_PORT,connect-timeout=5" - 2>&1 | cmp - /tmp/blob 2>&1 || echo "SCTP from $to failed" ;;
      udp) [ "$(echo "a datagram" | timeout 9 $in socat -t 5 - "UDP$at:$PORT,readbytes=11,shut-none" 2> /dev/null)" = "a datagram" ] || echo "UDP to $to failed" ;;
    esac
  done
}

# verdict NAME NET: tests the existing addresses of this net.
verdict() {
  local bad
  bad=$({
    for way in a:2 b:1; do
      [ -z "$V4" ] || reach ${way%:*} "10.$2.0.${way#*:}" ping tcp udp &
      [ -z "$V6" ] || reach ${way%:*} "fd01:$2::${way#*:}" ping tcp udp &
    done
    wait
  } | tr '\n' ' ')
  echo "CASE $1=${bad:-ok}"
}

NET=20
# tunnel NAME INNER-FAMILIES LINK: LINK is the rest of "ip link add t" after the name; L and R are the numbers of the two
# ends.
tunnel() {
  local name=$1 number end why='' V4='' V6=''
  case $2 in *4*) V4=1 ;; esac
  case $2 in *6*) V6=1 ;; esac
  NET=$((NET + 1))
  for end in a:1:2 b:2:1; do
    number=${end#*:}; number=${number%:*}
    why=$($IP -n "${end%%:*}" -b - 2>&1 << LINES
link add t$NET $(echo "$3" | sed "s/\bL\b/$number/g; s/\bR\b/${end##*:}/g")
link set t$NET up
${V4:+addr add 10.$NET.0.$number/24 dev t$NET}
${V6:+addr add fd01:$NET::$number/64 dev t$NET nodad}
LINES
    ) || { echo "CASE $name=not run: $(echo $why | head -c 100)"; return; }
  done
  verdict "$name" $NET
  for end in a b; do $IP -n $end link del t$NET; done
}

foreign() { for end in a b; do $IP -n $end fou add "$@" 2> /dev/null; done; }

# Labels 101 and 102 identify the ends.
mpls() {
  local V4=1 V6=1 end in number other
  NET=$((NET + 1))
  for end in a:1:2 b:2:1; do
    in=${end%%:*} other=${end##*:} number=${end#*:}; number=${number%:*}
    why=$({ $IP -n $in -b - << LINES
addr add 10.$NET.0.$number/32 dev lo
addr add fd01:$NET::$number/128 dev lo nodad
route add 10.$NET.0.$other/32 encap mpls 10$other via 10.9.0.$other dev eth0 src 10.$NET.0.$number
route add fd01:$NET::$other/128 encap mpls 10$other via fd00::$other dev eth0 src fd01:$NET::$number
LINES
    $IP -n $in -f mpls route add 10$number dev lo; } 2>&1) || { echo "CASE mpls=not run: $(echo $why | head -c 100)"; return; }
  done
  verdict mpls $NET
}

all() {
  tunnel vlan-8021q 46 'link eth0 type vlan proto 802.1Q id 7'
  tunnel vlan-8021ad 46 'link eth0 type vlan proto 802.1ad id 7'
  tunnel vxlan 46 'type vxlan id 1 remote 10.9.0.R dstport 4789'
  tunnel vxlan-csum 46 'type vxlan id 2 remote 10.9.0.R dstport 4790 udpcsum'
  tunnel vxlan-remote-csum 4 'type vxlan id 3 remote 10.9.0.R dstport 4791 udpcsum remcsumtx remcsumrx'
  tunnel geneve 46 'type geneve id 1 remote 10.9.0.R noudpcsum'
  tunnel geneve-csum 46 'type geneve id 2 remote 10.9.0.R dstport 7081 udpcsum'
  tunnel geneve-over-6 46 'type geneve id 3 remote fd00::R dstport 7082'
  tunnel gre 46 'type gre local 10.9.0.L remote 10.9.0.R ttl 64'
  tunnel gre-key-csum 46 'type gre local 10.9.0.L remote 10.9.0.R ttl 64 key 5 csum'
  tunnel gre-seq 4 'type gre local 10.9.0.L remote 10.9.0.R ttl 64 key 6 seq'
  tunnel gretap 46 'type gretap local 10.9.0.L remote 10.9.0.R'
  tunnel gretap-key-csum 46 'type gretap local 10.9.0.L remote 10.9.0.R key 7 csum'
  tunnel erspan-1 4 'type erspan local 10.9.0.L remote 10.9.0.R erspan_ver 0'
  tunnel erspan-2 4 'type erspan local 10.9.0.L remote 10.9.0.R seq key 9 erspan_ver 1 erspan 1'
  tunnel erspan-3 4 'type erspan local 10.9.0.L remote 10.9.0.R seq key 10 erspan_ver 2 erspan_dir ingress erspan_hwid 1'
  tunnel ip6gre 46 'type ip6gre local fd00::L remote fd00::R'
  tunnel ip6gre-key-csum 46 'type ip6gre local fd00::L remote fd00::R key 5 csum'
  tunnel ip6gretap-csum 46 'type ip6gretap local fd00::L remote fd00::R key 6 csum'
  tunnel ip6erspan-2 4 'type ip6erspan local fd00::L remote fd00::R seq key 11 erspan_ver 1 erspan 1'
  tunnel ipip 4 'type ipip local 10.9.0.L remote 10.9.0.R ttl 64'
  tunnel sit 6 'type sit local 10.9.0.L remote 10.9.0.R ttl 64'
  tunnel ip6tnl 46 'type ip6tnl mode any local fd00::L remote fd00::R'
  tunnel ip6tnl-no-limit 46 'type ip6tnl mode any encaplimit none local fd00::L remote fd00::R'
  foreign port 5551 ipproto 4; foreign port 5552 ipproto 47; foreign port 5553 gue; foreign port 5554 ipproto 41
  foreign port 5555 gue -6
  tunnel fou-ipip 4 'type ipip local 10.9.0.L remote 10.9.0.R ttl 64 encap fou encap-sport auto encap-dport 5551'
  tunnel fou-ipip-csum 4 'type ipip local 10.9.0.L remote 10.9.0.R ttl 64 encap fou encap-sport auto encap-dport 5551 encap-csum'
  tunnel fou-gre-csum 46 'type gre local 10.9.0.L remote 10.9.0.R ttl 64 csum encap fou encap-sport auto encap-dport 5552 encap-csum'
  tunnel fou-sit 6 'type sit local 10.9.0.L remote 10.9.0.R ttl 64 encap fou encap-sport auto encap-dport 5554 encap-csum'
  tunnel gue-ipip 4 'type ipip local 10.9.0.L remote 10.9.0.R ttl 64 encap gue encap-sport auto encap-dport 5553'
  tunnel gue-gre-csum 46 'type gre local 10.9.0.L remote 10.9.0.R ttl 64 encap gue encap-sport auto encap-dport 5553 encap-csum'
  tunnel gue-ipip-remote-csum 4 'type ipip local 10.9.0.L remote 10.9.0.R ttl 64 encap gue encap-sport auto encap-dport 5553 encap-csum encap-remcsum'
  tunnel gue-ip6tnl 46 'type ip6tnl mode any local fd00::L remote fd00::R encap gue encap-sport auto encap-dport 5555 encap-csum'
  tunnel bareudp 4 'type bareudp dstport 6635 ethertype ip'
  mpls
  local bad
  bad=$(for way in a:2 b:1; do reach ${way%:*} 10.9.0.${way#*:} sctp; done | tr '\n' ' ')
  echo "CASE sctp=${bad:-ok}"
}

counters() {
  for in in a b; do
    $IP netns exec $in cat /proc/net/snmp | awk -v n=$in '{ if ($1 == p) for (i = 2; i <= NF; i++) if (h[i] ~ /CsumErrors/ && $i != 0) print "COUNTER", n, $1 h[i], $i; p = $1; split($0, h) }'
    $IP netns exec $in cat /proc/net/snmp6 | awk -v n=$in '$1 ~ /CsumErrors/ && $2 != 0 { print "COUNTER", n, $1, $2 }'
    $IP netns exec $in cat /proc/net/sctp/snmp 2> /dev/null | awk -v n=$in '$1 == "SctpChecksumErrors" && $2 != 0 { print "COUNTER", n, $1, $2 }'
  done
}

head -c 150000 /dev/urandom > /tmp/blob
host a 1
host b 2
settings before
crosspoint run --config /switch/tunnels.toml > /tmp/switch.log 2>&1 &
switch=$!
until grep -q ready /tmp/switch.log; do kill -0 $switch || { cat /tmp/switch.log; exit 1; }; sleep 0.1; done
until crosspoint show ports | grep -c ' up ' | grep -q 2; do sleep 0.1; done
settings during
all
counters
sleep 0.3
wget -qO- http://127.0.0.1:9477/metrics > /tmp/metrics
grep '^crosspoint_drops_total' /tmp/metrics | grep -v ' 0$'
kill $switch
wait $switch
settings after
