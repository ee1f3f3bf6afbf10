#!/usr/bin/env python3
"""prometheus.py DIR ADDRESS: has a Prometheus scrape the daemon that serves its metrics at ADDRESS, with scrape.yml and the rules of ../prometheus.

A DPDK guest at DIR/guests/web-1.sock sends meanwhile. Checked by Prometheus' own API: the target is up; every family of the daemon's list has series;
every rule is evaluated without an error; every expression of the dashboards is answered, those of the table of hosts with a row for the daemon. With
CROSSPOINT_PROMETHEUS_THEN set, that command is run at the end, with the address of Prometheus as its last argument.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import yaml

from metrics import DEPLOY, listed, targets

LISTEN = "127.0.0.1:9490"
# Seconds that Prometheus may take.
PATIENCE = 30


def ask(path, **parameters):
    url = f"http://{LISTEN}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def families():
    """Name of a series that each family has."""
    return [name + ("_count" if kind == "HISTOGRAM" else "") for name, kind, _ in listed()] + ["process_start_time_seconds"]


def configure(folder, address):
    """What an operator would have, but faster."""
    config = yaml.safe_load((DEPLOY / "prometheus/scrape.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    for job in config["scrape_configs"]:
        job["scrape_interval"] = "500ms"
        job["static_configs"] = [{"targets": [address]}]
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def wrong_now():
    """What is not as it should be, yet."""
    active = ask("targets")["activeTargets"]
    yield from (f"{one['scrapeUrl']} is {one['health']}: {one['lastError']}" for one in active if one["health"] != "up")
    there = {one["metric"]["__name__"] for one in ask("query", query='count by (__name__) ({job="crosspoint"})')["result"]}
    yield from (f"no series {name}" for name in families() if name not in there)
    groups = ask("rules")["groups"]
    wanted = [group["name"] for group in yaml.safe_load((DEPLOY / "prometheus/crosspoint.rules.yml").read_text())["groups"]]
    if {group["name"] for group in groups} != set(wanted):
        yield f"there are the groups of rules {[group['name'] for group in groups]}"
    for rule in (rule for group in groups for rule in group["rules"]):
        if rule["health"] != "ok":
            yield f"rule {rule['name']} is {rule['health']}: {rule.get('lastError', '')}"
    if not ask("query", query="sum(crosspoint_queue_packets_total) > 0")["result"]:
        yield "no frame was counted"


def wrong_expressions():
    for where, expr in targets():
        expr = re.sub(r"\$(job|instance|port|worker)\b", ".*", expr.replace("$__rate_interval", "5s"))
        try:
            found = ask("query", query=expr)["result"]
        except OSError as error:
            yield f"{where}: {error}"
            continue
        # The table of hosts has a row for each, whatever it does.
        if where == "hosts.json: All hosts" and [one["metric"].keys() for one in found] != [{"instance"}]:
            yield f"{where}: {expr} has the rows {found}"


def wait(prometheus, looks_for):
    """Waits until nothing is wrong; what still is."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            wrong = list(looks_for())
        except OSError as error:
            wrong = [f"Prometheus does not answer: {error}"]
        if not wrong or time.monotonic() > end or prometheus.poll() is not None:
            return wrong
        time.sleep(0.3)


def run(folder, address):
    log = (folder / "prometheus.log").open("w")
    guest = ["dpdk-testpmd", "--lcores", "0@0,1@0", "--no-pci", "--no-huge", "--no-shconf", "--single-file-segments", "-m", "64", "--vdev"]
    guest += [f"net_virtio_user0,path={folder}/guests/web-1.sock", "--", "--auto-start", "--no-lsc-interrupt", "--forward-mode=txonly", "--total-num-mbufs=2048"]
    server = ["prometheus", f"--config.file={configure(folder, address)}", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={LISTEN}"]
    started = []
    try:
        # With a pipe as its input: testpmd ends without one.
        started.append(subprocess.Popen(guest, stdin=subprocess.PIPE, stdout=log, stderr=log))
        started.append(subprocess.Popen(server, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"}))
        # A rate needs two scrapes.
        wrong = wait(started[-1], wrong_now) or wait(started[-1], wrong_expressions)
        if wrong:
            sys.exit("\n".join([*(f"error: {why}" for why in wrong), (folder / "prometheus.log").read_text()[-3000:]]))
        then = os.environ.get("CROSSPOINT_PROMETHEUS_THEN")
        if then:
            subprocess.run([*then.split(), f"http://{LISTEN}"], check=True)
        rules = sum(len(group["rules"]) for group in ask("rules")["groups"])
        series = ask("query", query='count({job="crosspoint"})')["result"][0]["value"][1]
        print(f"{series} series of {len(families())} families, and {rules} rules evaluated")
    finally:
        for one in started:
            one.terminate()
        for one in started:
            one.wait(20)


run(pathlib.Path(sys.argv[1]), sys.argv[2])
