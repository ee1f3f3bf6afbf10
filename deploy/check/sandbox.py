#!/usr/bin/env python3
"""sandbox.py UNIT TRACE: whether UNIT lets the daemon do what it did in TRACE (strace -f): system calls, and families of its sockets."""

import pathlib
import re
import subprocess
import sys


def sets():
    """systemd's sets of system calls: @name -> members, some of which are sets."""
    found, name = {}, None
    for line in subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True).stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            found[name] = set()
        elif line.startswith("  ") and name and not line.strip().startswith("#"):
            found[name].add(line.strip())
        elif line.startswith("#"):
            name = None
    return found


def expanded(words, known):
    return set().union(*(expanded(known[word], known) if word.startswith("@") else {word} for word in words))


def main():
    unit, trace = (pathlib.Path(path).read_text() for path in sys.argv[1:])
    known, allowed = sets(), set(sets()["@default"])
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE):
        if line.startswith("~"):
            allowed -= expanded(line[1:].split(), known)
        else:
            allowed |= expanded(line.split(), known)
    families = set(re.search(r"^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)[1].split())
    # The first call is strace's own, which becomes the daemon.
    called = set(re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE)) - {"execve"}
    opened = {{"0x2c": "AF_XDP"}.get(one, one) for one in re.findall(r"\bsocket\((\w+)", trace)}
    if "AF_XDP" not in opened or len(called) < 30:
        sys.exit(f"error: the trace is not of a daemon with an uplink: {sorted(opened)}, {len(called)} system calls")
    refused = sorted(called - allowed) + sorted(opened - families)
    if refused:
        sys.exit(f"error: the unit refuses what the daemon does: {', '.join(refused)}")
    print(f"{len(called)} system calls and {len(opened)} address families: all are allowed")


main()
