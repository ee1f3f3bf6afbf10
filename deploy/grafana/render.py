#!/usr/bin/env python3
"""render.py ADDRESS FOLDER [SECONDS]: draws the dashboards beside it as FOLDER/grafana-NAME.png, with what the Prometheus at ADDRESS answers.

It draws what Grafana would show of the last SECONDS (default 60): each panel in its place, with its title, unit, lines and their last and highest
values. It is no Grafana: there are no colours by threshold other than those of figures, and nothing to click. Needs matplotlib.
"""

import datetime
import json
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("agg")
from matplotlib import dates, pyplot, ticker  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
BACK, PANEL, TEXT, DIM = "#f4f5f5", "#ffffff", "#24292e", "#6e7680"
LINES = ["#56a64b", "#f2cc0c", "#3274d9", "#ff780a", "#e02f44", "#8f3bb8", "#5794f2", "#b877d9", "#705da0", "#37872d"]
# Names of the lines below a graph.
LEGEND_MAX = 3
# Size of a column and of a row of Grafana's grid, in inches.
COLUMN, ROW = 0.54, 0.34


def ask(address, path, **parameters):
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=20) as answer:
        return json.load(answer)["data"]["result"]


def expression(target, seconds):
    """As Grafana asks when every variable is set to all."""
    return re.sub(r"\$(job|instance|port|worker)\b", ".*", target["expr"].replace("$__rate_interval", f"{max(5, seconds // 12)}s"))


def name_of(target, labels):
    if not target["legendFormat"]:
        return ", ".join(f"{key}={value}" for key, value in labels.items() if key != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), target["legendFormat"]).strip()


def scaled(value, steps, unit):
    """The value with the largest prefix that leaves at least 1 before the point."""
    for factor, prefix in steps:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


DECIMAL = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]
BINARY = [(2.0**40, "Ti"), (2.0**30, "Gi"), (2.0**20, "Mi"), (2.0**10, "Ki")]
PARTS = [(1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")]


def shown(value, unit):
    """The value as Grafana writes it in this unit."""
    if value != value:
        return "-"
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s":
            return scaled(value, PARTS, "s") if value else "0 s"
        case "bytes":
            return scaled(value, BINARY, "B")
        case "dateTimeFromNow":
            minutes = int(time.time() - value / 1000) // 60
            return f"{minutes} min ago" if minutes else "now"
        case "pps" | "ops" | "bps":
            return scaled(value, DECIMAL, {"pps": "p/s", "ops": "ops/s", "bps": "b/s"}[unit])
        case _:
            return scaled(value, DECIMAL, "").strip()


def series(address, panel, seconds):
    """Name, times and values of each line of a graph."""
    end = time.time()
    for target in panel["targets"]:
        for one in ask(address, "query_range", query=expression(target, seconds), start=end - seconds, end=end, step=max(0.5, seconds / 240)):
            times = [datetime.datetime.fromtimestamp(float(at)) for at, _ in one["values"]]
            yield name_of(target, one["metric"]), times, [float(value) for _, value in one["values"]]


def draw_graph(axes, address, panel, seconds):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    lines = sorted(series(address, panel, seconds), key=lambda line: -max(line[2]))
    for number, (_, times, values) in enumerate(lines):
        axes.plot(times, values, color=LINES[number % len(LINES)], linewidth=1)
    if not lines:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", transform=axes.transAxes, color=DIM, fontsize=8)
        axes.set_xticks([])
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]), top=None if lines and any(any(values) for _, _, values in lines) else 1)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: shown(value, unit)))
    if lines:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(colors=DIM, labelsize=5.5, length=0)
    axes.grid(color="#e4e7e7", linewidth=0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    for number, (name, _, values) in enumerate(lines[:LEGEND_MAX]):
        y = -0.21 - 0.105 * number
        axes.text(0, y, "━ ", color=LINES[number % len(LINES)], fontsize=6, transform=axes.transAxes, va="top")
        axes.text(0.035, y, name[:60], color=TEXT, fontsize=5.5, transform=axes.transAxes, va="top")
        axes.text(0.86, y, shown(max(values), unit), color=DIM, fontsize=5.5, transform=axes.transAxes, va="top", ha="right")
        axes.text(1, y, shown(values[-1], unit), color=TEXT, fontsize=5.5, transform=axes.transAxes, va="top", ha="right")
    if len(lines) > LEGEND_MAX:
        axes.text(0.035, -0.21 - 0.105 * LEGEND_MAX, f"and {len(lines) - LEGEND_MAX} more", color=DIM, fontsize=5.5, transform=axes.transAxes, va="top")


def draw_figure(axes, address, panel, seconds):
    """A single figure, coloured by its thresholds."""
    axes.axis("off")
    found = ask(address, "query", query=expression(panel["targets"][0], seconds))
    defaults = panel["fieldConfig"]["defaults"]
    value = float(found[0]["value"][1]) if found else float("nan")
    color = "green"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    text = shown(value, defaults["unit"]) if found else "No data"
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=17, color={"green": "#37872d", "red": "#c4162a"}[color] if found else DIM, transform=axes.transAxes)


def draw_table(axes, address, panel, seconds):
    """A row for each host, sorted by the first column."""
    axes.axis("off")
    names = panel["transformations"][1]["options"]["renameByName"]
    units = {one["matcher"]["options"]: one["properties"][0]["value"] for one in panel["fieldConfig"]["overrides"][1:]}
    rows = {}
    for target in panel["targets"]:
        for one in ask(address, "query", query=expression(target, seconds)):
            rows.setdefault(one["metric"].get("instance", ""), {})[names[f"Value #{target['refId']}"]] = float(one["value"][1])
    columns = list(units)
    cells = [["Host", *columns]]
    for host, row in sorted(rows.items(), key=lambda item: -item[1].get(columns[0], 0)):
        cells.append([host, *(shown(row[name], units[name]) if name in row else "" for name in columns)])
    for line, row in enumerate(cells):
        for column, cell in enumerate(row):
            at = column / len(row)
            axes.text(at, 0.97 - 0.075 * line, cell, fontsize=6.5, color=TEXT if line else DIM, transform=axes.transAxes, va="top")


DRAW = {"timeseries": draw_graph, "stat": draw_figure, "table": draw_table}


def draw(address, board, path, seconds):
    panels = board["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height, top = 24 * COLUMN, rows * ROW + 0.5, 0.5
    figure = pyplot.figure(figsize=(width, height), facecolor=BACK)
    figure.text(0.1 / width, 1 - 0.3 / height, f"{board['title']}     last {seconds} s", fontsize=11, color=TEXT, va="center")
    for panel in panels:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        left, right = x * COLUMN + 0.05, (x + w) * COLUMN - 0.05
        upper, lower = height - top - y * ROW - 0.04, height - top - (y + h) * ROW + 0.04
        box = pyplot.Rectangle((left / width, lower / height), (right - left) / width, (upper - lower) / height, facecolor=PANEL, edgecolor="#dcdfdf", transform=figure.transFigure, zorder=-1)
        figure.add_artist(box)
        figure.text((left + 0.1) / width, (upper - 0.14) / height, panel["title"], fontsize=7.5, color=TEXT, va="center", weight="bold")
        # Room for the axis at the left, for the legend below.
        inner = (left + 0.55, lower + 1.0, right - 0.12, upper - 0.3) if panel["type"] == "timeseries" else (left + 0.1, lower + 0.05, right - 0.1, upper - 0.3)
        axes = figure.add_axes([inner[0] / width, inner[1] / height, (inner[2] - inner[0]) / width, (inner[3] - inner[1]) / height], facecolor=PANEL)
        DRAW[panel["type"]](axes, address, panel, seconds)
    figure.savefig(path, dpi=100, facecolor=BACK, metadata={"Software": None})
    pyplot.close(figure)
    print(path)


def main():
    address, folder = sys.argv[1].rstrip("/"), pathlib.Path(sys.argv[2])
    seconds = int(sys.argv[3]) if len(sys.argv) > 3 else 60
    for path in sorted(HERE.glob("*.json")):
        draw(address, json.loads(path.read_text()), folder / f"grafana-{path.stem}.png", seconds)


main()
