#!/bin/sh
# Builds the attacker: build.sh OUTPUT. CC names another compiler.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here"
exec "${CC:-cc}" -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -o "$1" \
    attacker.c attacks.c calls.c frames.c frontend.c memory.c port.c ring.c
