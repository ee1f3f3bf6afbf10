#!/bin/sh
# Builds the eBPF programs. Usage: build.sh [OUTPUT [NAME]]. Without OUTPUT: the committed objects in this folder;
# with it: one object from src/bpf/NAME.bpf.c, by default crosspoint_xdp.
#
# Needs clang, and llvm for llvm-strip (Debian and Ubuntu: apt install clang llvm). CLANG and LLVM_STRIP select other programs.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
clang=${CLANG:-clang}
strip=${LLVM_STRIP:-llvm-strip}

for tool in "$clang clang" "$strip llvm"; do
    if ! command -v "${tool% *}" >/dev/null; then
        echo "${tool% *} is not installed: apt install ${tool#* }" >&2
        exit 127
    fi
done

# build NAME OUTPUT. The output is identical from every checkout: the source is named relative to src/, and
# -fdebug-compilation-dir hides where that is. -mcpu is named because its default moves between clang releases.
build() {
    (
        cd "$here/src"
        "$clang" --target=bpfel -mcpu=v2 -O2 -g -std=gnu11 -Wall -Wextra -Werror \
            -fdebug-compilation-dir=. -ffile-prefix-map="$here"=. \
            -c "bpf/$1.bpf.c" -o "$2"
    )
    # Removes DWARF and keeps BTF: loaders read only BTF.
    "$strip" -g "$2"
}

if [ $# -eq 0 ]; then
    for name in crosspoint_xdp crosspoint_traffic; do build "$name" "$here/$name.bpf.o"; done
else
    case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
    build "${2:-crosspoint_xdp}" "$out"
fi
