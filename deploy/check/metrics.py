#!/usr/bin/env python3
"""metrics.py SCRAPE: whether the rules of ../prometheus and the dashboards of ../grafana ask only for what the daemon exported in SCRAPE.

Names of metrics and of labels must be there, and so must a series for each value of reason, state and direction that is asked for. Whether the
expressions of the dashboards parse, promtool says. Every alert must have a test in which it fires and one in which it does not.
"""

import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
# Labels that Prometheus adds to every series, and the bound of a histogram's bucket.
ADDED = {"job", "instance", "le"}
# Labels whose values the daemon sets, whatever the configuration.
CLOSED = {"reason", "state", "direction"}
NOT_OURS = {"up": {"job", "instance"}}
PAIR = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")


def exported(text):
    """Name -> label -> the values that it has."""
    series = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
            of_name = series.setdefault(name, {})
            for label, _, value in PAIR.findall(labels or ""):
                of_name.setdefault(label, set()).add(value)
    return series


def listed():
    """Name, kind and labels of every family in the metrics' reference, which the daemon's tests compare with what it exports."""
    page = (DEPLOY.parent / "switch/docs/METRICS.md").read_text()
    for name, kind, labels in re.findall(r"^\| `(crosspoint_\w+)` \| (\w+) \| ([\w, ]*) \|", page, re.MULTILINE):
        yield name, kind.upper(), [label for label in re.split(r",\s*", labels.strip()) if label]


def selectors(expr):
    """The metrics that an expression names, each with its matchers."""
    found = []
    for name, _, inside in re.findall(r"(?<![\w:\"~$.])([a-zA-Z_:][\w:]*)\s*(\{([^}]*)\})", expr):
        found.append((name, PAIR.findall(inside)))
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    found += [(name, []) for name in re.findall(r"(?<![\w:])((?:crosspoint_|\w+:)[\w:]+|up)(?![\w:]|\s*\{)", bare)]
    return found


def wrong_in_selector(name, matchers, known):
    if name not in known:
        yield f"no metric {name}"
        return
    labels = known[name]
    for label, operator, value in matchers:
        if label not in labels and label not in ADDED:
            yield f"{name} has no label {label}"
        if label in CLOSED and not value.startswith("$"):
            for one in value.split("|") if operator.endswith("~") else [value]:
                fits = (lambda has: re.fullmatch(one, has)) if operator.endswith("~") else (lambda has: has == one)
                if not any(fits(has) for has in labels.get(label, [])):
                    yield f"{name} has no {label} {one}"


def wrong_in(expr, known):
    """What an expression asks for that is not there."""
    used = selectors(expr)
    if not used:
        yield "it names no metric"
    for name, matchers in used:
        yield from wrong_in_selector(name, matchers, known)
    labels = ADDED.union(*(known.get(name, {}) for name, _ in used))
    for group in GROUPING.findall(expr):
        for label in filter(None, (word.strip() for word in group.split(","))):
            if label not in labels:
                yield f"no metric here has the label {label}"


def rules():
    """Every rule."""
    groups = yaml.safe_load((DEPLOY / "prometheus/crosspoint.rules.yml").read_text())["groups"]
    return list(itertools.chain.from_iterable(group["rules"] for group in groups))


def learn_recorded(known):
    """The rules' own series have labels of those that they are made of."""
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = {}
            for name, _ in selectors(rule["expr"]):
                for label, values in known.get(name, {}).items():
                    known[rule["record"]].setdefault(label, set()).update(values)
            gone = re.findall(r"without\s*\(([^()]*)\)", rule["expr"])
            for label in set.intersection(*(set(re.split(r",\s*", one)) for one in gone)) if gone else ():
                known[rule["record"]].pop(label, None)


def check_rules(known):
    for rule in rules():
        where = rule.get("alert") or rule["record"]
        for why in wrong_in(rule["expr"], known):
            yield f"{where}: {why}"
        labels = ADDED.union(*(known.get(name, {}) for name, _ in selectors(rule["expr"])))
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))):
            if label not in labels:
                yield f"{where}: an annotation has the label {label}, which is not there"


def check_tests():
    tests = yaml.safe_load((DEPLOY / "prometheus/crosspoint.test.yml").read_text())["tests"]
    fired, watched = set(), []
    for test in tests:
        for one in test["alert_rule_test"]:
            if one["exp_alerts"]:
                fired.add(one["alertname"])
            watched.append((one["alertname"], len(test["input_series"]), len(one["exp_alerts"] or [])))
    for alert in (rule["alert"] for rule in rules() if "alert" in rule):
        if alert not in fired:
            yield f"{alert}: no test in which it fires"
        if not any(name == alert and series > alerts for name, series, alerts in watched):
            yield f"{alert}: no test in which it does not fire"


def targets():
    """Dashboard and panel, and the expression."""
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
        for variable in board["templating"]["list"]:
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", ""))
            if asked:
                yield f"{path.name}: variable {variable['name']}", f"count by ({asked[2]}) ({asked[1]})"


def check_dashboards(known):
    parsed = []
    for number, (where, expr) in enumerate(targets()):
        for why in wrong_in(expr, known):
            yield f"{where}: {why}"
        parsed.append({"record": f"dashboard:{number}", "expr": expr.replace("$__rate_interval", "5m")})
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboards", "rules": parsed}]}, file)
        file.flush()
        said = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False)
        if said.returncode != 0:
            yield said.stdout + said.stderr


def main():
    known = exported(pathlib.Path(sys.argv[1]).read_text())
    families = {name for name in known if not name.endswith(("_bucket", "_sum"))}
    # Metrics that need a guest are absent.
    for name, _, labels in listed():
        known.setdefault(name, {label: set() for label in labels})
    known.update({name: {label: set() for label in labels} for name, labels in NOT_OURS.items()})
    learn_recorded(known)
    wrong = [*check_rules(known), *check_tests(), *check_dashboards(known)]
    asked = {name for _, expr in targets() for name, _ in selectors(expr)}
    for name in sorted(families - asked - {name.removesuffix("_bucket") + "_count" for name in asked}):
        print(f"note: no dashboard shows {name}")
    if wrong:
        sys.exit("\n".join(f"error: {why}" for why in wrong))
    print(f"{len(rules())} rules and {len(list(targets()))} expressions of dashboards ask for what {len(families)} metrics have")


if __name__ == "__main__":
    main()
