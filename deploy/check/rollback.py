#!/usr/bin/env python3
"""rollback.py CROSSPOINT: whether a version reads the configuration that it writes itself, and refuses by name each key that it does not know.

The second is what an older version reports after a roll-back, about keys that came later. Every table of every file gets such a key in turn: in the
main file, a file that `port add --keep` wrote, and the reference configuration with all keys.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
FUTURE = "of_a_later_version"
# Keys of all kinds: numbers, texts, lists, tables.
KEYS = """type=vhost queue_pairs=2 socket_mode=0660 mac_limit=7 weight=3 mtu=9000 required=false vlan.trunk=[100,200] vlan.native=10
storm.broadcast=1000 offloads.receive=false slo.completion_p99=20us loop_protect.action=report addresses.mac=["52:54:00:00:01:01"]""".split()


def run(program, *words, wrong=False):
    said = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    if (said.returncode != 0) != wrong:
        sys.exit(f"error: {' '.join(map(str, words))} ends with {said.returncode}:\n{said.stdout}{said.stderr}")
    return said.stdout + said.stderr


def keep_a_port(program, folder, config):
    """Has a daemon write the file of a port."""
    socket = folder / "control.sock"
    daemon = subprocess.Popen([program, "run", "--config", config], stderr=(folder / "log").open("w"))
    try:
        end = time.monotonic() + 20
        while subprocess.run([program, "health", "--socket", socket], capture_output=True, check=False).returncode != 0:
            if time.monotonic() > end or daemon.poll() is not None:
                sys.exit((folder / "log").read_text())
            time.sleep(0.1)
        run(program, "port", "add", "web-1", f"socket={folder}/web-1.sock", *KEYS, "--keep", "--socket", socket)
        # A reload takes the file as it was written: nothing is different.
        said = run(program, "plan", "--socket", socket)
        if "web-1" in said:
            sys.exit(f"error: what was written is not what was meant:\n{said}")
    finally:
        daemon.terminate()
        daemon.wait(20)


def with_future(text):
    """The text with a key of a later version, in each of its tables; and the table's name."""
    lines = text.splitlines()
    headers = [-1] + [n for n, line in enumerate(lines) if re.match(r"\[", line)]
    for at in headers:
        yield (lines[at] if at >= 0 else "the top"), "\n".join([*lines[: at + 1], f"{FUTURE} = true", *lines[at + 1 :]]) + "\n"
    for n, line in enumerate(lines):
        if re.match(r"[a-z_]+ = \{ ?\w", line):
            yield line, "\n".join([*lines[:n], re.sub(r"\{ ?", f"{{ {FUTURE} = true, ", line, count=1), *lines[n + 1 :]]) + "\n"


def check_file(program, config, path):
    """Each unknown key in a file is refused with its name and the file's."""
    text = path.read_text()
    tried = 0
    for where, changed in with_future(text):
        path.write_text(changed)
        said = run(program, "check", "--config", config, wrong=True)
        if f"unknown key `{FUTURE}`" not in said or path.name not in said:
            sys.exit(f"error: {path.name}, {where}: the key is not named:\n{said}")
        tried += 1
    path.write_text(text)
    run(program, "check", "--config", config)
    return tried


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "ports.d").mkdir()
        config = folder / "crosspoint.toml"
        config.write_text(f"""version = 1
ports_dir = "{folder}/ports.d"
[workers]
cores = "auto"
[metrics]
listen = "off"
[control]
socket = "{folder}/control.sock"
[log]
level = "info"
""")
        keep_a_port(program, folder, config)
        kept = list((folder / "ports.d").glob("*.toml"))
        tried = sum(check_file(program, config, path) for path in [config, *kept])
        if len(kept) != 1 or "trunk" not in kept[0].read_text():
            sys.exit(f"error: one file was to be kept, not {kept}")
        # It names a folder ports.d beside it.
        (folder / "reference/ports.d").mkdir(parents=True)
        reference = folder / "reference/reference.toml"
        reference.write_text((REPO / "configs/reference.toml").read_text())
        tried += check_file(program, reference, reference)
        # A version of the format that does not exist yet.
        config.write_text(config.read_text().replace("version = 1", "version = 2"))
        if "version" not in run(program, "check", "--config", config, wrong=True):
            sys.exit("error: version 2 is not named")
    print(f"{tried} unknown keys are refused by name")


main()
