#!/usr/bin/python3
"""alerts.py [--check]: writes the table of alerts in ../README.md, made of crosspoint.rules.yml; with --check, whether the table is up to date.

Also checks that each alert has a runbook_url which leads to a section of its name in TROUBLESHOOTING.md, and that no such section is left over.
"""

import pathlib
import re
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE / "crosspoint.rules.yml"
PAGE = HERE.parent / "README.md"
RUNBOOK = HERE.parent.parent / "switch/docs/TROUBLESHOOTING.md"
# The path from the page to the runbook.
TO_RUNBOOK = "../switch/docs/TROUBLESHOOTING.md"
START, END = "<!-- alerts -->", "<!-- end -->"
# Functions of a template, and the unit that they leave.
UNITS = {"humanizePercentage": "N %", "humanizeDuration": "N s", "humanize": "N", "": "N"}


def alerts():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def shown(summary):
    """A summary with PORT in place of the template's port, without the host."""
    text = re.sub(r"^\{\{ \$labels\.instance \}\}: ", "", summary)
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: found[1].upper(), text)
    return re.sub(r"\{\{ \$value(?: \| (\w+))? \}\}", lambda found: UNITS[found[1] or ""], text)


def thresholds(expr):
    """The comparisons of an expression with numbers; those of labels are in quotes."""
    found = re.findall(r"(?:>=?|<=?|[=!]=) -?[\d.]+", re.sub(r'"[^"]*"', "", expr))
    return ", ".join(f"`{one}`" for one in dict.fromkeys(found))


def table():
    lines = ["| alert | severity | lasts for | threshold | what it reports |", "|---|---|---|---|---|"]
    for rule in alerts():
        name = rule["alert"]
        cells = [
            f"[`{name}`]({TO_RUNBOOK}#{name.lower()})",
            rule["labels"]["severity"],
            rule.get("for", "at once"),
            thresholds(rule["expr"]),
            shown(rule["annotations"]["summary"]),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def wrong_runbooks():
    sections = re.findall(r"^### (Crosspoint\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    names = [rule["alert"] for rule in alerts()]
    for rule in alerts():
        name = rule["alert"]
        if not rule["annotations"].get("runbook_url", "").endswith(f"/{RUNBOOK.name}#{name.lower()}"):
            yield f"{name}: its runbook_url does not lead to #{name.lower()} of {RUNBOOK.name}"
        if name not in sections:
            yield f"{name} has no section in {RUNBOOK.name}"
    yield from (f"{RUNBOOK.name} has a section of {name}, which is no alert" for name in sections if name not in names)
    if sections != [name for name in names if name in sections]:
        yield f"the sections of {RUNBOOK.name} are not in the order of the rules"


def main():
    if wrong := list(wrong_runbooks()):
        sys.exit("\n".join(f"error: {why}" for why in wrong))
    page = PAGE.read_text()
    before, rest = page.split(START, 1)
    after = rest.split(END, 1)[1]
    wanted = f"{before}{START}\n{table()}\n{END}{after}"
    if sys.argv[1:] == ["--check"]:
        if wanted != page:
            sys.exit(f"error: {PAGE.name} has another table than the rules: run {pathlib.Path(__file__).name}")
        print(f"{len(alerts())} alerts are in the table, each with a section of the runbook")
    else:
        PAGE.write_text(wanted)


main()
