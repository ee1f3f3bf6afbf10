#!/bin/sh
# The two ends of the network check, one text for all: a guest's init runs it, and peer-service.sh runs it in a network namespace.
# POSIX shell plus busybox applets (found through PATH), iperf3; echo and datagrams: socat.
#
#   net-job.sh server                 iperf3 on its usual port, and the checksum services on TCP 5001 and 5002; until killed
#   net-job.sh client PEER            ping, iperf3 both ways, checksummed transfer both ways
#   net-job.sh transfer PEER          the same without iperf3
#   net-job.sh ping|sha|fetch|udp PEER   one part of it
#   net-job.sh echo                   UDP port 5003 sends every datagram back; until killed
#   net-job.sh datagrams PEER         UDP datagrams of many sizes to that port and back
#   net-job.sh churn PEER             a guest's driver does what drivers may, under load: other numbers of queues, unbound and bound
#                                     again, unloaded and loaded again, and a reboot in the end
# Several peers, with commas, take their turns; a line "PEER ADDRESS" goes before each.
#
# The checksum services: to 5001 the client sends the length in bytes as a decimal line, then that many bytes; the service answers
# with the SHA-256 of what it got, in hexadecimal, as one line. The length goes first so that no side depends on a half-closed
# connection. To 5002 it sends the length alone; the answer is the line with the SHA-256, and then the bytes.
#
# Environment: SECS (each iperf3 run), STREAMS, BLOB_MIB, WAIT_S (for the first ping reply).
# Every step has a time limit: a broken network ends in "RESULT name=fail", never in silence. Results start with "RESULT ".
set -u

SECS=${SECS:-3} STREAMS=${STREAMS:-1} BLOB_MIB=${BLOB_MIB:-40} WAIT_S=${WAIT_S:-30}
SHA_PORT=5001 FETCH_PORT=5002 ECHO_PORT=5003
self=$0
failed=0

result() { # NAME VALUE
  echo "RESULT $1=$2"
  case $2 in fail | bad) failed=1 ;; esac
}

sha_answer() { # one connection: standard input and output are the socket
  IFS= read -r bytes || exit 1
  case $bytes in '' | *[!0-9]*) exit 1 ;; esac
  timeout 300 head -c "$bytes" | sha256sum | cut -d' ' -f1
}

fetch_answer() { # as sha_answer, the other way
  IFS= read -r bytes || exit 1
  case $bytes in '' | *[!0-9]*) exit 1 ;; esac
  blob=$(mktemp /tmp/cp-blob.XXXXXX)
  head -c "$bytes" /dev/urandom > "$blob"
  sha256sum < "$blob" | cut -d' ' -f1
  timeout 300 cat "$blob"
  rm -f "$blob"
}

server() {
  # nc wants a program without arguments, so the environment says what this script is to do when nc starts it.
  CP_ANSWER=sha nc -ll -p "$SHA_PORT" -e "$self" &
  nc_pid=$!
  CP_ANSWER=fetch nc -ll -p "$FETCH_PORT" -e "$self" &
  fetch_pid=$!
  # A client that vanished in the middle of a test must not keep iperf3 busy; and iperf3 that gave up is started again.
  (trap 'kill $iperf_pid 2>/dev/null; exit' TERM INT
    while :; do iperf3 -s --rcv-timeout 10000 >/dev/null & iperf_pid=$!; wait $iperf_pid; sleep 0.2; done) &
  loop_pid=$!
  trap 'kill $nc_pid $fetch_pid $loop_pid 2>/dev/null; exit 0' TERM INT HUP
  # Ready means that all ports listen.
  tries=0
  until listening "$SHA_PORT" && listening "$FETCH_PORT" && listening 5201; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || { echo "RESULT server=fail"; kill $nc_pid $fetch_pid $loop_pid; exit 1; }
    sleep 0.1
  done
  echo "GUEST-READY"
  wait
}

listening() { # PORT: the kernel's own table, state 0A; both address families
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ":$(printf %04X "$1") 0*:0000 0A"
}

reach() { # PEER: wait for the first reply
  deadline=$(($(date +%s) + WAIT_S))
  while [ "$(date +%s)" -lt "$deadline" ]; do
    timeout 2 ping -c 1 -W 1 "$1" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  return 1
}

ping_check() { # PEER: small and full-size packets, of which none may get lost
  if ! reach "$1"; then result ping fail; return 1; fi
  echo "REACHED-AT $(cut -d' ' -f1 /proc/uptime)"
  out=$(timeout 20 ping -c 10 -i 0.02 "$1")
  big=$(timeout 20 ping -c 3 -i 0.02 -s 1400 "$1")
  echo "$out" | sed -n 's,^.*min/avg/max[^=]*= \([0-9.]*\)/\([0-9.]*\)/.*,RESULT ping_rtt_avg_ms=\2,p'
  case "$out$big" in *" 0% packet loss"*" 0% packet loss"*) result ping ok ;; *) result ping fail; echo "$out"; echo "$big" ;; esac
}

iperf3_run() { # NAME PEER ARGS...: the receiver's rate is what arrived; a run that ended early has failed, whatever it carried until then
  name=$1 peer=$2; shift 2
  # A server that has just ended a test refuses the next for a moment: that is no fault of the network, so try again.
  for _ in 1 2 3; do
    status=0
    out=$(timeout $((SECS + 15)) iperf3 -c "$peer" -t "$SECS" -P "$STREAMS" -f m --connect-timeout 5000 "$@" 2>&1) || status=$?
    case $out in *'unable to connect'* | *'server is busy'* | *'unable to receive control message'*) sleep 1 ;; *) break ;; esac
  done
  mbps=$(echo "$out" | awk '/receiver/ { for (i = 2; i <= NF; i++) if ($i == "Mbits/sec") rate = $(i - 1) } END { print rate }')
  retransmits=$(echo "$out" | awk '/sender/ { for (i = 2; i < NF; i++) if ($i == "Mbits/sec") r = $(i + 1) } END { print r }')
  case $status:$mbps in
    0:[1-9]* | 0:0.[1-9]*) result "$name" "$mbps" ;;
    *) result "$name" fail; echo "$out" | tail -n 3; return ;;
  esac
  case $retransmits in '' | *[!0-9]*) ;; *) result "${name%_mbps}_retransmits" "$retransmits" ;; esac
}

iperf3_check() { iperf3_run iperf3_mbps "$1"; iperf3_run iperf3_reverse_mbps "$1" -R; }

udp_check() { iperf3_run udp_64_mbps "$1" -u -b 0 -l 64; iperf3_run udp_1400_mbps "$1" -u -b 0 -l 1400; }

sha_check() { # PEER
  blob=$(mktemp /tmp/cp-blob.XXXXXX)
  head -c $((BLOB_MIB * 1048576)) /dev/urandom > "$blob"
  mine=$(sha256sum < "$blob" | cut -d' ' -f1)
  theirs=$({ echo $((BLOB_MIB * 1048576)); cat "$blob"; } | timeout 120 nc -w 30 "$1" "$SHA_PORT" | head -n 1)
  rm -f "$blob"
  if [ -z "$theirs" ]; then result sha fail
  elif [ "$mine" = "$theirs" ]; then result sha ok
  else echo "SHA sent=$mine received=$theirs"; result sha bad; fi
}

fetch_check() { # PEER: sha_check the other way
  sums=$(echo $((BLOB_MIB * 1048576)) | timeout 120 nc -w 30 "$1" "$FETCH_PORT" | { IFS= read -r theirs; echo "$theirs $(sha256sum | cut -d' ' -f1)"; })
  if [ -z "${sums%% *}" ]; then result fetch fail
  elif [ "${sums%% *}" = "${sums##* }" ]; then result fetch ok
  else echo "SHA sent=${sums%% *} received=${sums##* }"; result fetch bad; fi
}

echo_service() { socat -b 65536 "UDP4-RECVFROM:$ECHO_PORT,fork" PIPE; }

datagrams_check() { # PEER: one byte, what just fits a frame, and what takes fragments
  sent=$(mktemp /tmp/cp-sent.XXXXXX) got=$(mktemp /tmp/cp-got.XXXXXX)
  for size in 1 1472 8000 65000; do
    head -c $size /dev/urandom > "$sent"
    # A regular file is read in one go, and so sent in one datagram; enough bytes back end it.
    # A service that was not fast enough is asked again.
    for _ in 1 2 3; do
      socat -b 65536 -t 3 - "UDP4:$1:$ECHO_PORT,readbytes=$size" < "$sent" > "$got"
      [ ! -s "$got" ] || break
    done
    if cmp -s "$sent" "$got"; then result "datagram_$size" ok; else result "datagram_$size" fail; fi
  done
  rm -f "$sent" "$got"
}

both_sha_checks() { sha_check "$1"; fetch_check "$1"; }

client() { # PEER
  if ! ping_check "$1"; then
    for r in iperf3_mbps iperf3_reverse_mbps sha fetch; do result $r fail; done
    return
  fi
  iperf3_check "$1"
  both_sha_checks "$1"
}

transfer() { # PEER
  if ping_check "$1"; then both_sha_checks "$1"; else result sha fail; result fetch fail; fi
}

# churn PEER: through all of it TCP flows both ways over interface eth0, whose address and link come back when the driver does.
churn() {
  ping_check "$1"
  while :; do iperf3 -c "$1" -t 300 --bidir -P 2 --connect-timeout 5000; sleep 0.5; done > /dev/null 2>&1 &
  load=$!
  address=$(ip -o -4 addr show dev eth0 | awk '{ print $4; exit }')
  device=$(basename "$(readlink /sys/class/net/eth0/device)")
  all=$(ethtool -l eth0 2>/dev/null | awk '/^Combined/ { print $2; exit }')
  sleep 1
  case $all in
    '' | 1 | n/a) ;;
    *) for number in 1 "$all" 2 "$all"; do
        if ethtool -L eth0 combined "$number" && sleep 0.3 && reach "$1"; then result "queues_$number" ok; else result "queues_$number" fail; fi
      done ;;
  esac
  echo "$device" > /sys/bus/virtio/drivers/virtio_net/unbind
  if [ -e /sys/class/net/eth0 ]; then result unbind fail; else result unbind ok; fi
  echo "$device" > /sys/bus/virtio/drivers/virtio_net/bind
  back bind "$1"
  if [ -e /lib/modules/virtio_net.ko ]; then
    rmmod virtio_net && insmod /lib/modules/virtio_net.ko
    back reload "$1"
  fi
  both_sha_checks "$1"
  sleep 1
  kill -0 "$load" || result load fail
  echo "CHURN-DONE $failed"
  # The reboot finds the guest receiving at full rate, and not sending: a Linux that sends while it shuts its device down can spin for
  # ever (start_xmit: of a queue that is marked broken it gets no used buffer, and is told that there are some).
  kill "$load"; killall -q iperf3
  iperf3 -c "$1" -t 300 -u -b 0 -R --connect-timeout 5000 > /dev/null 2>&1 &
  sleep 1.5
  reboot -f
}

back() { # NAME PEER: the interface is there again
  tries=0
  until [ -e /sys/class/net/eth0 ]; do tries=$((tries + 1)); [ $tries -lt 50 ] || break; sleep 0.1; done
  ip link set eth0 up
  ip addr add "$address" dev eth0
  if reach "$2"; then result "$1" ok; else result "$1" fail; fi
  sleep 1
}

case ${CP_ANSWER:-} in sha) sha_answer; exit ;; fetch) fetch_answer; exit ;; esac
job=${1:-} peers=$(echo "${2:-}" | tr , ' ')
case $job in
  server) server ;;
  echo) echo_service ;;
  client | transfer | ping | sha | fetch | udp | datagrams | churn)
    for peer in $peers; do
      case $peers in *' '*) echo "PEER $peer" ;; esac
      case $job in
        client) client "$peer" ;;
        transfer) transfer "$peer" ;;
        ping) ping_check "$peer" ;;
        sha) reach "$peer"; sha_check "$peer" ;;
        fetch) reach "$peer"; fetch_check "$peer" ;;
        udp) reach "$peer"; udp_check "$peer" ;;
        datagrams) reach "$peer"; datagrams_check "$peer" ;;
        churn) churn "$peer" ;;
      esac
    done ;;
  *) echo "usage: net-job.sh server | echo | client|transfer|ping|sha|fetch|udp|datagrams|churn PEER[,PEER...]" >&2; exit 2 ;;
esac
case $job in server) ;; *) echo "CLIENT-DONE" ;; esac
exit $failed
