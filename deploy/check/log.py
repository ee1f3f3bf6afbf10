#!/usr/bin/env python3
"""log.py CROSSPOINT: whether the lines of a daemon's log are what ../log-schema.json describes, one line an event; run it in a network namespace.

A daemon with all its levels has ports added, moved and removed, files with mistakes, a front end that breaks the protocol over and over, and a capture.
Every key is in the schema, also those that only the source has. The same events as text are a line each, too, and pass through syslog's logger(1).
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import jsonschema

REPO = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((REPO / "deploy/log-schema.json").read_text())
MACRO = re.compile(r"\b(?:error|warn|info|debug|trace)!\(")
TEXT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +(ERROR|WARN|INFO|DEBUG|TRACE) \S")
# Keys that every event has.
ALWAYS = {"timestamp", "level", "message", "target"}


def in_source():
    """The keys that the daemon's code gives to events: the words before the message, up to its opening quote."""
    keys = set()
    for path in (REPO / "switch").glob("**/src/**/*.rs"):
        text = path.read_text()
        for call in MACRO.finditer(text):
            head = text[call.end() :].split(";", 1)[0]
            head = re.sub(r"^\s*target: \w+,", "", head).split('"', 1)[0]
            keys |= set(re.findall(r"(?:^|,)\s*[%?]?([a-z_]+)\s*(?==[^=]|,)", head))
    return keys


def run(program, folder, wrong, *words):
    said = subprocess.run([program, *words, "--socket", folder / "control.sock"], capture_output=True, text=True, check=False)
    if (said.returncode != 0) != wrong:
        sys.exit(f"error: {' '.join(words)} ends with {said.returncode}: {said.stderr}")


def until(what, condition):
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"error: not so: {what}")
        time.sleep(0.05)


def disturb(program, folder, log):
    """Makes events of many kinds."""
    run(program, folder, False, "port", "add", "x", "type=vhost", f"socket={folder}/x.sock")
    run(program, folder, False, "capture", "web-1", "udp port 53", "--duration", "100ms")
    run(program, folder, True, "move", "x", "0", "0")
    (folder / "ports.d/bad.toml").write_text('[[port]]\nname = "a\\nb"\nnonsense\n')
    run(program, folder, True, "reload")
    for _ in range(30):
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(folder / "web-1.sock"))
            front_end.send(b"x" * 40)
            # The daemon closes it, with our bytes unread.
            with contextlib.suppress(ConnectionResetError):
                front_end.recv(64)
    (folder / "ports.d/bad.toml").unlink()
    run(program, folder, False, "reload")
    run(program, folder, False, "port", "remove", "x")
    until("the front end is logged", lambda: "front end" in log.read_text())


def lines_of(program, form):
    with tempfile.TemporaryDirectory() as name:
        folder, log = pathlib.Path(name), pathlib.Path(name) / "log"
        (folder / "ports.d").mkdir()
        (folder / "crosspoint.toml").write_text(f"""version = 1
ports_dir = "{folder}/ports.d"
watch_ports = true
[metrics]
listen = "192.0.2.1:9477"
[control]
socket = "{folder}/control.sock"
[log]
format = "{form}"
target = "stderr"
[[port]]
name = "web-1"
type = "vhost"
socket = "{folder}/web-1.sock"
[[port]]
name = "away"
type = "xdp"
interface = "missing0"
""")
        with log.open("w") as file:
            daemon = subprocess.Popen([program, "run", "--config", folder / "crosspoint.toml"], stderr=file, env={**os.environ, "CROSSPOINT_LOG": "crosspoint=trace,info"})
        try:
            until("it listens", lambda: (folder / "control.sock").exists() and (folder / "web-1.sock").exists() and "ready" in log.read_text())
            disturb(program, folder, log)
        finally:
            daemon.terminate()
            daemon.wait(20)
        text = log.read_text()
    if not text.endswith("\n"):
        sys.exit("error: the last line is not whole")
    return text.splitlines()


def wrong_lines(lines):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            yield f"no JSON: {line}"
            continue
        yield from (f"{error.json_path}: {error.message}: {line}" for error in validator.iter_errors(event))
        for key in event.keys() - SCHEMA["properties"].keys():
            yield f"the schema does not have {key}: {line}"


def wrong_keys(lines):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    source = in_source()
    for key in sorted(source - SCHEMA["properties"].keys()):
        yield f"the schema does not have {key}, which the source has"
    for key in sorted(SCHEMA["properties"].keys() - source - ALWAYS):
        yield f"no event of the source has {key}"
    seen = set().union(*map(json.loads, lines))
    for key in sorted((ALWAYS | {"port", "pid", "uid", "queue", "worker", "error", "filter", "captured", "suppressed"}) - seen):
        yield f"no line has {key}: {len(lines)} lines were read"


def wrong_in_syslog(lines):
    """What logger(1) sends to syslog: a datagram for each line, with the whole JSON behind the tag."""
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(f"{name}/log")
        syslog.settimeout(5)
        logger = subprocess.Popen(["logger", "--socket", f"{name}/log", "--tag", "crosspoint", "--size", "8KiB"], stdin=subprocess.PIPE, text=True)
        # The kernel holds only a few datagrams.
        writer = threading.Thread(target=lambda: logger.communicate("".join(line + "\n" for line in lines)))
        writer.start()
        sent = [syslog.recv(65536).decode().rstrip("\0").partition("crosspoint: ")[2] for _ in lines]
        writer.join(5)
    if sent != lines or logger.returncode != 0:
        yield f"syslog gets other lines: {set(sent) ^ set(lines)}"


def main():
    program = sys.argv[1]
    lines = lines_of(program, "json")
    wrong = [*wrong_lines(lines)] or [*wrong_keys(lines)]
    if shutil.which("logger"):
        wrong += wrong_in_syslog(lines)
    wrong += [f"this text is no line with time and level: {line}" for line in lines_of(program, "text") if not TEXT.match(line)]
    if wrong:
        sys.exit("\n".join(f"error: {why}" for why in wrong))
    print(f"{len(lines)} lines with {len(set().union(*map(json.loads, lines)))} of {len(SCHEMA['properties'])} keys")


main()
