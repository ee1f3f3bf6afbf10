#!/bin/bash
# container.sh BINARY: makes the image (../container) of the static BINARY with buildah, in a temporary store, and runs the
# image's command as the recipe says: with the host's network (here a private namespace), the four capabilities, and the
# host's /run/crosspoint. As root; nothing is downloaded.
set -euo pipefail
BINARY=$(realpath "$1") HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Network and mounts end with the process.
if [ -z "${CROSSPOINT_CONTAINER_INSIDE:-}" ]; then
  CROSSPOINT_CONTAINER_INSIDE=1 exec unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private -- "$0" "$BINARY"
fi

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
ip link set lo up
cat > "$WORK/buildah" <<BUILDAH
#!/bin/sh
command=\$1; shift
exec buildah --root $WORK/store --runroot $WORK/run --storage-driver vfs \$command "\$@"
BUILDAH
chmod +x "$WORK/buildah"
buildah() { "$WORK/buildah" "$@"; }
mkdir "$WORK/sockets"

BUILDER=$WORK/buildah "$HERE/../container/build.sh" "$BINARY" crosspoint:check --isolation chroot > "$WORK/build" 2>&1 || { cat "$WORK/build"; exit 1; }
container=$(buildah from crosspoint:check)
inside() {
  buildah run --isolation chroot --cap-drop all --cap-add CAP_NET_ADMIN --cap-add CAP_NET_RAW --cap-add CAP_BPF --cap-add CAP_IPC_LOCK \
    --volume "$WORK/sockets:/run/crosspoint" "$container" -- "$@"
}
config() { buildah inspect --type image crosspoint:check | jq -r ".Docker.config.$1"; }

mapfile -t command < <(config 'Entrypoint[], .Docker.config.Cmd[]')
[ "${command[*]}" = '/usr/bin/crosspoint run --config /etc/crosspoint/crosspoint.toml' ] || { echo "it runs ${command[*]}"; exit 1; }
mapfile -t health < <(config 'Healthcheck.Test[1:][]')
inside /usr/bin/crosspoint check --config /etc/crosspoint/crosspoint.toml
inside "${command[@]}" > "$WORK/log" 2>&1 &
pid=$! tries=100
until inside "${health[@]}" > "$WORK/health" 2>&1; do
  tries=$((tries - 1))
  if [ "$tries" -eq 0 ] || ! kill -0 "$pid" 2> /dev/null; then cat "$WORK/log" "$WORK/health"; exit 1; fi
  sleep 0.1
done
# From the host, like the node's own tools.
"$BINARY" show --socket "$WORK/sockets/control.sock" workers > /dev/null
# Signals the daemon itself; in a container it is the first process, which the runtime signals.
kill -"$(config StopSignal)" "$(pgrep -x crosspoint | head -n 1)"
wait "$pid"
[ ! -e "$WORK/sockets/control.sock" ] || { echo "it leaves its socket behind"; exit 1; }
echo "$(du -sm "$WORK/store/vfs/dir" | cut -f 1) MiB is the size of the whole image"
