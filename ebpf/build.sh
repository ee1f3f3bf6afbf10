#!/bin/sh
# Builds the XDP program. Usage: build.sh [OUTPUT], by default the committed object beside this script.
#
# Needs clang, and llvm for llvm-strip (Debian and Ubuntu: apt install clang llvm). CLANG and LLVM_STRIP name others.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/crosspoint_xdp.bpf.o}
case $out in /*) ;; *) out=$PWD/$out ;; esac
clang=${CLANG:-clang}
strip=${LLVM_STRIP:-llvm-strip}

for tool in "$clang clang" "$strip llvm"; do
    if ! command -v "${tool% *}" >/dev/null; then
        echo "${tool% *} is not installed: apt install ${tool#* }" >&2
        exit 127
    fi
done

# The same bytes from every checkout: the source is named relative to src/, and -fdebug-compilation-dir hides where that
# is. -mcpu is named because its default moves between clang releases.
cd "$here/src"
"$clang" --target=bpfel -mcpu=v2 -O2 -g -std=gnu11 -Wall -Wextra -Werror \
    -fdebug-compilation-dir=. -ffile-prefix-map="$here"=. \
    -c bpf/crosspoint_xdp.bpf.c -o "$out"

# DWARF goes, BTF stays: loaders read only the latter.
"$strip" -g "$out"
