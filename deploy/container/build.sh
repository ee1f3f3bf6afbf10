#!/bin/bash
# build.sh BINARY TAG [OPTION...]: makes the image TAG of a static crosspoint (deploy/static.sh), with podman, buildah or
# docker, whichever is installed, or with BUILDER. OPTIONs are passed to it. Nothing is downloaded.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../lib.sh
. "$HERE/../lib.sh"

[ $# -ge 2 ] || die "usage: build.sh BINARY TAG [OPTION...]"
BINARY=$1 TAG=$2; shift 2
if readelf --program-headers "$BINARY" | grep -q INTERP; then die "$BINARY is not static, and the image has no libraries: deploy/static.sh"; fi
BUILDER=${BUILDER:-$(basename "$(command -v podman || command -v buildah || command -v docker || die "there is no podman, buildah or docker")")}
CONTEXT=$(mktemp -d)
trap 'rm -rf "$CONTEXT"' EXIT
install -m 755 -s "$BINARY" "$CONTEXT/crosspoint"
install -m 644 "$HERE/../debian/crosspoint.toml" "$CONTEXT/crosspoint.toml"
# The same input makes the same image, if the builder supports it.
[ "$BUILDER" = docker ] || set -- --timestamp "${SOURCE_DATE_EPOCH:-0}" --format docker "$@"
"$BUILDER" build --file "$HERE/Containerfile" --tag "$TAG" "$@" "$CONTEXT"
